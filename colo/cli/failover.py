"""``colo failover``: ask a running secondary to take over now."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from colo.cli.output import print_mapping
from colo.session.control import SOCKET_NAME, ask


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("failover", help="ask a running secondary to take over now")
    parser.add_argument("--ram-dir", required=True, metavar="DIR", help="the secondary's --ram-dir")
    parser.add_argument("--timeout-s", type=float, default=60.0, metavar="S", help="wait so long (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, wait until the VM runs, print the takeover's report."""
    report = ask(Path(arguments.ram_dir) / SOCKET_NAME, "failover", timeout_s=arguments.timeout_s)
    print_mapping(report, json_output=arguments.json)
    return 0
