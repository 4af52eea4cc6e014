"""``python -m benchmarks [--quick] [--only QUESTION]``, ``… compare A.json B.json``, ``… report RUN.json``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.compare import show_comparison
from benchmarks.figures import Run, number, show
from benchmarks.machine import StolenTime, condition, machine, stolen_warning, warnings
from benchmarks.questions import QUESTIONS

DEFAULT_FOLDER = Path("bench-report")


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
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return run(arguments.quick, arguments.only, arguments.out, arguments.strict)


def run(quick: bool, only: list[str] | None, out: Path, strict: bool) -> int:
    """Ask the questions, print figures as they come, save the run and its report."""
    console = Console(highlight=False)
    folder = out / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    result = Run(machine(), quick=quick)
    for name, value in result.machine.items():
        console.print(f"{name:14} {value}")
    for warning in warnings(result.machine):
        console.print(f"[yellow]warning: {warning}[/]")
    failed = []
    for question in QUESTIONS:
        if (only and question.name not in only) or (quick and not question.in_quick and not only):
            continue
        console.print(f"\n[bold]{question.name}[/]: {question.about}")
        begun, stolen = time.monotonic(), StolenTime()
        answer = question.ask(folder, quick)
        result.conditions[question.name] = {**condition(), "stolen_percent": stolen.percent()}
        (folder / f"{question.name}.txt").write_text(answer.output)
        result.figures += answer.figures
        if answer.figures:
            show(answer.figures)
        if answer.skipped:
            result.skipped[question.name] = answer.skipped
            console.print(f"[yellow]not measured: {answer.skipped}[/]")
        if answer.failed:
            failed.append(question.name)
            result.skipped[question.name] = f"failed, see {folder / question.name}.txt"
            console.print(f"[bold red]failed[/]; its output:\n{answer.output[-3000:]}", markup=False)
        console.print(f"({time.monotonic() - begun:.0f} s)")
        if (doubt := stolen_warning(result.conditions[question.name]["stolen_percent"])) is not None:
            console.print(f"[yellow]warning: {doubt}[/]")
    result.machine["throttled_after"] = condition()["throttled"]
    result.save(folder / "run.json")
    write(result, folder)
    with_bar = [figure for figure in result.figures if figure.holds is not None]
    missed = [figure for figure in with_bar if not figure.holds]
    console.print(f"\n{len(with_bar) - len(missed)} of {len(with_bar)} bars hold; saved in {folder}/run.json")
    for figure in missed:
        console.print(f"[bold red]missed:[/] {figure.question}, {figure.name}: {number(figure.judged)}, bar {number(figure.bar)}")
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
