"""``colo demo``: a running VM is protected, its primary killed with SIGKILL, and nothing that the world was told is lost."""

from __future__ import annotations

import argparse
import importlib

from colo.cli.report.option import add_report_argument

MEMORY_MIB = {"embedded": 64, "qemu": 256}
INTERVAL_MS = {"embedded": 50.0, "qemu": 100.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.add_argument("--vm", choices=("embedded", "qemu"), default="embedded",
                        help="a machine in this package on the Unicorn CPU emulator, or a real QEMU (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0,
                        help="embedded: how long the guest works; qemu: until the kill (default %(default)s)")
    parser.add_argument("--kill-after", type=float, metavar="S",
                        help="kill the primary so long after its start, instead of at a random moment")
    parser.add_argument("--seed", type=int, help="of the random moment, and of the guest's walk (default: a new one)")
    parser.add_argument("--memory-mib", type=int, help="guest memory (default 64, qemu 256)")
    parser.add_argument("--interval-ms", "--checkpoint-delay-ms", type=float,
                        help="between checkpoints (default 50, qemu 100)")
    parser.add_argument("--xbzrle", action="store_true", help="send changed pages as deltas")
    add_report_argument(parser)
    parser.add_argument("--json", action="store_true", help="JSON lines")
    embedded = parser.add_argument_group("embedded")
    embedded.add_argument("--sending", choices=("copy", "direct"), default="copy",
                          help="when the VM runs on: its pages are copied, or loaded (default %(default)s)")
    embedded.add_argument("--tracker", default="auto", help="how dirty pages are found (default %(default)s)")
    embedded.add_argument("--kill-at", metavar="POINT:N",
                          help="kill the primary at the N-th time it comes to POINT: connected, pause, save, resume, "
                          "committed, deliver (about to tell the world), delivered")
    embedded.add_argument("--no-output-commit", action="store_true",
                          help="let output out before its checkpoint is committed, to see that the proof then fails")
    qemu = parser.add_argument_group("qemu")
    qemu.add_argument("--pages", type=int, default=2000, help="pages the guest walks over (default %(default)s)")
    qemu.add_argument("--qemu", default="qemu-system-x86_64", help="QEMU binary (default %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if its proof holds."""
    if arguments.memory_mib is None:
        arguments.memory_mib = MEMORY_MIB[arguments.vm]
    if arguments.interval_ms is None:
        arguments.interval_ms = INTERVAL_MS[arguments.vm]
    return int(importlib.import_module(f"colo.cli.demo.{arguments.vm}").run(arguments))
