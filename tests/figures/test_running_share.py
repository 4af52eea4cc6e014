"""How much of the time a VM runs, and when that is too little."""

from __future__ import annotations

import pytest

from colo.figures.running_share import RunningShare


def steady(share: RunningShare, begin_s: float, seconds: float, *, pause_s: float, every_s: float) -> list[str]:
    """Pauses of one length, one after each interval; returns what was told."""
    told = []
    for n in range(round(seconds / every_s)):
        end_s = begin_s + (n + 1) * every_s
        share.pause(end_s - pause_s, end_s)
        if (warning := share.warning(end_s)) is not None:
            told.append(warning)
    return told


@pytest.mark.parametrize(("pause_s", "every_s", "expected"), [(0.001, 0.1, 0.99), (0.006, 0.008, 0.25), (0.05, 0.1, 0.5)])
def test_the_share_is_what_the_pauses_leave(pause_s: float, every_s: float, expected: float) -> None:
    share = RunningShare("wait longer")
    share.begin(100.0)
    steady(share, 100.0, 20.0, pause_s=pause_s, every_s=every_s)
    assert share.share(120.0) == pytest.approx(expected, abs=0.01)


def test_nothing_is_said_of_less_than_a_second() -> None:
    share = RunningShare("wait longer")
    assert share.share(5.0) is None and share.warning(5.0) is None
    share.pause(10.0, 10.6)
    assert share.share(10.6) is None and share.warning(10.9) is None
    assert share.share(11.2) == pytest.approx(0.5)


def test_what_is_long_ago_does_not_count_and_a_part_counts_as_a_part() -> None:
    share = RunningShare("wait longer", window_s=5.0)
    share.begin(0.0)
    share.pause(1.0, 3.0)
    assert share.share(4.0) == pytest.approx(0.5)
    assert share.share(7.0) == pytest.approx(0.8)  # from 2 on
    assert share.share(8.1) == 1.0
    share.pause(8.2, 9.2)
    assert share.share(10.0) == pytest.approx(0.8)


def test_a_vm_that_stands_still_now_does_not_run() -> None:
    share = RunningShare("wait longer")
    share.begin(0.0)
    assert share.share(10.0, still_since_s=8.0) == pytest.approx(0.6)
    assert share.share(100.0, still_since_s=8.0) == 0.0


def test_too_little_is_told_once_each_time() -> None:
    share = RunningShare("wait longer")
    share.begin(0.0)
    assert steady(share, 0.0, 5.0, pause_s=0.001, every_s=0.01) == []
    told = steady(share, 5.0, 10.0, pause_s=0.009, every_s=0.01)
    assert len(told) == 1 and "wait longer" in told[0] and "% of the time" in told[0]
    # About a half: neither recovered, nor told again.
    assert steady(share, 15.0, 10.0, pause_s=0.0049, every_s=0.01) == []
    assert steady(share, 25.0, 10.0, pause_s=0.0051, every_s=0.01) == []
    assert steady(share, 35.0, 10.0, pause_s=0.001, every_s=0.01) == []
    assert len(steady(share, 45.0, 10.0, pause_s=0.009, every_s=0.01)) == 1
