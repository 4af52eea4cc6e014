"""``colo protect``: make a running QEMU a primary, and watch it."""

from __future__ import annotations

import argparse

from colo.cli.arguments import add_allow_uid_argument, byte_size
from colo.cli.report.conditions import link
from colo.cli.report.option import add_report_argument, concluded, reported
from colo.cli.terminal.outlet import outlive_terminal
from colo.cli.terminal.output import SessionOutput
from colo.cli.terminal.signals import on_ending_signals
from colo.figures.series import percentile
from colo.protocol.lease import LEASE_MS
from colo.qemu.primary import ColoSettings
from colo.session.qemu_guard import Ending, QemuGuard, QemuGuardConfig

EXIT = {
    Ending.UNPROTECTED: 0, Ending.ENDED: 0, Ending.STOPPED: 4, Ending.HANDED_OVER: 4, Ending.PRIMARY_GONE: 9, Ending.ALONE:
    12,
}
"""0 only for what was asked for: a VM that runs on alone is unprotected against its user's will."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    defaults = ColoSettings()
    parser.description = (
        "Connects to a running QEMU's QMP socket, makes it the COLO primary of the secondary at --to, and watches it: "
        "when the secondary is lost or hangs, and the arbiter says so, the VM runs on alone; when the secondary took "
        "over, it is ended. Started on a QEMU that is a primary already, it goes on guarding it. SIGTERM ends protection "
        "in order: the VM runs on alone. Exit code 0: ended as asked for; 4: the other side runs the VM; 9: QEMU is gone;"
        " 12: the secondary is lost, and the VM runs on unprotected.")
    parser.add_argument("--qmp", required=True, metavar="SOCKET", help="QMP unix socket of the running QEMU")
    parser.add_argument("--to", required=True, metavar="URI", help="the secondary: tcp:HOST:PORT or unix:PATH")
    parser.add_argument("--arbiter", required=True, metavar="ARBITER",
                        help="who may run after a loss: file:DIR, etcd:URL/PREFIX, exec:COMMAND or none; the secondary's own")
    parser.add_argument("--vm", default="", metavar="NAME", help="the VM's name: an arbiter of another VM is refused")
    parser.add_argument("--init-arbiter", action="store_true", help="make the arbiter where there is none yet")
    parser.add_argument("--lease-ms", type=float, default=LEASE_MS, metavar="N",
                        help="the VM runs only while the secondary has promised, for so long, not to run it (default "
                             "%(default)g)")
    parser.add_argument("--no-lease", action="store_true",
                        help="for a secondary that is a QEMU: nothing stops this VM by time, so --arbiter must be exec: "
                             "or none")
    parser.add_argument("--reconnect", action="store_true", help="running alone, go on looking for a secondary at --to, "
                                                                 "for ever")
    parser.add_argument("--on-crash", choices=("takeover", "end"), default="takeover",
                        help="when the guest's kernel panics: resume from the checkpoint before, or let the VM end")
    parser.add_argument("--watchdog", default="", metavar="DEVICE",
                        help="have this machine reset when the fence cannot say any more that all is well (/dev/watchdog)")
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
    config = QemuGuardConfig(
        qmp=arguments.qmp, to=arguments.to, arbiter=arguments.arbiter, deadline_ms=arguments.deadline_ms,
        set_up_s=arguments.set_up_s, insecure=arguments.insecure, vm=arguments.vm, init_arbiter=arguments.init_arbiter,
        lease_ms=0.0 if arguments.no_lease else arguments.lease_ms, reconnect=arguments.reconnect,
        watchdog=arguments.watchdog, on_crash=arguments.on_crash, allow_uids=tuple(arguments.allow_uid),
        settings=ColoSettings(
            checkpoint_delay_ms=arguments.checkpoint_delay_ms, xbzrle=arguments.xbzrle,
            xbzrle_cache_bytes=arguments.xbzrle_cache, compress=arguments.compress,
        ),
    )
    with reported(arguments.report, f"colo protect {arguments.qmp}") as recording:
        output = SessionOutput(json_lines=arguments.json, title="colo protect", recording=recording)
        outlive_terminal()
        try:
            with QemuGuard(config, sinks=[output.event]) as protector:
                if recording is not None:
                    recording.conditions |= {
                        "QEMU": str(protector.primary.qemu.version), "Link": link(arguments.to),
                        "Interval": f"{arguments.checkpoint_delay_ms} ms from the end of a checkpoint to the next"}
                with on_ending_signals(protector.stop):
                    report = protector.run()
                p50, p99 = (percentile(output.pauses_ms, p) for p in (50, 99))
                output.last_line(f"{report.ending.value} ({report.reason}); {report.checkpoints} checkpoints, "
                                 f"pause p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        finally:
            output.close()
    return concluded(EXIT[report.ending], recording)
