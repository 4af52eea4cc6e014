"""QEMU as COLO primary, with QEMU itself as its secondary: set up, freed from a dead or hung one, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from colo.errors import QemuError, QemuUnsupported
from colo.qemu.capabilities import capability_list
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import Qemu, QemuProcess
from colo.qemu.qmp import QmpConnection, QmpEvent, QmpTimeout
from tests.qemu.tiny_machine import Machine, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]


@dataclass
class Pair:
    primary: QemuPrimary
    process: QemuProcess
    secondary: QemuProcess
    uri: str
    serial: Path

    def protect(self, settings: ColoSettings | None = None) -> None:
        self.primary.set_up(self.uri, settings or ColoSettings(checkpoint_delay_ms=50), timeout_s=20)


@pytest.fixture
def pair(machine: Machine, run_dir: Path) -> Iterator[Pair]:
    serial = run_dir / "serial"
    with (
        QemuProcess.start(machine(accel="kvm", serial=serial), run_dir / "p") as process,
        QemuProcess.start(
            machine("-incoming", "defer", "-serial", "null", accel="kvm"), run_dir / "s"
        ) as other,
    ):
        names = (
            {"return-path": True, "x-colo": True} if process.quirks.needs_return_path else {"x-colo": True}
        )
        for name in names:
            other.qmp.execute("migrate-set-capabilities", {"capabilities": capability_list({name: True})})
        uri = f"unix:{run_dir}/incoming"
        other.qmp.execute("migrate-incoming", {"uri": uri})
        yield Pair(QemuPrimary(process), process, other, uri, serial)
        process.kill()
        other.kill()


def checkpoints(pair: Pair, count: int) -> list[float]:
    meter = pair.primary.measure_pauses()
    deadline = time.monotonic() + 20
    while meter.count < count:
        assert time.monotonic() < deadline, f"only {meter.count} checkpoints"
        time.sleep(0.02)
    return list(meter.pauses_ms)


@pytest.mark.parametrize("xbzrle", [False, True])
def test_a_primary_is_set_up_and_its_pauses_measured(pair: Pair, xbzrle: bool) -> None:
    pair.protect(
        ColoSettings(checkpoint_delay_ms=50, xbzrle=xbzrle, xbzrle_cache_bytes=16 << 20 if xbzrle else None)
    )
    pauses_ms = checkpoints(pair, 4)
    assert all(0 < pause_ms < 5000 for pause_ms in pauses_ms)
    assert pair.primary.migration_status() == "colo"
    with pytest.raises(QemuError, match="already has a migration"):
        pair.protect()


def test_a_killed_secondary_frees_the_primary(pair: Pair) -> None:
    pair.protect()
    checkpoints(pair, 2)
    pair.secondary.kill()
    assert pair.primary.colo_exited.wait(5.0)
    assert pair.primary.exit_reason == "error"
    assert pair.primary.free_from_lost_secondary(5.0) < 5000
    assert pair.process.status() == "running"
    lines = len(wait_for_lines(pair.serial, 0))
    wait_for_lines(pair.serial, lines + 2)


def test_a_secondary_frozen_while_the_vm_stands_still_is_left(pair: Pair) -> None:
    pair.protect()
    checkpoints(pair, 2)
    with pair.process.qmp.subscribe("STOP") as stops:
        stops.get(5.0)
        pair.secondary.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    assert pair.primary.free_from_lost_secondary(5.0) < 5000
    lines = len(wait_for_lines(pair.serial, 0))
    wait_for_lines(pair.serial, lines + 2)
    pair.secondary.send_signal(signal.SIGCONT)


def test_a_loser_stops_for_good_also_in_mid_checkpoint(pair: Pair) -> None:
    pair.protect()
    checkpoints(pair, 2)
    with pair.process.qmp.subscribe("STOP") as stops:
        stops.get(5.0)
        pair.secondary.send_signal(signal.SIGSTOP)
    resumed: list[QmpEvent] = []
    assert pair.primary.stop_loser(5.0) == "stopped"
    pair.process.qmp.on_event(resumed.append, "RESUME")
    pair.secondary.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    assert pair.process.status() != "running"
    assert resumed == []


def test_a_loser_that_does_not_answer_is_killed(pair: Pair) -> None:
    pair.process.send_signal(signal.SIGSTOP)
    assert pair.primary.stop_loser(0.3) == "killed"
    assert not pair.process.alive()
    assert pair.primary.stop_loser(0.3) == "killed"


def test_the_loser_is_gone_and_its_disk_is_free(machine: Machine, run_dir: Path) -> None:
    disk = run_dir / "disk"
    disk.write_bytes(bytes(1 << 20))
    drive = ["-drive", f"if=ide,format=raw,file={disk}"]
    path = run_dir / "theirs"
    for attached in (False, True):
        argv = machine(*drive, "-qmp", f"unix:{path},server=on,wait=off")
        with QemuProcess.start(argv, run_dir / "t") as process:
            with pytest.raises(QemuError, match="lock"):
                QemuProcess.start(machine(*drive), run_dir / "u")
            with QemuPrimary.attach(path) if attached else QemuPrimary(process) as primary:
                assert primary.end_loser() == "killed"
                assert not process.alive()
                assert primary.end_loser() == "ended"
            QemuProcess.start(machine(*drive), run_dir / "u").kill()


def test_a_loser_whose_process_is_not_known_is_asked(machine: Machine, run_dir: Path) -> None:
    path = run_dir / "theirs"
    with QemuProcess.start(machine("-qmp", f"unix:{path},server=on,wait=off"), run_dir / "t") as process:
        primary = QemuPrimary(Qemu(QmpConnection.connect(path), None))
        assert primary.end_loser() == "ended"
        assert process.wait(5.0) == 0


@contextlib.contextmanager
def main_loop_hangs(process: QemuProcess, pipe: Path) -> Iterator[None]:
    """As in dead storage: it writes into a pipe that nobody reads."""
    os.mkfifo(pipe)
    with pytest.raises(QmpTimeout):
        process.qmp.execute("pmemsave", {"val": 0, "size": 4096, "filename": str(pipe)}, timeout_s=0.3)
    yield
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))


def test_a_main_loop_that_hangs_is_told_from_a_secondary_that_does(pair: Pair, run_dir: Path) -> None:
    primary = pair.primary
    pair.protect()
    checkpoints(pair, 2)
    assert primary.main_loop_responds(5.0)
    assert primary.why_not_alone() is None
    with main_loop_hangs(pair.process, run_dir / "pipe"):
        assert primary.responds()
        assert not primary.main_loop_responds(0.2)
        reason = primary.why_not_alone(1.0)
        assert reason is not None
        assert "main loop has not answered" in reason
        # However often it is asked: QEMU's monitor takes 8 commands, then not even those out of band.
        for _ in range(12):
            assert not primary.main_loop_responds(0.05)
            assert primary.responds(5.0)
        assert primary.end_loser() == "killed"
    assert primary.why_not_alone() == "QEMU's process is gone"


def test_one_that_only_its_secondary_holds_could_run_alone(pair: Pair) -> None:
    pair.protect()
    checkpoints(pair, 2)
    pair.secondary.send_signal(signal.SIGSTOP)
    assert pair.primary.why_not_alone(10.0) is None
    assert pair.primary.free_from_lost_secondary(5.0) < 5000
    pair.process.send_signal(signal.SIGSTOP)
    try:
        assert "does not even answer out of band" in (pair.primary.why_not_alone(0.4) or "")
    finally:
        pair.process.send_signal(signal.SIGCONT)
        pair.secondary.send_signal(signal.SIGCONT)


def test_a_secondary_that_never_answers_leaves_the_vm_running(pair: Pair) -> None:
    pair.secondary.send_signal(signal.SIGSTOP)
    with pytest.raises(QemuError, match="runs on, unprotected"):
        pair.primary.set_up(pair.uri, timeout_s=0.5)
    assert pair.process.status() == "running"
    assert pair.primary.migration_status() in ("failed", "cancelled", "cancelling")
    pair.secondary.send_signal(signal.SIGCONT)
    lines = len(wait_for_lines(pair.serial, 0))
    wait_for_lines(pair.serial, lines + 2)


def test_no_secondary_at_all_is_said(pair: Pair, run_dir: Path) -> None:
    with pytest.raises(QemuError, match="nobody"):
        pair.primary.set_up(f"unix:{run_dir}/nobody", timeout_s=5)
    assert pair.process.status() == "running"
    pair.protect()


def test_tcg_is_refused_where_it_deadlocks(machine: Machine, run_dir: Path) -> None:
    with QemuProcess.start(machine(), run_dir / "t") as process:
        if not process.quirks.has("tcg_deadlock"):
            pytest.skip(f"QEMU {process.version} does COLO with TCG")
        with pytest.raises(QemuUnsupported, match="-accel kvm"):
            QemuPrimary(process).set_up("tcg:127.0.0.1:1")
        assert process.status() == "running"


def test_yank_without_a_migration_says_so(pair: Pair) -> None:
    assert pair.primary.yank() is False


def test_writable_disks_are_named(machine: Machine, run_dir: Path) -> None:
    (run_dir / "disk").write_bytes(bytes(1 << 20))
    drives = ["-drive", f"if=ide,id=written,format=raw,file={run_dir}/disk"]
    drives += ["-drive", "if=floppy,readonly=on,format=raw,file=null-co://"]
    with QemuProcess.start(machine(*drives), run_dir / "t") as process:
        assert QemuPrimary(process).unreplicated_disks() == ["written"]
