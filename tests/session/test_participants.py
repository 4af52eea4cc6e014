"""Whoever registers has a part in the checkpoints: it hears of each in order, with its number, to the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import arbiter_from_uri, init_arbiter
from colo.epoch.outbox import Outbox
from colo.epoch.participants import EpochSource, Participants
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import ArbitrationLost, VmError
from colo.session.primary import Primary, PrimaryConfig, PrimaryEnding
from colo.session.vm_secondary import VmTakeover
from tests.session.primary_vm import PageVm, expected
from tests.session.standby import Cut, Standby


class Part:
    """A participant of a test's own; ``broken``: at which call it raises."""

    def __init__(self, vm: Any = None, broken: tuple[str, object] | None = None) -> None:
        self.heard: list[tuple[str, object]] = []
        self.vm = vm
        self.broken = broken
        self.ran_while_sealed = False

    def seal(self, number: int) -> None:
        self.ran_while_sealed |= self.vm is not None and self.vm.running
        self._note("seal", number)

    def release(self, number: int) -> None:
        self._note("release", number)

    def take_back(self, number: int) -> None:
        self._note("take_back", number)

    def end(self, won: bool) -> None:
        self._note("end", won)

    def _note(self, *call: object) -> None:
        self.heard.append(call)  # type: ignore[arg-type]
        if call == self.broken:
            raise OSError("disk full")


@pytest.fixture
def arbiter(tmp_path: Path) -> Path:
    path = tmp_path / "arbiter"
    path.mkdir(mode=0o700)
    init_arbiter(f"file:{path}", vm="test")
    return path


@pytest.fixture
def vm() -> Iterator[Any]:
    made = PageVm()
    made.resume()
    yield made
    made.close()


@pytest.fixture
def standby(arbiter: Path) -> Iterator[Standby]:
    made = Standby(PageVm(), arbiter, wait_s=15.0)
    yield made
    made.close()


def config(address: str, arbiter: Path, **options: Any) -> PrimaryConfig:
    return PrimaryConfig(address, f"file:{arbiter}", **{"interval_ms": 10_000.0, **options})


def made(*numbers: int) -> list[tuple[str, object]]:
    """What is heard of checkpoints that come to be."""
    return [(call, number) for number in numbers for call in ("seal", "release")]


def test_those_there_are_keep_the_promise() -> None:
    assert isinstance(Outbox(lambda item: None), EpochSource)
    assert isinstance(PrimaryPages(PageVm().memory, tracker="shadow"), EpochSource)


@pytest.mark.parametrize("sending", ["copy", "direct"])
def test_checkpoints_are_sealed_while_the_vm_stands_still_and_released_when_committed(
    vm: Any, standby: Standby, arbiter: Path, sending: str
) -> None:
    first, second = Part(vm), Part(vm)
    with Primary(vm, config(standby.secondary.address, arbiter, sending=sending), participants=[first, second]) as primary:
        primary.start()
        for number in (1, 2, 3):
            assert primary.checkpoint(10).number == number
        assert first.heard == made(0, 1, 2, 3)
        assert primary.stop().ending is PrimaryEnding.ALONE
    assert first.heard == second.heard == [*made(0, 1, 2, 3), ("take_back", 4), ("end", True)]
    assert not first.ran_while_sealed


def test_a_loss_after_which_the_same_secondary_is_found_again_takes_one_epoch_back(
    vm: Any, standby: Standby, arbiter: Path
) -> None:
    part, cut = Part(vm), Cut(standby.secondary.address)
    with Primary(vm, config(cut.address, arbiter, resync_s=10.0), participants=[part]) as primary:
        primary.start()
        primary.checkpoint(10)
        primary.checkpoint(10)
        cut.cut()
        while primary.statistics.full_copies < 2:
            time.sleep(0.01)
        assert part.heard == [*made(0, 1, 2), ("take_back", 3), *made(3)]
        assert primary.checkpoint(10).number == 4
        assert part.heard[-2:] == made(4)


def test_a_loss_in_the_middle_of_a_checkpoint_takes_back_what_was_sealed(vm: Any, standby: Standby, arbiter: Path) -> None:
    cut = Cut(standby.secondary.address)
    part = Part(vm)
    seal = part.seal

    def seal_and_cut(number: int) -> None:
        seal(number)
        if number == 2 and part.heard.count(("seal", 2)) == 1:
            cut.cut()

    part.seal = seal_and_cut  # type: ignore[method-assign]
    with Primary(vm, config(cut.address, arbiter, resync_s=10.0), participants=[part]) as primary:
        primary.start()
        primary.checkpoint(10)
        with pytest.raises(Exception, match=r".*"):
            primary.checkpoint(10)
        while primary.statistics.full_copies < 2:
            time.sleep(0.01)
        assert part.heard == [*made(0, 1), ("seal", 2), ("take_back", 2), *made(2)]


def test_a_loss_that_this_side_wins_ends_with_everything_let_go(vm: Any, standby: Standby, arbiter: Path) -> None:
    part, seen = Part(), []
    outbox = Outbox(seen.append)
    vm.on_turn = outbox.put
    with Primary(
        vm, config(standby.secondary.address, arbiter), outbox=outbox, participants=[part]) as primary:
        primary.start()
        primary.checkpoint(10)
        vm.advance()
        standby.secondary.stop()
        standby.join()
        assert primary.wait(10).ending is PrimaryEnding.ALONE
    assert part.heard == [*made(0, 1), ("take_back", 2), ("end", True)]
    assert seen == [1] and vm.running


def test_a_loss_that_the_other_side_wins_ends_with_nothing_let_go(vm: Any, standby: Standby, arbiter: Path) -> None:
    part, seen = Part(), []
    outbox = Outbox(seen.append)
    vm.on_turn = outbox.put
    with Primary(
        vm, config(standby.secondary.address, arbiter), outbox=outbox, participants=[part]) as primary:
        primary.start()
        primary.checkpoint(10)
        vm.advance()
        standby.secondary.request_failover("test")
        assert isinstance(standby.join(), VmTakeover)
        assert primary.wait(10).ending is PrimaryEnding.STOPPED
    assert part.heard == [*made(0, 1), ("take_back", 2), ("end", False)]
    assert seen == [] and outbox.dropped == 1 and not vm.running


def test_alone_it_counts_from_the_beginning_with_a_new_secondary(vm: Any, standby: Standby, arbiter: Path) -> None:
    part, port = Part(vm), standby.secondary.address
    primary = Primary(vm, config(port, arbiter, reconnect=True), participants=[part])
    primary.start()
    primary.checkpoint(10)
    standby.secondary.stop()
    standby.join()
    standby.close()
    again = Standby(PageVm(), arbiter, listen=port)
    while primary.statistics.full_copies < 2:
        time.sleep(0.01)
    assert part.heard == [*made(0, 1), ("take_back", 2), ("end", True), *made(0)]
    primary.close()
    again.close()


@pytest.mark.parametrize("number", [0, 2])
def test_a_part_that_cannot_be_sealed_is_missing_so_its_checkpoint_does_not_come_to_be(
    vm: Any, standby: Standby, arbiter: Path, number: int
) -> None:
    part, other = Part(vm, broken=("seal", number)), Part(vm)
    with Primary(vm, config(standby.secondary.address, arbiter), participants=[other, part]) as primary:
        primary.start()
        with pytest.raises(VmError, match=f"part could not be sealed for checkpoint {number}: OSError: disk full"):
            for _ in range(3):
                primary.checkpoint(10)
        with pytest.raises(VmError, match="disk full"):
            primary.wait(10)
        assert vm.running
    ended = [("seal", number), ("take_back", number), ("end", True)]
    assert part.heard == other.heard == [*made(*range(number)), *ended]
    if number:
        assert isinstance(standby.join(), ArbitrationLost)


@pytest.mark.parametrize("broken", [("release", 1), ("take_back", 4), ("end", True)])
def test_what_a_part_raises_elsewhere_is_told_and_ends_nothing(
    vm: Any, standby: Standby, arbiter: Path, broken: tuple[str, object]
) -> None:
    notices: list[str] = []
    part, other = Part(broken=broken), Part()
    with Primary(
        vm, config(standby.secondary.address, arbiter), participants=[part, other],
        on_event=lambda kind, data: notices.append(data) if kind == "notice" else None,
    ) as primary:
        primary.start()
        for _ in range(3):
            primary.checkpoint(10)
        assert primary.stop().ending is PrimaryEnding.ALONE
    assert part.heard == other.heard == [*made(0, 1, 2, 3), ("take_back", 4), ("end", True)]
    assert [text for text in notices if "disk full" in text] == [
        f"part failed at {broken[0]}({broken[1]}): OSError: disk full"]
    assert vm.running


def test_a_vm_that_hangs_is_decided_about_from_another_thread_and_the_parts_hear_it(
    vm: Any, standby: Standby, arbiter: Path
) -> None:
    part, go_on = Part(), threading.Event()
    with Primary(vm, config(standby.secondary.address, arbiter, vm_s=0.3), participants=[part]) as primary:
        primary.start()
        primary.checkpoint(10)
        vm.on_save = lambda: go_on.wait(30) and None
        with pytest.raises(VmError, match="did not return within"):
            primary.checkpoint(10)
        with pytest.raises(VmError, match="did not return within"):
            primary.wait(10)
        assert part.heard == [*made(0, 1), ("end", True)]
        assert arbiter_from_uri(f"file:{arbiter}", role="primary", vm="").current() == 2
        go_on.set()


def test_what_saving_the_state_writes_and_says_is_of_its_checkpoint(vm: Any, standby: Standby, arbiter: Path) -> None:
    seen: list[str] = []
    outbox = Outbox(seen.append)
    with Primary(vm, config(standby.secondary.address, arbiter), outbox=outbox) as primary:
        primary.start()
        primary.checkpoint(10)
        vm.on_save = lambda: (vm.advance(), outbox.put("flushed"))
        primary.checkpoint(10)
        assert seen == ["flushed"]
        standby.secondary.request_failover("test")
        standby.join()
        assert standby.vm.image() == expected(standby.vm.turn, vm.pages) and standby.vm.turn == 1


def test_what_is_no_participant_is_refused_before_anything_begins(vm: Any, arbiter: Path) -> None:
    with pytest.raises(TypeError, match="a participant has seal, release, take_back and end; list has not"):
        Primary(vm, config("tcp:127.0.0.1:1", arbiter), participants=[[]])  # type: ignore[list-item]


def test_they_hear_one_after_the_other_in_the_order_of_the_list() -> None:
    order: list[tuple[int, str, object]] = []
    parts = [Part(), Part(), Part()]
    for n, part in enumerate(parts):
        part._note = lambda *call, n=n: order.append((n, *call))  # type: ignore[method-assign]
    participants = Participants(parts)
    participants.seal(5)
    participants.release(5)
    participants.take_back(6)
    participants.end(False)
    assert order == [
        (n, *call) for call in [("seal", 5), ("release", 5), ("take_back", 6), ("end", False)] for n in range(3)]
