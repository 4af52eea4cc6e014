"""``colo secondary``: follow a primary, take over when it is lost."""

from __future__ import annotations

import argparse
import ctypes
import resource
import shlex
from dataclasses import replace

from colo.cli.arguments import add_allow_uid_argument, byte_size
from colo.cli.report.conditions import link, qemu
from colo.cli.report.option import add_report_argument, concluded, reported
from colo.cli.terminal.outlet import outlive_terminal
from colo.cli.terminal.output import SessionOutput
from colo.cli.terminal.signals import on_ending_signals
from colo.protocol import Mode
from colo.protocol.deadlines import Deadlines
from colo.protocol.lease import LEASE_MS
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from colo.session.secondary_config import RETURN_S
from colo.stream import StreamLimits

PR_SET_DUMPABLE = 4
"""linux/prctl.h"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Listens for a QEMU primary with x-colo (see `colo protect`), keeps its last committed checkpoint in --ram-dir, "
        "and runs its VM in a stand-by QEMU when the primary is lost. The checkpoint stays there when the session ends, "
        "however it does; started again with the same arguments, it goes on from it.")
    parser.add_argument("listen", metavar="LISTEN", help="tcp:HOST:PORT or unix:PATH")
    parser.add_argument("--ram-dir", required=True, metavar="DIR",
                        help="where the RAM image lives, on tmpfs for speed; made with mode 0700 if missing")
    parser.add_argument("--standby", metavar="COMMAND", help="the primary's QEMU command line; what a stand-by needs "
                        "besides (RAM backend, -incoming, our QMP socket) is added")
    parser.add_argument("--arbiter", default="", metavar="ARBITER",
                        help="who may run: file:DIR, etcd:URL/PREFIX, exec:COMMAND or none")
    parser.add_argument("--vm", default="", metavar="NAME", help="the VM's name: an arbiter of another VM is refused")
    parser.add_argument("--lease-ms", type=float, default=LEASE_MS, metavar="N",
                        help="the longest lease that is promised; the primary's decides within it (default %(default)g)")
    parser.add_argument("--no-lease", action="store_true",
                        help="let a primary in that nobody guards (QEMU's own commands): nothing stops its VM by time")
    parser.add_argument("--deadline-ms", type=float, metavar="N",
                        help="most silence from the primary, also between checkpoints (so more than its checkpoint delay)")
    defaults = Deadlines()
    for name, text in (
        ("handshake", "from the connection to the stream's configuration"), ("message", "one message"),
        ("progress", "without a byte while bytes are due"), ("epoch", "a whole checkpoint"),
        ("idle", "silence between checkpoints"),
    ):
        parser.add_argument(f"--{name}-s", type=float, default=getattr(defaults, f"{name}_s"), metavar="S",
                            help=f"deadline: {text} (default %(default)s)")
    parser.add_argument("--on-loss", choices=("takeover", "hold"), default="takeover",
                        help="hold: keep the checkpoint and wait for `colo failover`")
    parser.add_argument("--wait-s", type=float, default=0.0, metavar="S",
                        help="after a loss, with --on-loss takeover: the primary has so long to come back (a program's "
                        "resync_s) before this side takes over (default 0)")
    parser.add_argument("--return-s", type=float, default=RETURN_S, metavar="S",
                        help="started on a checkpoint that an earlier session left in --ram-dir: its primary has so long to "
                        "come back before the arbiter is asked (default %(default)g)")
    parser.add_argument("--wait", action="store_true",
                        help="when the other side won: keep the checkpoint and wait for its primary, instead of ending")
    parser.add_argument("--discard", action="store_true", help="delete the checkpoint that --ram-dir holds, and begin anew")
    parser.add_argument("--no-shared-ram", action="store_true", help="send all pages to the stand-by at takeover")
    parser.add_argument("--no-trial", action="store_true", help="do not find out beforehand, in a second QEMU that never "
                        "runs the VM, whether the stand-by can load it")
    parser.add_argument("--strict", action="store_true", help="acknowledge a checkpoint only when it is applied")
    parser.add_argument("--max-ram", type=byte_size, metavar="SIZE", help="most RAM a primary may announce")
    parser.add_argument("--max-device-state", type=byte_size, default=64 << 20, metavar="SIZE",
                        help="most device state of a checkpoint (default 64M)")
    parser.add_argument("--insecure", action="store_true", help="allow plaintext TCP beyond loopback")
    add_allow_uid_argument(parser, "connect")
    parser.add_argument("--heat-map", action="store_true",
                        help="count dirty pages by place, for `colo status --watch` (on with --report)")
    add_report_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=run)


def config_from(arguments: argparse.Namespace) -> QemuSecondaryConfig:
    """The session's configuration, from parsed arguments."""
    deadlines = Deadlines(
        arguments.handshake_s, arguments.message_s, arguments.progress_s, arguments.epoch_s, arguments.idle_s)
    if arguments.deadline_ms is not None:
        deadlines = deadlines.capped(arguments.deadline_ms)
    return QemuSecondaryConfig(
        listen=arguments.listen,
        ram_dir=arguments.ram_dir,
        standby=shlex.split(arguments.standby) if arguments.standby else None,
        arbiter=arguments.arbiter,
        vm=arguments.vm,
        lease_ms=0.0 if arguments.no_lease else arguments.lease_ms,
        share_ram=not arguments.no_shared_ram,
        trial=not arguments.no_trial,
        on_loss=arguments.on_loss,
        wait_s=arguments.wait_s,
        return_s=arguments.return_s,
        wait=arguments.wait,
        discard=arguments.discard,
        deadlines=deadlines,
        limits=replace(StreamLimits(), device_state_bytes=arguments.max_device_state),
        max_ram_bytes=arguments.max_ram,
        mode=Mode.STRICT if arguments.strict else Mode.EARLY,
        insecure=arguments.insecure, allow_uids=tuple(arguments.allow_uid),
        heat_map=arguments.heat_map or arguments.report is not None,
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the session until the VM runs here (0), or an error."""
    keep_out_of_core_dumps()
    with reported(arguments.report, f"colo secondary {arguments.listen}") as recording:
        if recording is not None:
            recording.conditions |= {"QEMU": qemu(shlex.split(arguments.standby or "")), "Link": link(arguments.listen)}
        output = SessionOutput(json_lines=arguments.json, title="colo secondary", recording=recording)
        outlive_terminal()
        try:
            with QemuSecondary(config_from(arguments), sinks=[output.event]) as session:
                try:
                    # In order: nothing of it is left but the last committed checkpoint.
                    with on_ending_signals(session.stop):
                        session.run()
                finally:
                    if recording is not None and session.heat is not None:
                        recording.heat = session.heat.as_dict()
        finally:
            output.close()
    return concluded(0, recording)


def keep_out_of_core_dumps() -> None:
    """Guest memory passes through all of this process's: it, and what it starts, is not dumped."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A core_pattern that is a pipe does not ask for the limit.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
