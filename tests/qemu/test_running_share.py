"""The share of the time that a real QEMU's VM runs, from its events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.qemu.primary import QemuPrimary
from colo.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu


@pytest.fixture
def primary(qemu_binary: str, run_dir: Path) -> Iterator[QemuPrimary]:
    argv = [qemu_binary, "-nodefaults", "-display", "none", "-machine", "none"]
    process = QemuProcess.start(argv, run_dir)
    yield QemuPrimary(process)
    process.kill()


def test_a_vm_that_hardly_runs_is_noticed_once(primary: QemuPrimary) -> None:
    notices: list[str] = []
    meter = primary.measure_pauses(on_notice=notices.append)
    assert meter.running_share is None
    deadline = time.monotonic() + 60
    while not notices:
        assert time.monotonic() < deadline, meter.running_share
        primary.qemu.qmp.execute("stop")
        time.sleep(0.05)
        primary.qemu.qmp.execute("cont")
    for _ in range(20):
        primary.qemu.qmp.execute("stop")
        time.sleep(0.02)
        primary.qemu.qmp.execute("cont")
    share = meter.running_share
    assert share is not None and share < 0.55
    assert len(notices) == 1 and "checkpoint delay" in notices[0]


def test_one_that_runs_and_one_that_stands_still_now(primary: QemuPrimary) -> None:
    notices: list[str] = []
    meter = primary.measure_pauses(on_notice=notices.append)
    deadline = time.monotonic() + 60
    while meter.running_share != 1.0:
        assert time.monotonic() < deadline, meter.running_share
        time.sleep(0.05)
    primary.qemu.qmp.execute("stop")
    while (meter.running_share or 0.0) > 0.01:
        assert time.monotonic() < deadline, meter.running_share
        time.sleep(0.05)
    assert notices == []
