"""What a VM says waits for the checkpoint that covers it, leaves in order, and leaves once."""

from __future__ import annotations

import threading

import pytest

from colo.epoch.outbox import Outbox
from colo.epoch.participants import EpochSource
from colo.errors import LimitExceeded


def box(limit_bytes: int = 1 << 20) -> tuple[Outbox, list[object]]:
    seen: list[object] = []
    return Outbox(seen.append, limit_bytes=limit_bytes), seen


def test_it_is_a_participant() -> None:
    assert isinstance(box()[0], EpochSource)


def test_what_came_before_the_seal_leaves_with_its_release_and_the_rest_does_not() -> None:
    outbox, seen = box()
    outbox.put(b"1")
    outbox.put(b"2")
    outbox.seal(0)
    outbox.put(b"3")
    assert seen == []
    outbox.release(0)
    assert seen == [b"1", b"2"] and outbox.held == 1 and outbox.released == 2
    outbox.release(0)
    assert seen == [b"1", b"2"]


def test_what_was_taken_back_waits_for_the_next_checkpoint() -> None:
    outbox, seen = box()
    outbox.put(b"1")
    outbox.seal(4)
    outbox.take_back(4)
    outbox.put(b"2")
    outbox.release(4)
    assert seen == []
    outbox.seal(4)
    outbox.release(4)
    assert seen == [b"1", b"2"]


def test_alone_everything_leaves_and_what_comes_after_at_once_until_the_next_seal() -> None:
    outbox, seen = box()
    outbox.put(b"1")
    outbox.seal(3)
    outbox.put(b"2")
    outbox.end(True)
    outbox.put(b"3")
    assert seen == [b"1", b"2", b"3"]
    outbox.seal(0)
    outbox.put(b"4")
    assert seen == [b"1", b"2", b"3"]


def test_when_the_other_side_runs_nothing_leaves_any_more() -> None:
    outbox, seen = box()
    outbox.put(b"1")
    outbox.seal(3)
    outbox.put(b"2")
    outbox.end(False)
    outbox.put(b"3")
    outbox.release(3)
    assert seen == [] and outbox.dropped == 3 and outbox.held == 0


def test_a_delivery_that_fails_keeps_the_item_and_those_behind_it() -> None:
    seen: list[bytes] = []
    fails = True

    def deliver(item: bytes) -> None:
        if fails and item == b"2":
            raise OSError("no route")
        seen.append(item)

    outbox = Outbox(deliver)
    for item in (b"1", b"2", b"3"):
        outbox.put(item)
    outbox.seal(1)
    with pytest.raises(OSError, match="no route"):
        outbox.release(1)
    assert seen == [b"1"] and outbox.held == 2
    fails = False
    outbox.put(b"4")
    outbox.seal(2)
    outbox.release(2)
    assert seen == [b"1", b"2", b"3", b"4"]


def test_what_passes_the_limit_is_refused_and_what_is_delivered_makes_room() -> None:
    outbox, seen = box(limit_bytes=10)
    outbox.put(b"12345678")
    with pytest.raises(LimitExceeded, match="its limit of 10"):
        outbox.put(b"345")
    outbox.seal(0)
    outbox.release(0)
    outbox.put(b"345")
    assert seen == [b"12345678"] and outbox.held == 1


def test_half_of_the_limit_asks_for_a_checkpoint_once() -> None:
    outbox, _ = box(limit_bytes=10)
    pressed: list[int] = []
    outbox.on_pressure = lambda: pressed.append(outbox.held)
    for _ in range(10):
        outbox.put(7)  # what has no length counts as one byte
    assert pressed == [6]


def test_a_length_can_be_given_and_items_need_not_be_bytes() -> None:
    outbox, seen = box(limit_bytes=10)
    outbox.put(("console", 3), 9)
    with pytest.raises(LimitExceeded):
        outbox.put(("console", 4), 2)
    outbox.bypass(True)
    assert seen == [("console", 3)]


def test_threads_that_put_while_it_delivers_at_once_keep_each_item_once_and_their_own_order() -> None:
    outbox, seen = box()
    outbox.bypass(True)

    def put(thread: int) -> None:
        for n in range(300):
            outbox.put((thread, n), 1)

    threads = [threading.Thread(target=put, args=(each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 1200 and outbox.held == 0
    for thread in range(4):
        assert [item for item in seen if item[0] == thread] == [(thread, n) for n in range(300)]  # type: ignore[index]
