"""``colo status``: what a running secondary has."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from colo.cli.output import print_mapping
from colo.session.control import SOCKET_NAME, ask


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("status", help="last checkpoint, its age, sizes and pauses of a running secondary")
    parser.add_argument("--ram-dir", required=True, metavar="DIR", help="the secondary's --ram-dir")
    parser.add_argument("--watch", type=float, metavar="S", help="again every S seconds")
    parser.add_argument("--json", action="store_true", help="JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    path = Path(arguments.ram_dir) / SOCKET_NAME
    while True:
        print_mapping(ask(path, "status"), json_output=arguments.json)
        if arguments.watch is None:
            return 0
        print(flush=True)
        time.sleep(arguments.watch)
