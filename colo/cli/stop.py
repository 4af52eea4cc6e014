"""``colo stop``: end a protected VM on purpose, on both sides."""

from __future__ import annotations

import argparse

from colo.cli.guarded import add_guarded_arguments, command_guard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Asks the `colo protect` of a VM on this machine to end the VM itself: its QEMU quits, the secondary is told that"
        " nobody is to run it, and the arbiter that it is closed. Exit code 0: it was ended; 4: the other side runs it.")
    add_guarded_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, wait for the end, say how it ended."""
    return command_guard(arguments, "stop")
