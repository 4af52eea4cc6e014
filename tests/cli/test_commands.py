"""What is imported for a command line: the module of the command that is asked for, and of no other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from colo.cli import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
from colo.cli import COMMANDS, main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code, "modules": [name for name, c in COMMANDS.items() if c.module in sys.modules],
                  "heavy": sorted({"rich", "qemu", "asyncio", "colo._fast"} & set(sys.modules))}), file=sys.stderr)
"""


def loaded(*arguments: str) -> tuple[str, dict[str, object]]:
    """What ``colo`` printed, and which commands' modules it had imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def test_help_imports_no_command() -> None:
    text, found = loaded("--help")
    assert found == {"code": 0, "modules": [], "heavy": []}
    for name, command in COMMANDS.items():
        assert name in text and command.help.split()[0] in text


@pytest.mark.parametrize(("name", "shown"), [("stop", "--qmp"), ("arbiter", "reopen"), ("discard", "DIR")])
def test_a_commands_help_imports_that_command_alone(name: str, shown: str) -> None:
    text, found = loaded(name, "--help")
    assert found["code"] == 0 and found["modules"] == [name]
    assert text.startswith(f"usage: colo {name} ") and shown in text


def test_wrong_usage_of_a_command_shows_its_own_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "colo", "discard"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "usage: colo discard" in done.stderr and "DIR" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_is_run(name: str) -> None:
    """And learns its arguments once, however often it is asked."""
    given = {
        "secondary": ["unix:/x", "--ram-dir", "/d"], "protect": ["--qmp", "/q", "--to", "unix:/x", "--arbiter", "none"],
        "failover": ["--dir", "/d"], "discard": ["/d"], "arbiter": ["show", "/a"], "inspect": ["-"],
    }.get(name, [])
    for whole in (True, False):
        parser = build_parser(whole=whole)
        assert parser.parse_args([name, *given]).run.__module__ == COMMANDS[name].module
        assert parser.parse_args([name, *given]).command == name
