"""A VM that has taken over is protected in its turn, and taken over again: nothing of the takeover is in the way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from colo.arbiter import init_arbiter
from colo.errors import ColoError, QemuError
from colo.figures.takeover_report import TakeoverReport
from colo.qemu.capabilities import capabilities_of
from colo.qemu.guest import check_guest_memory
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import QemuProcess
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from tests.faults.rig import wait_until
from tests.interop.binaries import binary
from tests.qemu.tiny_machine import GUEST, RAM_MIB, Machine, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]
ROUNDS = 3


class Follower:
    """A secondary session on a thread of its own."""

    def __init__(self, run_dir: Path, number: int, standby: list[str], *, share_ram: bool = True) -> None:
        self.report: TakeoverReport | None = None
        self.error: ColoError | None = None
        self.notices: list[str] = []
        arbiter = run_dir / f"arbiter-{number}"
        arbiter.mkdir(mode=0o700)
        init_arbiter(f"file:{arbiter}", vm="test")
        self.secondary = QemuSecondary(
            QemuSecondaryConfig(
                f"unix:{run_dir}/s{number}", run_dir / f"ram{number}", standby=standby, arbiter=f"file:{arbiter}",
                share_ram=share_ram, lease_ms=0.0),
            on_event=lambda kind, data: self.notices.append(str(data)) if kind == "notice" else None)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.report = self.secondary.run()
        except ColoError as error:
            self.error = error

    def await_checkpoints(self) -> None:
        wait_until(lambda: (self.secondary.status()["checkpoint"] or 0) > 3, 20.0, "the fourth checkpoint")

    def taken_over(self) -> TakeoverReport:
        self.thread.join(30)
        assert self.report is not None, (self.error, self.notices)
        return self.report

    def close(self) -> None:
        self.secondary.stop()
        self.thread.join(20)
        self.secondary.close()


def killed(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


@pytest.mark.parametrize("share_ram", [True, False], ids=["shared RAM", "all pages"])
@pytest.mark.parametrize("version", ["7.2", "10.0", "11.1"])
def test_taken_over_again_and_again(machine: Machine, run_dir: Path, version: str, share_ram: bool) -> None:
    path = binary(version)
    first = QemuProcess.start([path, *machine(accel="kvm", serial=run_dir / "serial-0")[1:]], run_dir / "first")
    pid, primary = first.pid, QemuPrimary(first)
    assert pid is not None
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(first.kill)
        for number in range(1, ROUNDS + 1):
            wait_for_lines(run_dir / f"serial-{number - 1}", 1)
            serial = run_dir / f"serial-{number}"
            command = [path, *machine(accel="kvm", serial=serial)[1:]]
            follower = Follower(run_dir, number, command, share_ram=share_ram)
            cleanup.callback(follower.close)
            primary.set_up(follower.secondary.address, ColoSettings(checkpoint_delay_ms=20), timeout_s=30)
            assert primary.notices == ()
            follower.await_checkpoints()
            killed(pid)
            primary.detach()
            report = follower.taken_over()
            pid = report.pid
            cleanup.callback(killed, pid)
            assert wait_for_lines(serial, 2)
            primary = QemuPrimary.attach(report.qmp_path)
            cleanup.callback(primary.detach)
            assert not any(capabilities_of(primary.qemu).values())
        primary.qemu.qmp.execute("stop")
        image = run_dir / "image"
        primary.qemu.qmp.execute("pmemsave", {"val": 0, "size": RAM_MIB << 20, "filename": str(image)})
        assert check_guest_memory(image, GUEST).counter > 0


@pytest.mark.parametrize("version", ["7.2", "11.1"])
def test_what_was_left_on_by_others_is_no_obstacle_to_a_second_protection(
    machine: Machine, run_dir: Path, version: str,
) -> None:
    """Protected, left alone, protected again; and x-ignore-shared is on, as an older colo left it after a takeover."""
    argv = [binary(version), *machine(accel="kvm", serial=run_dir / "serial", ram=run_dir / "theirs")[1:]]
    with QemuProcess.start(argv, run_dir / "q") as qemu:
        wait_for_lines(run_dir / "serial", 1)
        primary = QemuPrimary(qemu)
        qemu.qmp.execute(
            "migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]})
        for number in (1, 2):
            follower = Follower(run_dir, number, machine(accel="kvm", serial=run_dir / "other"))
            primary.set_up(follower.secondary.address, ColoSettings(checkpoint_delay_ms=20), timeout_s=30)
            assert ["x-ignore-shared" in text for text in primary.notices] == [True]
            follower.await_checkpoints()
            follower.close()
            assert primary.free_from_lost_secondary() > 0
            assert [name for name, state in capabilities_of(qemu).items() if state] == ["x-ignore-shared"]
        lines = len(wait_for_lines(run_dir / "serial", 0))
        wait_for_lines(run_dir / "serial", lines + 2)


@pytest.mark.parametrize("name", ["multifd", "postcopy-ram", "dirty-bitmaps", "validate-uuid"])
@pytest.mark.parametrize("version", ["7.2", "10.0", "11.1"])
def test_what_the_command_line_switches_on_is_off_until_it_runs(
    machine: Machine, run_dir: Path, version: str, name: str,
) -> None:
    """``-global migration.…`` is on both sides' command lines: the primary, the stand-by and its twin do without it."""
    option = ("-global", f"migration.x-{name}=on")
    path = binary(version)
    try:
        first = QemuProcess.start([path, *machine(*option, accel="kvm", serial=run_dir / "serial")[1:]], run_dir / "q")
    except QemuError as error:
        assert "migration" in str(error)
        pytest.skip(f"QEMU {version}: {error}")
    with first as qemu, contextlib.ExitStack() as cleanup:
        wait_for_lines(run_dir / "serial", 1)
        primary = QemuPrimary(qemu)
        follower = Follower(run_dir, 1, [path, *machine(*option, accel="kvm", serial=run_dir / "other")[1:]])
        cleanup.callback(follower.close)
        primary.set_up(follower.secondary.address, ColoSettings(checkpoint_delay_ms=20), timeout_s=30)
        assert any(f"capability {name} was on" in text for text in primary.notices)
        follower.await_checkpoints()
        wait_until(lambda: follower.secondary.status()["standby"] == "ready", 20.0, "the trial")
        qemu.send_signal(signal.SIGKILL)
        report = follower.taken_over()
        cleanup.callback(killed, report.pid)
        wait_for_lines(run_dir / "other", 1)
        with QemuPrimary.attach(report.qmp_path) as taken_over:
            assert [name for name, state in capabilities_of(taken_over.qemu).items() if state] == [name]
