"""The ``colo`` command: one file per subcommand, each imported when it is asked for."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import colo
from colo.cli.terminal.outlet import drop_output, open_standard_streams
from colo.cli.terminal.standard_output import say_error
from colo.errors import (
    ArbitrationError,
    ArbitrationLost,
    ChannelError,
    ColoError,
    Interrupted,
    NoCheckpoint,
    QemuError,
    StorageError,
    StreamError,
    Unsupported,
    VmEnded,
)


class Command(NamedTuple):
    """``module`` has ``add_arguments(parser)``, which sets ``run`` too, and is imported when the command is asked for;
    ``help`` is its line in the list of commands."""

    module: str
    help: str


COMMANDS = {
    "secondary": Command("colo.cli.secondary", "follow a primary and take over when it is lost"),
    "protect": Command("colo.cli.protect", "set a running QEMU up as primary and watch it"),
    "unprotect": Command("colo.cli.unprotect", "end the protection of a VM: it runs on alone"),
    "stop": Command("colo.cli.stop", "end a protected VM on purpose, on both sides"),
    "failover": Command(
        "colo.cli.failover",
        "ask a running secondary to take over now, or run the checkpoint that one has left"),
    "status": Command("colo.cli.status", "state, checkpoint, pauses, pages and rates of a running session"),
    "discard": Command("colo.cli.discard", "delete the checkpoint that a session has left in its --ram-dir"),
    "arbiter": Command("colo.cli.arbiter", "who may run: make a VM's arbiter, show who holds it, release it"),
    "inspect": Command(
        "colo.cli.inspect.command",
        "what is in a migration stream: sections, RAM blocks, pages by kind, devices and their fields"),
    "doctor": Command("colo.cli.doctor.command", "what works on this machine, and why not"),
    "demo": Command(
        "colo.cli.demo.command",
        "protect a running VM, kill its primary, take it over, and prove that nothing was lost"),
}
"""By their names, as `colo --help` lists them."""

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (NoCheckpoint, 3),
    (VmEnded, 11),
    (ArbitrationLost, 4),
    (ArbitrationError, 5),
    (StreamError, 6),
    (Interrupted, 130),
    (ChannelError, 7),
    (StorageError, 8),
    (QemuError, 9),
    (Unsupported, 10),
    (ColoError, 1),
    (KeyboardInterrupt, 130),
)
"""First match counts. 0 is success, 2 wrong usage."""
READER_GONE = 128 + signal.SIGPIPE
OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF}
"""What writing to standard output fails with: a full disk, a terminal that closed, a descriptor that was."""

EPILOG = """exit codes: 0 done; 1 other error; 2 usage; 3 nothing to resume from; 4 the other side may run; 5 who may run is
undecided; 6 bad stream; 7 channel lost; 8 storage, or output or report not written; 9 QEMU; 10 not possible here; 11 the
VM was ended on purpose; 12 its secondary is lost, it runs on unprotected; 130 interrupted; 141 nobody reads the output (a
session goes on all the same)"""


def exit_code(error: BaseException) -> int:
    """The exit code that stands for ``error``."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


class CommandParser(argparse.ArgumentParser):
    """The parser of a command of ``module``: it learns its arguments when it is first to parse some. Without a ``module``, an
    ordinary one."""

    def __init__(self, *args: Any, module: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self._module = module

    def learn(self) -> None:
        """Import the command, and take its arguments. Any number of times."""
        module, self._module = self._module, ""
        if module:
            importlib.import_module(module).add_arguments(self)

    def parse_known_args(self, *args: Any, **more: Any) -> Any:
        """As every parser."""
        self.learn()
        return super().parse_known_args(*args, **more)


def build_parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """The parser of the command line: all of it, or one that learns each command's arguments when it is asked for."""
    parser = argparse.ArgumentParser(
        prog="colo", description="Checkpoint streaming for running virtual machines.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"colo {colo.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, command in COMMANDS.items():
        each = commands.add_parser(name, help=command.help, module=command.module)
        if whole:
            each.learn()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors of ours go to stderr in one line."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a name may have characters that the terminal has not
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = build_parser(whole=False).parse_args(argv)
    try:
        code = int(arguments.run(arguments) or 0)
        sys.stdout.flush()
        return code
    except (ColoError, KeyboardInterrupt) as error:
        if isinstance(error, ColoError):
            say_error(f"colo {arguments.command}: {error}")
        return exit_code(error)
    except BrokenPipeError:
        # The reader of our output went away, and cannot have had all of it: what a program ends with that SIGPIPE kills.
        drop_output(sys.stdout)
        return READER_GONE
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_ERRORS:
            raise
        drop_output(sys.stdout)
        say_error(f"colo {arguments.command}: the output could not be written: {error.strerror}")
        return exit_code(StorageError())
