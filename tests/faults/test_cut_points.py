"""The channel is cut, or the primary killed or frozen, at every point of the protocol: what is resumed is exact."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from colo.figures.takeover_report import TakeoverReport
from tests.faults.proxy import Point, Proxy
from tests.faults.rig import Rig, rig, same_ram, wait_until
from tests.qemu.tiny_machine import Machine

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]

ACTIONS = ("kill", "freeze", "close", "reset", "stall")
EXACT = (Point.RECEIVED_UNREAD, Point.LOADED_UNREAD)
SAMPLE = (
    (Point.CONNECT, "close"),
    (Point.HEADER, "kill"),
    (Point.INITIAL_RAM, "reset"),
    (Point.READY_UNREAD, "close"),
    (Point.HALF_REQUEST, "freeze"),
    (Point.REQUEST, "reset"),
    (Point.RAM, "kill"),
    (Point.RAM_EOF, "close"),
    (Point.DEVICE, "stall"),
    (Point.LAST_BYTE, "kill"),
    (Point.RECEIVED_UNREAD, "reset"),
    (Point.LOADED_UNREAD, "kill"),
    (Point.LOADED, "freeze"),
)
SEED = 20_26


def act_on(case: Rig, action: str, saved: list[bytes], point: Point) -> None:
    if point in EXACT and action != "freeze":
        saved.append(case.primary_memory())
    if action == "kill":
        case.kill_primary()
    elif action == "freeze":
        case.freeze()


def run_case(machine: Machine, run_dir: Path, point: Point, action: str, seed: int) -> None:
    rng = random.Random(seed)
    checkpoint = rng.randint(1, 6)
    saved: list[bytes] = []

    def act(proxy: Proxy) -> None:
        act_on(case, action, saved, point)
        if action in ("kill", "close"):
            proxy.close_both()
        elif action == "reset":
            proxy.reset_both()

    with rig(machine, run_dir) as case:
        case.start()
        with Proxy(case.address, point=point, checkpoint=checkpoint, act=act, rng=rng) as proxy:
            case.protect(proxy.port)
            assert proxy.acted.wait(20) or proxy.error is None, proxy.error
            if proxy.error is not None:
                raise proxy.error
            assert proxy.acted.is_set(), f"{point} of checkpoint {checkpoint} was never reached"
            if point is Point.CONNECT:
                # Nobody has said anything yet: the door stays open.
                wait_until(lambda: any(kind == "notice" for kind, _ in case.events) or action == "stall")
                assert case.outcome is None
                return
            expected = point.committed(proxy.checkpoint)
            if expected is None:
                wait_until(lambda: bool(case.notices("nothing to resume from")), what="the loss")
                assert case.outcome is None and case.secondary.status()["state"] == "listening"
                return
            outcome = case.finish()
            case.check_resumed(outcome, expected)
            assert isinstance(outcome, TakeoverReport)
            if saved:
                assert case.image is not None
                assert same_ram(case.image, saved[0]), "the image is not what the paused primary has"


@pytest.mark.parametrize(("point", "action"), SAMPLE, ids=[f"{p.value[0]}-{a}" for p, a in SAMPLE])
def test_a_fault_at_this_point_resumes_from_the_highest_commit(
    machine: Machine, run_dir: Path, point: Point, action: str
) -> None:
    run_case(machine, run_dir, point, action, SEED)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("point", list(Point), ids=lambda p: str(p.value[0]))
def test_many_faults_at_this_point(machine: Machine, run_dir: Path, point: Point) -> None:
    for number in range(20):
        directory = run_dir / str(number)
        directory.mkdir(mode=0o700)
        action = ACTIONS[number % len(ACTIONS)]
        try:
            run_case(machine, directory, point, action, SEED + number)
        except BaseException as error:
            error.add_note(f"case {number}: {point} {action}")
            raise
