"""The secondary's process is killed or frozen: the protector frees the primary within its deadline."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path

import pytest

from colo.arbiter import init_arbiter
from colo.errors import QemuError
from colo.qemu.process import QemuProcess
from colo.session.qemu_guard import Ending, QemuGuard, QemuGuardConfig, QemuGuardReport
from tests.faults.processes import SecondaryProcess, gone
from tests.faults.rig import SETTINGS, wait_until
from tests.qemu.tiny_machine import Machine, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]
DEADLINE_MS = 1000.0


class Watched:
    """A primary with its protector, in threads of this process."""

    def __init__(self, machine: Machine, run_dir: Path, port: int, arbiter: str) -> None:
        monitor = run_dir / "protect.sock"
        self.serial = run_dir / "primary.log"
        self.process = QemuProcess.start(
            machine("-qmp", f"unix:{monitor},server=on,wait=off", accel="kvm", serial=self.serial), run_dir / "primary")
        wait_for_lines(self.serial, 1)
        self.outcome: QemuGuardReport | BaseException | None = None
        self.protecting = threading.Event()
        config = QemuGuardConfig(
            monitor, f"tcp:127.0.0.1:{port}", arbiter=arbiter, settings=SETTINGS, deadline_ms=DEADLINE_MS, lease_ms=1000.0)
        self.protector = QemuGuard(config, on_event=self._event)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _event(self, kind: str, data: object) -> None:
        if kind == "protecting":
            self.protecting.set()

    def _run(self) -> None:
        try:
            self.outcome = self.protector.run()
        except BaseException as error:
            self.outcome = error

    def finish(self, timeout_s: float = 15.0) -> QemuGuardReport:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the protector hangs"
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome

    def close(self) -> None:
        self.protector.stop()
        self.thread.join(15)
        self.protector.close()
        self.process.kill()


def secondary_of(machine: Machine, run_dir: Path, *options: str) -> tuple[SecondaryProcess, str]:
    arbiter = run_dir / "arbiter"
    arbiter.mkdir(mode=0o700)
    standby = machine(accel="kvm", serial=run_dir / "standby.log")
    uri = f"file:{arbiter}"
    init_arbiter(uri, vm="test")
    return SecondaryProcess(run_dir / "ram", standby=standby, arbiter=uri, options=options), uri


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_secondary_lets_the_primary_go_on_alone(machine: Machine, run_dir: Path, how: signal.Signals) -> None:
    secondary, uri = secondary_of(machine, run_dir)
    with secondary:
        watched = Watched(machine, run_dir, secondary.port, uri)
        try:
            secondary.wait_event("checkpoint", number=3)
            wait_until(lambda: any("incoming" in " ".join(p.cmdline()) for p in secondary.children()), what="the stand-by")
            children = secondary.children()
            began = time.monotonic()
            secondary.signal(how)
            report = watched.finish()
            assert report.ending is Ending.ALONE
            assert (time.monotonic() - began) * 1000 < DEADLINE_MS + 1500
            shown = len(wait_for_lines(watched.serial, 0))
            wait_for_lines(watched.serial, shown + 2)
            assert watched.process.status() == "running"
            if how is signal.SIGKILL:
                assert gone(children), "the stand-by outlives the session that was killed"
            else:
                # Thawed, it finds its generation gone: it does not run the VM, and says what it keeps of it.
                secondary.signal(signal.SIGCONT)
                assert secondary.wait() == 4, secondary.errors
                assert (run_dir / "ram" / "COPY.txt").exists()
                assert gone(children)
        finally:
            watched.close()


def test_a_primary_thawed_after_the_takeover_is_stopped(machine: Machine, run_dir: Path) -> None:
    secondary, uri = secondary_of(machine, run_dir, "--deadline-ms", "2000")
    with secondary:
        watched = Watched(machine, run_dir, secondary.port, uri)
        try:
            secondary.wait_event("checkpoint", number=2)
            watched.process.send_signal(signal.SIGSTOP)
            secondary.wait_event("running")
            with contextlib.suppress(QemuError):
                watched.process.send_signal(signal.SIGCONT)
            report = watched.finish()
            assert report.ending in (Ending.STOPPED, Ending.HANDED_OVER, Ending.PRIMARY_GONE), report
            assert not watched.process.alive()
            wait_for_lines(run_dir / "standby.log", 2)
            shown = len(wait_for_lines(watched.serial, 0))
            time.sleep(0.3)
            assert len(wait_for_lines(watched.serial, 0)) == shown, "the primary's VM still runs"
        finally:
            watched.close()


def test_a_primary_that_stays_frozen_is_killed(machine: Machine, run_dir: Path) -> None:
    secondary, uri = secondary_of(machine, run_dir, "--deadline-ms", "2000")
    with secondary:
        watched = Watched(machine, run_dir, secondary.port, uri)
        try:
            secondary.wait_event("checkpoint", number=2)
            watched.process.send_signal(signal.SIGSTOP)
            report = watched.finish()
            assert report.ending in (Ending.STOPPED, Ending.HANDED_OVER, Ending.PRIMARY_GONE), report
            assert not watched.process.alive(), report
        finally:
            watched.close()
