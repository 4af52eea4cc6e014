"""The link is cut and both sides are told that the other is lost: exactly one of them runs the VM."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from colo.errors import ArbitrationLost, QemuError
from colo.figures.takeover_report import TakeoverReport
from colo.session.qemu_guard import Ending, QemuGuard, QemuGuardConfig, QemuGuardReport
from tests.faults.proxy import Point, Proxy
from tests.faults.rig import SETTINGS, rig
from tests.qemu.tiny_machine import Machine, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]
POINTS = (Point.RAM, Point.LOADED_UNREAD, Point.LOADED, Point.READY, Point.RECEIVED_UNREAD, Point.REPLY, Point.READY_UNREAD)


def cut_both_ways(machine: Machine, run_dir: Path, number: int) -> str:
    """One round; returns who runs."""
    rng = random.Random(number)
    point = POINTS[number % len(POINTS)]
    # One side hears of it a little later than the other, now this one, now that.
    delay_s = rng.choice((0.0, 0.0, 0.03))
    outcome: list[QemuGuardReport | BaseException] = []

    def act(proxy: Proxy) -> None:
        first, second = (proxy.cut_secondary, proxy.cut_primary)
        if rng.random() < 0.5:
            first, second = second, first
        first()
        time.sleep(delay_s)
        second()

    with rig(machine, run_dir, lease_ms=1000.0) as case:
        case.start()
        with Proxy(case.address, point=point, checkpoint=rng.randint(1, 4), act=act, rng=rng) as proxy:
            config = QemuGuardConfig(
                case.monitor, f"tcp:127.0.0.1:{proxy.port}", arbiter=f"file:{case.arbiter_dir}", settings=SETTINGS,
                deadline_ms=500, lease_ms=1000)

            def protect() -> None:
                try:
                    with QemuGuard(config) as protector:
                        outcome.append(protector.run())
                except BaseException as error:
                    outcome.append(error)

            thread = threading.Thread(target=protect)
            thread.start()
            assert proxy.acted.wait(20), (proxy.error, outcome)
            thread.join(20)
            taken = case.finish()
            [ended] = outcome
            primary_runs = isinstance(ended, QemuGuardReport) and ended.ending is Ending.ALONE
            # A set-up that failed, and won: the VM runs on where it was.
            primary_runs = primary_runs or (isinstance(ended, QemuError) and isinstance(taken, ArbitrationLost))
            assert primary_runs != isinstance(taken, TakeoverReport), (ended, taken)
            if primary_runs:
                assert isinstance(taken, ArbitrationLost), taken
                shown = len(wait_for_lines(case.primary_serial, 0))
                wait_for_lines(case.primary_serial, shown + 1)
                assert not case.serial.exists() or b"colo guest" not in case.serial.read_bytes()
                return "primary"
            assert isinstance(ended, QemuGuardReport) and ended.ending is Ending.STOPPED, ended
            assert isinstance(taken, TakeoverReport)
            expected = point.committed(proxy.checkpoint)
            assert expected is not None
            case.check_resumed(taken, expected)
            assert not case.process.alive()
            return "secondary"


@pytest.mark.parametrize("number", [0, 1])
def test_exactly_one_side_runs_when_both_are_told(machine: Machine, run_dir: Path, number: int) -> None:
    cut_both_ways(machine, run_dir, number)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_exactly_one_side_runs_every_time(machine: Machine, run_dir: Path) -> None:
    for number in range(20):
        directory = run_dir / str(number)
        directory.mkdir(mode=0o700)
        try:
            cut_both_ways(machine, directory, number)
        except BaseException as error:
            error.add_note(f"round {number}")
            raise
