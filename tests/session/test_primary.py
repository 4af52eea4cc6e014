"""A primary session and its secondary, both real, over real sockets in this process."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import init_arbiter
from colo.epoch.outbox import Outbox
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import ArbitrationError, ArbitrationLost, ColoError, TrackerError, VmError
from colo.memory.trackers import open_tracker, probe
from colo.session.primary import Primary, PrimaryConfig, PrimaryEnding
from colo.session.vm_secondary import VmTakeover
from tests.session.primary_vm import PageVm, expected
from tests.session.standby import Cut, Standby

TRACKERS = [result.name for result in probe() if result.available and result.name != "explicit"]


@pytest.fixture
def arbiter(tmp_path: Path) -> Path:
    path = tmp_path / "arbiter"
    path.mkdir(mode=0o700)
    init_arbiter(f"file:{path}", vm="test")
    return path


@pytest.fixture
def pair(arbiter: Path) -> Iterator[tuple[Any, Standby]]:
    vm = PageVm()
    standby = Standby(PageVm(), arbiter)
    yield vm, standby
    standby.close()
    vm.close()


def config(standby: Standby, arbiter: Path, **options: Any) -> PrimaryConfig:
    return PrimaryConfig(standby.secondary.address, f"file:{arbiter}", **{"interval_ms": 10_000.0, **options})


@pytest.mark.parametrize("sending", ["copy", "direct"])
@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("xbzrle", [None, "shadow", 4 << 20])
def test_takeover_resumes_the_last_checkpoint(pair: Any, arbiter: Path, sending: str, tracker: str, xbzrle: Any) -> None:
    vm, standby = pair
    for _ in range(5):
        vm.advance()
    primary = Primary(vm, config(standby, arbiter, sending=sending, tracker=tracker, xbzrle=xbzrle))
    primary.start()
    for n in range(1, 12):
        with vm.paused():
            vm.advance()
        report = primary.checkpoint(10)
        assert report.number == n
    assert standby.secondary.committed.number == 11
    standby.secondary.request_failover("test")
    outcome = standby.join()
    assert isinstance(outcome, VmTakeover), outcome
    assert standby.vm.turn == 16
    assert standby.vm.image() == expected(16, vm.pages)
    assert primary.wait(10).ending is PrimaryEnding.STOPPED
    assert not vm.running
    primary.close()


def test_a_running_vm_is_checkpointed_consistently(arbiter: Path) -> None:
    vm = PageVm(64, free_running=True)
    standby = Standby(PageVm(64), arbiter)
    vm.resume()
    with Primary(vm, config(standby, arbiter, interval_ms=1)) as primary:
        primary.start()
        while primary.statistics.checkpoints < 100:
            time.sleep(0.01)
        standby.secondary.request_failover()
        assert isinstance(standby.join(), VmTakeover)
        assert standby.vm.image() == expected(standby.vm.turn, vm.pages)
    standby.close()
    vm.close()


def test_output_leaves_only_with_its_checkpoint_and_is_dropped_at_takeover(pair: Any, arbiter: Path) -> None:
    vm, standby = pair
    seen: list[int] = []
    outbox = Outbox(seen.append)
    vm.on_turn = outbox.put
    primary = Primary(vm, config(standby, arbiter), outbox=outbox)
    primary.start()
    primary.checkpoint(10)
    vm.advance()
    vm.advance()
    assert seen == []
    primary.checkpoint(10)
    assert seen == [1, 2]
    vm.advance()
    standby.secondary.request_failover()
    standby.join()
    assert primary.wait(10).ending is PrimaryEnding.STOPPED
    assert standby.vm.turn == 2
    assert seen == [1, 2] and outbox.dropped == 1
    primary.close()


def test_output_is_delivered_when_this_side_runs_alone(pair: Any, arbiter: Path) -> None:
    vm, standby = pair
    seen: list[int] = []
    outbox = Outbox(seen.append)
    vm.on_turn = outbox.put
    with Primary(vm, config(standby, arbiter), outbox=outbox) as primary:
        vm.advance()
        primary.start()
        primary.checkpoint(10)
        vm.advance()
        assert seen == [1]
        assert primary.stop().ending is PrimaryEnding.ALONE
        assert seen == [1, 2]
    assert vm.running
    assert isinstance(standby.join(), ArbitrationLost)


@pytest.mark.parametrize("sending", ["copy", "direct"])
def test_save_state_that_raises_ends_protection_and_the_vm_runs(pair: Any, arbiter: Path, sending: str) -> None:
    vm, standby = pair
    with Primary(vm, config(standby, arbiter, sending=sending)) as primary:
        primary.start()
        primary.checkpoint(10)

        def broken() -> None:
            raise OSError("disk on fire")

        vm.on_save = broken
        with pytest.raises(VmError, match=r"save_state.*disk on fire"):
            primary.checkpoint(10)
        with pytest.raises(VmError, match="disk on fire"):
            primary.wait(10)
        assert vm.running
    assert isinstance(standby.join(), ArbitrationLost)


@pytest.mark.parametrize("garbage", [None, "text", 7, b"x" * (65 << 20)])
def test_save_state_that_returns_garbage(pair: Any, arbiter: Path, garbage: Any) -> None:
    vm, standby = pair
    with Primary(vm, config(standby, arbiter)) as primary:
        primary.start()
        primary.checkpoint(10)
        vm.save_state = lambda: garbage
        with pytest.raises(VmError, match="save_state returned"):
            primary.checkpoint(10)
        with pytest.raises(VmError):
            primary.wait(10)
        assert vm.running


def test_save_state_that_hangs_is_given_up_and_the_vm_resumed(pair: Any, arbiter: Path) -> None:
    vm, standby = pair
    go_on = threading.Event()
    with Primary(vm, config(standby, arbiter, vm_s=0.3)) as primary:
        primary.start()
        primary.checkpoint(10)
        vm.on_save = lambda: go_on.wait(30) and None
        with pytest.raises(VmError, match="did not return within"):
            primary.checkpoint(10)
        with pytest.raises(VmError, match="did not return within"):
            primary.wait(10)
        deadline = time.monotonic() + 5
        while not vm.running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert vm.running
        assert isinstance(standby.join(), ArbitrationLost)
        go_on.set()


def test_a_tracker_that_lost_sight_ends_protection_and_the_vm_runs(pair: Any, arbiter: Path) -> None:
    vm, standby = pair
    tracker = open_tracker("shadow", vm.memory)
    with Primary(vm, config(standby, arbiter, tracker=tracker)) as primary:
        primary.start()
        primary.checkpoint(10)
        tracker.stop()
        with pytest.raises(TrackerError):
            primary.checkpoint(10)
        with pytest.raises(TrackerError):
            primary.wait(10)
        assert vm.running


def test_one_vm_has_one_session(pair: Any, arbiter: Path) -> None:
    vm, standby = pair
    with Primary(vm, config(standby, arbiter)) as first, Primary(vm, config(standby, arbiter)) as second:
        first.start()
        first.checkpoint(10)
        with pytest.raises(RuntimeError, match="another session"):
            second.start()


def test_a_forked_child_that_closes_its_copies_ends_nothing(pair: Any, arbiter: Path) -> None:
    vm, standby = pair
    with Primary(vm, config(standby, arbiter)) as primary:
        primary.start()
        assert primary.checkpoint(10).number == 1
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                primary.stop("in the child", timeout_s=0.2)
            primary.close()
            standby.secondary.stop()
            standby.secondary.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert [primary.checkpoint(10).number for _ in range(3)] == [2, 3, 4]
        assert (primary.state, standby.secondary.state) == ("protecting", "protecting")


def test_an_arbiter_is_needed(pair: Any) -> None:
    vm, standby = pair
    with pytest.raises(ArbitrationError):
        Primary(vm, PrimaryConfig(standby.secondary.address, ""))


def test_device_sections_travel_as_they_are(pair: Any, arbiter: Path) -> None:
    from colo.stream.writer import device_section, end_of_stream

    vm, standby = pair
    blob = device_section(0, "timer", b"abc", version_id=2) + device_section(1, "uart", b"", version_id=1) + end_of_stream()
    got: list[bytes] = []
    vm.save_state = lambda: blob
    standby.vm.load_state = lambda state: got.append(bytes(state))
    with Primary(vm, config(standby, arbiter)) as primary:
        primary.start()
        primary.checkpoint(10)
        assert standby.secondary.committed.device_state == blob
        vm.save_state = lambda: blob[:-2]
        standby.secondary.request_failover()
        standby.join()
        assert got == [blob]


def test_the_same_secondary_is_found_again_with_nothing_forgotten(arbiter: Path) -> None:
    vm, seen = PageVm(), []
    outbox = Outbox(seen.append)
    vm.on_turn = outbox.put
    standby = Standby(PageVm(), arbiter, wait_s=15.0)
    cut = Cut(standby.secondary.address)
    settings = PrimaryConfig(cut.address, f"file:{arbiter}", interval_ms=10_000, resync_s=10.0)
    with Primary(vm, settings, outbox=outbox) as primary:
        primary.start()
        for n in range(4):
            with vm.paused():
                vm.advance()
            if n == 2:
                cut.cut()
                while primary.statistics.full_copies < 2:
                    time.sleep(0.01)
            primary.checkpoint(10)
        assert primary.statistics.losses == 1 and primary.generation == 1
        assert seen == [1, 2, 3, 4]
        standby.secondary.request_failover()
        assert isinstance(standby.join(), VmTakeover)
        assert standby.vm.image() == expected(4, vm.pages)
    standby.close()
    vm.close()


def test_alone_it_goes_on_and_a_new_secondary_gets_everything(arbiter: Path) -> None:
    vm = PageVm()
    standby = Standby(PageVm(), arbiter)
    port = standby.secondary.address
    primary = Primary(vm, PrimaryConfig(port, f"file:{arbiter}", interval_ms=10_000, reconnect=True))
    primary.start()
    primary.checkpoint(10)
    standby.secondary.stop()
    standby.join()
    standby.close()
    while primary.generation < 2:
        time.sleep(0.01)
    assert vm.running
    vm.advance()
    again = Standby(PageVm(), arbiter, listen=port)
    assert primary.checkpoint(20).connection >= 1
    again.secondary.request_failover()
    assert isinstance(again.join(), VmTakeover)
    assert again.vm.image() == expected(1, vm.pages)
    assert primary.wait(10).ending is PrimaryEnding.STOPPED
    primary.close()
    again.close()
    vm.close()


def test_while_it_is_undecided_who_may_run_output_stays_held(arbiter: Path, tmp_path: Path) -> None:
    """The VM runs on as it did, but nothing of it leaves until a fencing command has said who won."""
    script, verdict, seen = tmp_path / "fence", tmp_path / "verdict", []
    script.write_text(f"#!/bin/sh\ncat {verdict} 2>/dev/null && exit 0\nexit 3\n")
    script.chmod(0o700)
    vm = PageVm()
    outbox = Outbox(seen.append)
    vm.on_turn = outbox.put
    standby = Standby(PageVm(), f"exec:{script}")
    notices: list[str] = []
    primary = Primary(
        vm, PrimaryConfig(standby.secondary.address, f"exec:{script}", interval_ms=10_000), outbox=outbox,
        on_event=lambda kind, data: notices.append(str(data)) if kind == "notice" else None)
    primary.start()
    primary.checkpoint(10)
    standby.secondary.stop()
    standby.join()
    while not any("undecided" in notice and "exited with 3" in notice for notice in notices):
        time.sleep(0.01)
    vm.advance()
    vm.advance()
    assert seen == [] and primary.generation == 0
    verdict.write_text("the other side is fenced")
    assert primary.wait(20).ending is PrimaryEnding.ALONE
    assert seen == [1, 2] and primary.generation == 1
    primary.close()
    standby.close()
    vm.close()


def test_the_interval_follows_the_pauses(pair: Any, arbiter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With copies far over the target it becomes the least there is; with short ones it grows to what was asked for."""
    vm, standby = pair
    slow = True
    copy = PrimaryPages.copy

    def copy_slowly(*arguments: Any) -> int:
        time.sleep(0.02 if slow else 0.0)
        return copy(*arguments)

    monkeypatch.setattr(PrimaryPages, "copy", copy_slowly)
    with Primary(vm, config(standby, arbiter, interval_ms=40.0, target_pause_ms=5.0, copy_ahead=False)) as primary:
        primary.start()
        while primary.status()["interval_ms"] > 5.0 or primary.statistics.checkpoints < 8:
            time.sleep(0.01)
        slow = False
        while primary.status()["interval_ms"] < 40.0:
            time.sleep(0.01)
        primary.stop()


def test_a_save_longer_than_the_target_does_not_make_the_vm_do_nothing_else(pair: Any, arbiter: Path) -> None:
    vm, standby = pair
    vm.on_save = lambda: time.sleep(0.02)
    with Primary(vm, config(standby, arbiter, interval_ms=40.0, target_pause_ms=5.0)) as primary:
        primary.start()
        while primary.statistics.checkpoints < 12:
            assert primary.status()["interval_ms"] >= 20.0
            time.sleep(0.01)
        primary.stop()


def test_a_secondary_of_other_memory_is_told_apart_on_both_sides(arbiter: Path) -> None:
    vm, standby = PageVm(8), Standby(PageVm(16), arbiter)
    with Primary(vm, config(standby, arbiter)) as primary:
        primary.start()
        with pytest.raises(ColoError, match=r"runs on alone, unprotected: .*what the secondary says itself tells why"):
            primary.checkpoint(10)
        assert "ChannelLost" in primary.wait(10).reason
    words = "RAM blocks are not those of the VM here: 'ram' has 32768 bytes there and 65536 here"
    assert any(words in text for text in standby.notices), standby.notices
    standby.close()
    vm.close()
