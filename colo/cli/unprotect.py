"""``colo unprotect``: end the protection of a VM, which runs on alone."""

from __future__ import annotations

import argparse

from colo.cli.guarded import add_guarded_arguments, command_guard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Asks the `colo protect` of a VM on this machine to end in order: the VM is claimed first, so that the secondary "
        "does not take it over. Exit code 0: it runs on alone; 4: the other side runs it.")
    add_guarded_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, wait for the end, say how it ended."""
    return command_guard(arguments, "unprotect")
