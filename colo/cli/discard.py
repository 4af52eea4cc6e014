"""``colo discard``: delete the checkpoint that a session has left in its directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from colo.cli.terminal.output import print_mapping
from colo.errors import NoCheckpoint, StorageError
from colo.memory import RamImage
from colo.memory.kept_copy import COPY_NAME
from colo.takeover.kept import directory_bytes, kept_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Deletes the checkpoint in DIR, for good: it may be the only copy of its VM. No session may use DIR.")
    parser.add_argument("directory", metavar="DIR", help="the --ram-dir of a secondary that is over")
    parser.add_argument("--json", action="store_true", help="JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Delete it, and say what it was."""
    directory = Path(arguments.directory)
    if not (directory / COPY_NAME).is_dir():
        raise NoCheckpoint(f"{directory} holds no checkpoint")
    try:
        was = kept_status(directory)
    except StorageError as error:  # damaged: a reason to discard it
        was = {"state": "damaged", "text": str(error)}
    before = directory_bytes(directory)
    with RamImage(directory, discard=True):
        pass
    left = was or {}
    print_mapping(
        {"discarded": left.get("checkpoint"), "vm": left.get("vm"), "state": left.get("state"),
         "freed_bytes": max(0, before - (directory_bytes(directory) if directory.exists() else 0))},
        json_output=arguments.json)
    return 0
