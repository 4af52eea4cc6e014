"""``colo demo --vm qemu``: a real QEMU VM is protected, killed, and taken over, with a proof by the guest itself."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

from colo import trace
from colo.arbiter import init_arbiter
from colo.cli.report.conditions import link, qemu
from colo.cli.report.option import concluded, reported
from colo.cli.report.recording import Recording
from colo.cli.terminal.output import SessionOutput
from colo.epoch.committed import Committed
from colo.errors import ColoError, QemuError, Unsupported
from colo.figures.secondary_report import CheckpointReport
from colo.figures.series import percentile
from colo.figures.takeover_report import TakeoverReport
from colo.qemu.guest import STATE_ADDRESS, GuestParams, make_guest_rom
from colo.qemu.primary import ColoSettings
from colo.qemu.process import QemuProcess
from colo.session.qemu_guard import QemuGuard, QemuGuardConfig
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from colo.text import size

LINE = re.compile(r"colo guest (\d+)")
PROOF_S = 10.0


def command_line(qemu: str, memory_mib: int, rom: Path, serial: Path, accelerator: str = "kvm") -> list[str]:
    """The demo VM's QEMU command line."""
    return [
        qemu, "-nodefaults", "-machine", "pc", "-accel", accelerator, "-m", str(memory_mib), "-display", "none",
        "-bios", str(rom), "-serial", f"file:{serial}",
    ]


def last_counter(path: Path) -> int:
    """The counter in the last whole line of a guest's serial output, 0 if there is none."""
    found = LINE.findall(path.read_text(errors="replace").rpartition("\n")[0]) if path.exists() else []
    return int(found[-1]) if found else 0


def first_counter(path: Path) -> int:
    """The counter in the first whole line of a guest's serial output, 0 if there is none."""
    found = LINE.search(path.read_text(errors="replace").rpartition("\n")[0]) if path.exists() else None
    return int(found[1]) if found else 0


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if the guest's proof holds."""
    if shutil.which(arguments.qemu) is None:
        raise Unsupported(f"{arguments.qemu} is not installed: apt-get install qemu-system-x86")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Unsupported(
            "/dev/kvm cannot be opened, and QEMU before 11 deadlocks in COLO without it: see `colo doctor`")
    shared_memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    title = "colo demo: a QEMU VM, checkpoint after checkpoint"
    with reported(arguments.report, title) as recording, tempfile.TemporaryDirectory(prefix="colo-demo-") as work, \
            tempfile.TemporaryDirectory(prefix="colo-demo-", dir=shared_memory) as ram:
        if recording is not None:
            recording.conditions |= {
                "QEMU": qemu([arguments.qemu]), "VM": f"{arguments.memory_mib} MiB", "Link": link("tcp:127.0.0.1:0"),
                "Interval": f"{arguments.interval_ms:g} ms from the end of a checkpoint to the next"}
        output = SessionOutput(json_lines=arguments.json, title=title, recording=recording)
        try:
            code = Demo(arguments, Path(work), Path(ram), output, recording).run()
        finally:
            output.close()
    return concluded(code, recording)


class Demo:
    """One run: the primary's QEMU, its protector and the secondary all on this machine."""

    def __init__(
        self, arguments: argparse.Namespace, work: Path, ram: Path, output: SessionOutput, recording: Recording | None = None,
    ) -> None:
        self.recording = recording
        self.arguments = arguments
        self.work = work
        self.ram = ram
        self.output = output
        self.params = GuestParams(pages=arguments.pages, ticks_hz=100, steps_per_tick=max(1, arguments.pages // 100))
        self.random = random.Random(arguments.seed)
        self.last_checkpoint = -1
        self.resumed_from = 0
        """The guest's counter in the checkpoint that was taken over."""
        self.killed = False
        self.outcome: TakeoverReport | BaseException | None = None

    def run(self) -> int:
        rom = self.work / "guest.rom"
        make_guest_rom(rom, self.params)
        arbiter = self.work / "arbiter"
        arbiter.mkdir(mode=0o700)
        init_arbiter(f"file:{arbiter}", vm="demo")
        primary_log, standby_log = self.work / "primary.log", self.work / "standby.log"
        line = command_line(self.arguments.qemu, self.arguments.memory_mib, rom, primary_log)
        standby = command_line(self.arguments.qemu, self.arguments.memory_mib, rom, standby_log)
        # A monitor has one client at a time: this one is the protector's.
        self.monitor = self.work / "protect.sock"
        line += ["-qmp", f"unix:{self.monitor},server=on,wait=off"]
        primary = QemuProcess.start(line, self.work / "primary")
        try:
            config = QemuSecondaryConfig(
                "tcp:127.0.0.1:0", self.ram / "image", standby=standby, arbiter=f"file:{arbiter}",
                heat_map=self.recording is not None)
            with QemuSecondary(config, sinks=[self._event]) as secondary:
                thread = threading.Thread(target=self._follow, args=(secondary,), name="colo-secondary")
                thread.start()
                try:
                    self._protect_and_kill(primary, secondary, arbiter)
                finally:
                    if self.killed:
                        thread.join(60)  # the takeover
                    secondary.stop()
                    thread.join(10)
                    if self.recording is not None and secondary.heat is not None:
                        self.recording.heat = secondary.heat.as_dict()
                return self._conclude(primary_log, standby_log)
        finally:
            primary.kill()
            if isinstance(self.outcome, TakeoverReport):
                os.kill(self.outcome.pid, signal.SIGKILL)

    def _event(self, event: trace.Event) -> None:
        match event:
            case trace.Checkpoint(CheckpointReport() as report):
                self.last_checkpoint = report.number
            case trace.Settled(Committed() as committed):
                memory = next(block.memory_buffer for block in committed.blocks if block.idstr == "pc.ram")
                assert memory is not None
                (self.resumed_from,) = struct.unpack_from("<Q", memory, STATE_ADDRESS)
        self.output.event(event)

    def _follow(self, secondary: QemuSecondary) -> None:
        try:
            self.outcome = secondary.run()
        except BaseException as error:
            self.outcome = error

    def _protect_and_kill(self, primary: QemuProcess, secondary: QemuSecondary, arbiter: Path) -> None:
        settings = ColoSettings(
            checkpoint_delay_ms=round(self.arguments.interval_ms), xbzrle=self.arguments.xbzrle)
        config = QemuGuardConfig(self.monitor, secondary.address, arbiter=f"file:{arbiter}", settings=settings)
        with QemuGuard(config, sinks=[self._event]) as protector:
            watching = threading.Thread(target=self._watch, args=(protector,), name="colo-protector")
            watching.start()
            given = self.arguments.kill_after
            end = time.monotonic() + (given if given is not None else self.arguments.seconds + self.random.random())
            while time.monotonic() < end and watching.is_alive() and self.outcome is None:
                time.sleep(0.05)
            if self.outcome is None:
                self.output.say(f"SIGKILL to the primary's QEMU, pid {primary.pid}, after checkpoint {self.last_checkpoint}")
            if self.recording is not None:
                self.recording.killed()
            primary.send_signal(signal.SIGKILL)
            self.killed = True
            watching.join(10)

    def _watch(self, protector: QemuGuard) -> None:
        try:
            protector.run()
        except ColoError as error:
            self.output.say(f"protect: {error}")

    def _conclude(self, primary_log: Path, standby_log: Path) -> int:
        report = self.outcome
        if not isinstance(report, TakeoverReport):
            raise report if report is not None else QemuError("no takeover within 60 s")
        shown = last_counter(primary_log)
        deadline = time.monotonic() + PROOF_S
        while (went_on := first_counter(standby_log)) == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        torn = "TORN" in standby_log.read_text(errors="replace") if standby_log.exists() else True
        # A line is printed every so many steps, so the first one in the stand-by tells where it began.
        line_steps = self.params.steps_per_tick * self.params.ticks_per_line
        proved = not torn and self.resumed_from <= went_on <= self.resumed_from + line_steps
        self.output.close()
        self._print_summary(report, shown, went_on, proved)
        return 0 if proved else 1

    def _print_summary(self, report: TakeoverReport, shown: int, went_on: int, proved: bool) -> None:
        statistics, pauses = self.output.statistics, self.output.pauses_ms
        summary = {
            "checkpoints": statistics.checkpoints,
            "pause_p50_ms": round(percentile(pauses, 50), 3),
            "pause_p99_ms": round(percentile(pauses, 99), 3),
            "takeover_ms": round(report.total_ms, 3),
            "takeover": report.as_dict(),
            "primary_last_counter": shown,
            "checkpoint_counter": self.resumed_from,
            "resumed_counter": went_on,
            "proved": proved,
        }
        proof = (
            "its memory and registers are of one instant: it checks every page it comes to" if proved
            else "FAILED: the guest did not go on, or found its memory torn"
        )
        if self.recording is not None:
            self.recording.verdict = f"{'Proved: the guest went on, and ' if proved else ''}{proof}."
        if self.arguments.json:
            print(json.dumps({"event": "summary", "data": summary}))
            return
        parts = ", ".join(
            f"{name} {getattr(report, f'{name}_ms'):.1f}" for name in ("arbitration", "settle", "compose", "load", "running")
        )
        print(f"""
checkpoints   {statistics.checkpoints}, {size(statistics.stream_bytes)} in all
pause         p50 {summary['pause_p50_ms']:.2f} ms, p99 {summary['pause_p99_ms']:.2f} ms (the VM stood still, by QEMU's clock)
takeover      {report.total_ms:.1f} ms from the loss noticed to the VM running:
              {parts}
resumed       checkpoint {report.checkpoint}, {report.checkpoint_age_ms:.0f} ms old, by pid {report.pid}
the guest     printed {shown} last before the kill; checkpoint {report.checkpoint} is its step {self.resumed_from};
              the first it printed in the stand-by is {went_on}
proof         {proof}""", file=sys.stdout)
