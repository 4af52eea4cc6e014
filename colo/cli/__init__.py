"""The ``colo`` command: one file per subcommand, each with ``add_parser(subparsers)`` that sets ``run``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import colo
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

COMMANDS = (
    "secondary", "protect", "unprotect", "stop", "failover", "status", "discard", "arbiter", "inspect", "doctor", "demo",
)

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

EPILOG = """exit codes: 0 done; 1 other error; 2 usage; 3 nothing to resume from; 4 the other side may run; 5 who may run is
undecided; 6 bad stream; 7 channel lost; 8 storage; 9 QEMU; 10 not possible here; 11 the VM was ended on purpose; 130
interrupted"""


def exit_code(error: BaseException) -> int:
    """The exit code that stands for ``error``."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="colo", description="Checkpoint streaming for running virtual machines.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"colo {colo.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"colo.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors of ours go to stderr in one line."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (ColoError, KeyboardInterrupt) as error:
        if isinstance(error, ColoError):
            print(f"colo {arguments.command}: {error}", file=sys.stderr)
        return exit_code(error)
    except BrokenPipeError:
        # The reader of our output went away: not an error, and nothing can be said to it.
        sys.stderr.close()
        return 0
