"""The pacing of a migration's batches, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.link.pacer import BATCH_MAX_BYTES, BATCH_MIN_BYTES, Pacer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(10_000, 10**9), st.lists(st.tuples(st.integers(1, 1 << 21), st.floats(0, 0.5)), min_size=1, max_size=50))
def test_the_limit_holds_over_any_stretch(limit: int, batches: list[tuple[int, float]]) -> None:
    clock = Clock()
    pacer = Pacer(limit, clock=clock)
    begins = []
    for size, took in batches:
        pacer.begin()
        begins.append((clock.now, size))
        clock.now += took
        pacer.sent(size)
        clock.now += pacer.wait_s()
    for first in range(len(begins)):
        sent = 0
        for at, size in begins[first:]:
            # What was sent before this batch fits the time since the stretch began.
            assert sent <= limit * (at - begins[first][0]) * (1 + 1e-6) + 1
            sent += size


def test_no_limit_means_no_wait() -> None:
    for none in (None, 0):
        pacer = Pacer(none, clock=Clock())
        pacer.begin()
        pacer.sent(1 << 40)
        assert pacer.wait_s() == 0
        assert pacer.batch_bytes == BATCH_MAX_BYTES


def test_a_wait_under_way_follows_a_new_limit() -> None:
    clock = Clock()
    pacer = Pacer(1000, clock=clock)
    pacer.begin()
    pacer.sent(10_000)
    assert pacer.wait_s() == pytest.approx(10)
    clock.now += 2
    pacer.limit_bytes_per_s = 4000
    assert pacer.wait_s() == pytest.approx(0.5)
    pacer.limit_bytes_per_s = 0
    assert pacer.wait_s() == 0
    with pytest.raises(ValueError, match="bandwidth"):
        pacer.limit_bytes_per_s = -1


def test_time_that_was_not_used_is_not_saved_up() -> None:
    clock = Clock()
    pacer = Pacer(1000, clock=clock)
    pacer.begin()
    pacer.sent(1000)
    clock.now += 60
    assert pacer.wait_s() == 0
    pacer.begin()
    pacer.sent(1000)
    assert pacer.wait_s() == pytest.approx(1)


def test_batches_are_small_at_a_low_limit() -> None:
    assert Pacer(1).batch_bytes == BATCH_MIN_BYTES
    assert Pacer(1 << 20).batch_bytes == pytest.approx(52_428, abs=2)
    assert Pacer(1 << 40).batch_bytes == BATCH_MAX_BYTES
