"""``colo protect``: make a running QEMU a primary, and watch it."""

from __future__ import annotations

import argparse
import signal
from typing import Any

from colo.cli.outlet import outlive_terminal
from colo.cli.output import SessionOutput
from colo.cli.reporting import add_allow_uid_argument, add_report_argument, concluded, reported
from colo.cli.secondary import byte_size
from colo.qemu.primary import ColoSettings
from colo.session.protector import Ending, Protector, ProtectorConfig
from colo.session.statistics import percentile

EXIT = {Ending.ALONE: 0, Ending.DETACHED: 0, Ending.STOPPED: 4, Ending.PRIMARY_GONE: 9}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    defaults = ColoSettings()
    parser = subparsers.add_parser(
        "protect", help="set a running QEMU up as primary and watch it",
        description="Connects to a running QEMU's QMP socket, makes it the COLO primary of the secondary at --to, and "
        "watches it: when the secondary is lost or hangs, and the arbiter says so, the VM runs on alone; when the "
        "secondary took over, it is stopped.",
    )
    parser.add_argument("--qmp", required=True, metavar="SOCKET", help="QMP unix socket of the running QEMU")
    parser.add_argument("--to", required=True, metavar="URI", help="the secondary: tcp:HOST:PORT or unix:PATH")
    parser.add_argument("--arbiter", required=True, metavar="ARBITER",
                        help="who may run after a loss: file:DIR, exec:COMMAND or none; the secondary's own")
    parser.add_argument("--checkpoint-delay-ms", type=int, default=defaults.checkpoint_delay_ms, metavar="N",
                        help="from the end of a checkpoint to the next (default %(default)s)")
    parser.add_argument("--xbzrle", action="store_true", help="send changed pages as deltas")
    parser.add_argument("--xbzrle-cache", type=byte_size, metavar="SIZE", help="QEMU's cache for it, a power of two")
    parser.add_argument("--compress", action="store_true", help="compress RAM (QEMU before 9.1)")
    parser.add_argument("--deadline-ms", type=float, default=5000.0, metavar="N",
                        help="most that the VM may stand still (default %(default)s)")
    parser.add_argument("--set-up-s", type=float, default=60.0, metavar="S", help="most that the first copy may take")
    parser.add_argument("--insecure", action="store_true", help="allow plaintext TCP beyond loopback")
    add_allow_uid_argument(parser, "listen there")
    add_report_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Protect until it ends; the exit code says how."""
    config = ProtectorConfig(
        qmp=arguments.qmp, to=arguments.to, arbiter=arguments.arbiter, deadline_ms=arguments.deadline_ms,
        set_up_s=arguments.set_up_s, insecure=arguments.insecure, allow_uids=tuple(arguments.allow_uid),
        settings=ColoSettings(
            checkpoint_delay_ms=arguments.checkpoint_delay_ms, xbzrle=arguments.xbzrle,
            xbzrle_cache_bytes=arguments.xbzrle_cache, compress=arguments.compress,
        ),
    )
    with reported(arguments.report, f"colo protect {arguments.qmp}") as recording:
        output = SessionOutput(json_lines=arguments.json, title="colo protect", recording=recording)
        outlive_terminal()
        try:
            with Protector(config, on_event=output.event) as protector:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: protector.stop())
                report = protector.run()
                p50, p99 = (percentile(output.pauses_ms, p) for p in (50, 99))
                output.last_line(f"{report.ending.value} ({report.reason}); {report.checkpoints} checkpoints, "
                                 f"pause p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        finally:
            output.close()
    return concluded(EXIT[report.ending], recording)
