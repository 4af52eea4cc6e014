"""``colo failover``: ask a running secondary to take over now."""

from __future__ import annotations

import argparse
from typing import Any

from colo.cli.output import print_mapping
from colo.cli.status import add_session_arguments, session_socket
from colo.session.control import ask


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("failover", help="ask a running secondary to take over now")
    add_session_arguments(parser)
    parser.add_argument("--timeout-s", type=float, default=60.0, metavar="S", help="wait so long (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, wait until the VM runs, print the takeover's report."""
    report = ask(session_socket(arguments), "failover", timeout_s=arguments.timeout_s)
    print_mapping(report, json_output=arguments.json)
    return 0
