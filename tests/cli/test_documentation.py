"""What README and docs/ say of the commands is so: each command, option and exit code is there, and what is shown can be run."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.cli import COMMANDS, EPILOG, EXIT_CODES, READER_GONE, build_parser
from colo.cli.protect import EXIT
from colo.cli.status import ENDED_WELL

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
OPERATION = PAGES["operation.md"]
SESSIONS = ("secondary", "protect", "unprotect", "stop", "failover", "status", "discard", "arbiter")


def parsers() -> dict[str, argparse.ArgumentParser]:
    return _choices(build_parser())


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a command, and of its own commands."""
    found = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    for each in _choices(parser).values():
        found |= options(each)
    return found - {"--help"}


@pytest.mark.parametrize("command", SESSIONS)
def test_every_option_of_a_session_is_explained(command: str) -> None:
    text = "\n".join(PAGES.values())
    missing = [option for option in sorted(options(parsers()[command])) if not re.search(rf"{option}(?![\w-])", text)]
    assert not missing


@pytest.mark.parametrize("option", [
    "--lease-ms", "--no-lease", "--watchdog", "--allow-uid", "--discard", "--reconnect", "--xbzrle", "--compress", "--strict",
])
def test_what_an_option_does_is_said_in_one_place(option: str) -> None:
    rows = [line for line in OPERATION.splitlines() if re.match(rf"\| `{option}(?![\w-])", line)]
    assert len(rows) == 1 or (option == "--allow-uid" and OPERATION.count("`--allow-uid UID`") == 1)


def test_every_command_has_its_row_in_the_readme() -> None:
    rows = re.findall(r"^\| `colo (\w+)", README, re.MULTILINE)
    assert set(rows) == set(COMMANDS)
    for command in _choices(parsers()["arbiter"]):
        assert f"| `colo arbiter {command} " in OPERATION and re.search(rf"arbiter [\w\\|]*{command}", README)


def test_every_exit_code_is_in_the_help_and_in_the_table() -> None:
    codes = {0, 2, READER_GONE} | {code for _, code in EXIT_CODES} | set(EXIT.values()) | set(ENDED_WELL.values())
    section = OPERATION.split("## Exit codes\n")[1].split("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == codes
    assert {int(code) for code in re.findall(r"(?:^|[:;]\s)\s*(\d+) ", EPILOG)} == codes


def test_what_is_pointed_to_is_there() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if "://" in target:
                continue
            file, _, anchor = target.partition("#")
            path = (ROOT / ("" if name == "README.md" else "docs") / file) if file else None
            assert path is None or path.exists(), (name, target)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", PAGES[path.name if path else name], re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}, (name, target)


def shown_commands() -> Iterator[tuple[str, str]]:
    """What is printed as a command to be run."""
    for name, text in PAGES.items():
        joined = text.replace("\\\n", " ")
        for line in re.findall(r"^(?:    |\$ )(colo .+)$", joined, re.MULTILINE):
            if "[--" not in line:  # that tells what may be given
                yield name, line.partition("  #")[0]


@pytest.mark.parametrize(("page", "line"), list(shown_commands()))
def test_a_command_that_is_shown_is_taken(page: str, line: str) -> None:
    arguments = shlex.split(line)[1:]
    build_parser().parse_args(arguments)


def test_commands_are_shown_at_all() -> None:
    assert len(list(shown_commands())) >= 4


def test_the_readmes_python_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the session itself is run: its configuration is one."""
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    namespace: dict[str, object] = {}
    exec(compile(code.split("with QemuSecondary")[0], "README.md", "exec"), namespace)
    compile(code, "README.md", "exec")
    assert getattr(namespace["config"], "arbiter") == "file:/shared/vm1-arbiter"  # noqa: B009


@pytest.mark.parametrize("name", ["protected_vm", "migrate_vm"])
def test_an_example_runs_and_says_that_all_is_well(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False)
    assert done.returncode == 0 and "True" in done.stdout and "False" not in done.stdout, done.stdout + done.stderr
