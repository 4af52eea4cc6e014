"""A program with a VM of its own is protected by ``QemuSecondary`` and a QEMU that stands by: killed, it is proven gone there too."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import init_arbiter
from colo.epoch.last_committed import LastCommitted
from colo.epoch.ram_sink import RamSink
from colo.errors import ColoError
from colo.figures.takeover_report import TakeoverReport
from colo.link.follower import Follower
from colo.memory import RamImage
from colo.protocol.deadlines import Deadlines
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import QemuProcess
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from colo.stream import StreamLimits
from colo.transport import SocketTransport
from tests.faults.rig import wait_until
from tests.fence.protected import save
from tests.fence.test_witness import LONG_MS, SOON_S, Program
from tests.qemu.tiny_machine import Machine, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]


def saved(machine: Machine, run_dir: Path) -> tuple[Path, str]:
    """Where a checkpoint of a QEMU is, and its machine type."""
    seen: list[Any] = []

    def commit(committed: Any) -> None:
        if committed.number == 1:
            ram.settle()
            save(committed, run_dir / "saved")
            seen.append(committed.configuration.machine)

    process = QemuProcess.start(machine(accel="kvm", serial=run_dir / "first.log"), run_dir / "first")
    with process, socket.create_server(("127.0.0.1", 0)) as listener, RamImage(run_dir / "image") as image:
        wait_for_lines(run_dir / "first.log", 1)
        primary = QemuPrimary(process)
        leading = threading.Thread(
            target=primary.set_up, args=(f"tcp:127.0.0.1:{listener.getsockname()[1]}", ColoSettings(checkpoint_delay_ms=20)))
        leading.start()
        sock, _ = listener.accept()
        ram = RamSink(image)
        follower = Follower(
            SocketTransport(sock), ram, LastCommitted(ram, [ram]), deadlines=Deadlines(), limits=StreamLimits(), on_commit=lambda committed, report: commit(committed))

        def follow() -> None:
            with contextlib.suppress(ColoError):
                follower.run()

        following = threading.Thread(target=follow)
        following.start()
        wait_until(lambda: bool(seen), 20.0, "the second checkpoint")
        leading.join(20)
        process.kill()
        following.join(20)
        follower.close()
        ram.close()
    return run_dir / "saved", seen[0]


def test_a_killed_program_is_taken_over_by_a_qemu_long_before_its_lease_ends(machine: Machine, run_dir: Path) -> None:
    directory, kind = saved(machine, run_dir)
    (run_dir / "arbiter").mkdir(mode=0o700)
    arbiter = f"file:{run_dir}/arbiter"
    init_arbiter(arbiter, vm="test")
    reports: list[TakeoverReport] = []
    notices: list[str] = []
    secondary = QemuSecondary(
        QemuSecondaryConfig(
            f"unix:{run_dir}/listen", run_dir / "ram", standby=machine(accel="kvm", serial=run_dir / "second.log"),
            arbiter=arbiter, lease_ms=LONG_MS),
        on_event=lambda kind, data: notices.append(str(data)) if kind == "notice" else None)

    def run() -> None:
        with contextlib.suppress(ColoError):
            reports.append(secondary.run())

    running = threading.Thread(target=run, daemon=True)
    running.start()
    program = Program(
        secondary.address, arbiter, lease_ms=LONG_MS, saved=str(directory), machine=kind, sections=True)
    try:
        program.protected()
        wait_until(lambda: secondary.status()["standby"] == "ready", 20.0, "the stand-by")
        program.kill()
        running.join(SOON_S)
        assert reports, (secondary.status(), notices)
        assert "process is gone" in str(secondary.promises.status()["proof"])
        wait_for_lines(run_dir / "second.log", 1)
    finally:
        program.close()
        secondary.stop()
        running.join(20)
        secondary.close()
        if reports:
            with QemuPrimary.attach(reports[0].qmp_path) as taken_over:
                taken_over.qemu.send_signal(signal.SIGKILL)
