"""``colo failover``: ask a running secondary to take over now, or run the checkpoint that one which is over has left."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from colo import trace
from colo.cli.secondary import keep_out_of_core_dumps
from colo.cli.status import add_session_arguments, session_socket
from colo.cli.terminal.output import print_mapping
from colo.cli.terminal.signals import on_ending_signals
from colo.control.client import ControlClient
from colo.errors import ColoError, StandbyError
from colo.memory import KeptCopy, SessionFacts
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Asks a running session to take over. Where none answers in --dir, the checkpoint that one left there is run, "
        "with the stand-by's command line and the arbiter of that session; the arbiter is asked as always.")
    add_session_arguments(parser)
    parser.add_argument("--standby", metavar="COMMAND", help="for a session that is over: another command line than then")
    parser.add_argument("--arbiter", metavar="ARBITER", help="for a session that is over: where its arbiter is now")
    parser.add_argument("--timeout-s", type=float, default=60.0, metavar="S", help="wait so long (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, wait until the VM runs, print the takeover's report."""
    try:
        client = ControlClient(session_socket(arguments), timeout_s=arguments.timeout_s)
    except ColoError:
        facts = _left_in(arguments.ram_dir)
        if facts is None:
            raise
        report = _run_kept(arguments, facts)
    else:
        with client:
            report = client.ask("failover")
    print_mapping(report, json_output=arguments.json)
    return 0


def _left_in(directory: str | None) -> SessionFacts | None:
    """What is known of the session that left a checkpoint there."""
    if directory is None or not Path(directory).is_dir():
        return None
    with KeptCopy(Path(directory)) as kept:
        return kept.description.session if kept.description is not None else None


def _run_kept(arguments: argparse.Namespace, facts: SessionFacts) -> dict[str, Any]:
    keep_out_of_core_dumps()
    standby = tuple(shlex.split(arguments.standby)) if arguments.standby else facts.standby
    if not standby:
        raise StandbyError("the session that left the checkpoint had no --standby: give the primary's QEMU command line")
    config = QemuSecondaryConfig(
        listen="", ram_dir=arguments.ram_dir, standby=standby, arbiter=arguments.arbiter or facts.arbiter, vm=facts.vm,
        share_ram=facts.share_ram, lease_ms=float(facts.lease_ms), takeover_s=arguments.timeout_s)
    with QemuSecondary(config, sinks=[_say]) as session, on_ending_signals(session.stop):
        return session.take_over_kept("colo failover").as_dict()


def _say(event: trace.Event) -> None:
    if isinstance(event, trace.Notice):
        print(f"colo failover: {event.text}", file=sys.stderr, flush=True)
