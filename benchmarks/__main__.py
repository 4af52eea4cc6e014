"""``python -m benchmarks [--quick] [--only QUESTION]``, ``… compare A.json B.json``, ``… report RUN.json``."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks.compare import show_comparison
from benchmarks.figures import Run, number, show
from benchmarks.machine import StolenTime, condition, machine, stolen_warning, warnings
from benchmarks.questions import QUESTIONS

DEFAULT_FOLDER = Path("bench-report")
NEEDED = {
    "pytest": "pytest", "pytest_timeout": "pytest-timeout", "pytest_benchmark": "pytest-benchmark", "numpy": "numpy",
    "lz4": "lz4", "zstandard": "zstandard",
}
"""Modules that asking needs -> the packages that have them."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes, without QEMU and root")
    parser.add_argument("--only", action="append", choices=[q.name for q in QUESTIONS], metavar="QUESTION",
                        help=f"ask only this (repeatable): {', '.join(q.name for q in QUESTIONS)}")
    parser.add_argument("--out", type=Path, default=DEFAULT_FOLDER, metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a bar is missed")
    commands = parser.add_subparsers(dest="command", metavar="")
    compare = commands.add_parser("compare", help="two saved runs side by side; exit code 1 if the second is worse")
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    report = commands.add_parser("report", help="write the report of a saved run again")
    report.add_argument("run", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.command == "compare":
            return 1 if show_comparison(Run.load(arguments.a), Run.load(arguments.b)) else 0
        if arguments.command == "report":
            return write(Run.load(arguments.run), arguments.run.parent)
        if missing := [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]:
            parser.error(f"{', '.join(missing)} missing: run `make bench`, or pip install {' '.join(missing)}")
        folder = new_folder(arguments.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return run(arguments.quick, arguments.only, folder, arguments.strict)


def new_folder(out: Path) -> Path:
    """A folder of this run's own in ``out``, by the time; a second run of the same second gets a number. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    name = time.strftime("%Y%m%d-%H%M%S")
    for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
        try:
            (out / f"{name}{suffix}").mkdir()
        except FileExistsError:
            continue
        return out / f"{name}{suffix}"
    raise AssertionError("unreachable")


def run(quick: bool, only: list[str] | None, folder: Path, strict: bool, console: Console | None = None) -> int:
    """Ask the questions, print figures as they come, save the run and its report in ``folder``.

    What others wrote (versions, reasons, output of programs) is not read as markup.
    """
    console = console or Console(highlight=False)
    result = Run(machine(), quick=quick)
    for name, value in result.machine.items():
        console.print(f"{name:14} {value}", markup=False)
    for warning in warnings(result.machine):
        console.print(f"[yellow]warning: {escape(warning)}[/]")
    failed = []
    for question in QUESTIONS:
        if (only and question.name not in only) or (quick and not question.in_quick and not only):
            continue
        console.print(f"\n[bold]{question.name}[/]: {escape(question.about)}")
        begun, stolen = time.monotonic(), StolenTime()
        answer = question.ask(folder, quick)
        result.conditions[question.name] = {**condition(), "stolen_percent": stolen.percent()}
        (folder / f"{question.name}.txt").write_text(answer.output)
        result.figures += answer.figures
        if answer.figures:
            show(answer.figures)
        if answer.skipped:
            result.skipped[question.name] = answer.skipped
            console.print(f"[yellow]not measured: {escape(answer.skipped)}[/]")
        if answer.failed:
            failed.append(question.name)
            result.skipped[question.name] = f"failed, see {folder / question.name}.txt"
            console.print("[bold red]failed[/]; its output:")
            console.print(answer.output[-3000:], markup=False)
        console.print(f"({time.monotonic() - begun:.0f} s)")
        if (doubt := stolen_warning(result.conditions[question.name]["stolen_percent"])) is not None:
            console.print(f"[yellow]warning: {escape(doubt)}[/]")
    result.machine["throttled_after"] = condition()["throttled"]
    result.save(folder / "run.json")
    write(result, folder)
    with_bar = [figure for figure in result.figures if figure.holds is not None]
    missed = [figure for figure in with_bar if not figure.holds]
    console.print(f"\n{len(with_bar) - len(missed)} of {len(with_bar)} bars hold; saved in {folder}/run.json", markup=False)
    for figure in missed:
        console.print(f"[bold red]missed:[/] {figure.question}, {escape(figure.name)}: {number(figure.judged)}, bar {number(figure.bar)}")
    return 1 if failed or (strict and missed) else 0


def write(result: Run, folder: Path) -> int:
    """The report, where matplotlib is installed."""
    try:
        from benchmarks.report import write_report
    except ImportError as error:
        print(f"no plots: {error} (pip install matplotlib)")
        return 1
    print(f"report: {write_report(result, folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
