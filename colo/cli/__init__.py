"""The ``colo`` command: one file per subcommand, each with ``add_parser(subparsers)`` that sets ``run``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import signal
import sys
from collections.abc import Sequence

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

COMMANDS = {
    "secondary": "colo.cli.secondary",
    "protect": "colo.cli.protect",
    "unprotect": "colo.cli.unprotect",
    "stop": "colo.cli.stop",
    "failover": "colo.cli.failover",
    "status": "colo.cli.status",
    "discard": "colo.cli.discard",
    "arbiter": "colo.cli.arbiter",
    "inspect": "colo.cli.inspect.command",
    "doctor": "colo.cli.doctor.command",
    "demo": "colo.cli.demo.command",
}
"""Each with the module that has its ``add_parser``."""

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


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="colo", description="Checkpoint streaming for running virtual machines.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"colo {colo.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS.values():
        importlib.import_module(module).add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors of ours go to stderr in one line."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a name may have characters that the terminal has not
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = build_parser().parse_args(argv)
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
