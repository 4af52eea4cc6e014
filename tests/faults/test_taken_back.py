"""A program's VM that a secondary with a stand-by QEMU lost for a moment is followed again, and taken over like any other."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest

from colo.arbiter import init_arbiter
from colo.errors import ColoError
from colo.figures.takeover_report import TakeoverReport
from colo.qemu.primary import QemuPrimary
from colo.session.primary import Primary, PrimaryConfig
from colo.session.qemu_secondary import QemuSecondaryConfig
from tests.faults.rig import wait_until
from tests.faults.test_killed_program import saved
from tests.fence.protected import SavedVm
from tests.fence.test_witness import LONG_MS
from tests.qemu.tiny_machine import Machine, wait_for_lines
from tests.session.test_primary import Cut
from tests.session.test_qemu_secondary import Running

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]


def test_a_program_that_was_taken_back_is_taken_over_by_a_qemu(machine: Machine, run_dir: Path) -> None:
    """From the second full copy on the stand-by maps the other set of files."""
    directory, kind = saved(machine, run_dir)
    (run_dir / "arbiter").mkdir(mode=0o700)
    arbiter = f"file:{run_dir}/arbiter"
    init_arbiter(arbiter, vm="test")
    session = Running(QemuSecondaryConfig(
        "tcp:127.0.0.1:0", run_dir / "ram", standby=machine(accel="kvm", serial=run_dir / "second.log"), arbiter=arbiter,
        lease_ms=LONG_MS, wait_s=600.0, takeover_s=60.0))
    cut = Cut(session.secondary.address)
    try:
        with Primary(SavedVm(directory), PrimaryConfig(
            cut.address, arbiter, interval_ms=200, lease_ms=LONG_MS, resync_s=600.0, machine=kind, sections=True)) as primary:
            primary.start()
            wait_until(lambda: session.secondary.status()["standby"] == "ready", 120.0, "the stand-by")
            cut.cut()
            wait_until(lambda: primary.statistics.full_copies == 2, 120.0, "the second full copy")
            wait_until(lambda: (session.secondary.status()["checkpoint"] or 0) >= 2, 120.0, "a checkpoint")
            wait_until(lambda: session.secondary.status()["standby"] == "ready", 120.0, "the next stand-by")
            assert not session.said("taking-over")
            session.secondary.request_failover()
            report = session.join()
            assert isinstance(report, TakeoverReport), report
            with contextlib.suppress(ColoError):
                primary.wait(60)
            assert primary.state == "stopped"
        wait_for_lines(run_dir / "second.log", 1)
    finally:
        session.close()
        if isinstance(session.outcome, TakeoverReport):
            with QemuPrimary.attach(session.outcome.qmp_path) as taken_over:
                taken_over.qemu.send_signal(signal.SIGKILL)
