"""When the next checkpoint is due."""

from __future__ import annotations

import dataclasses

import pytest

from colo.figures.primary_report import PrimaryReport
from colo.link.link_rate import LinkRate
from colo.session.pace import Pace

REPORT = PrimaryReport(
    connection=0, number=1, full_copy=False, pause_ms=1.0, stop_ms=0.0, save_ms=0.0, harvest_ms=0.0, copy_ms=0.0,
    send_ms=0.0, acknowledged_ms=0.0, dirty_pages=0, stream_bytes=0, device_bytes=0,
)


def after(pace: Pace, *, times: int = 60, **figures: float) -> float:
    for _ in range(times):
        pace.took(dataclasses.replace(REPORT, **figures))
    return pace.interval_ms


def test_without_a_target_it_is_what_was_asked_for() -> None:
    assert after(Pace(100.0), pause_ms=500.0, transfer_ms=900.0) == 100.0


def test_it_follows_the_pauses_between_its_bounds() -> None:
    pace = Pace(100.0, target_pause_ms=5.0, interval_min_ms=2.0)
    assert after(pace, pause_ms=50.0) == 2.0
    assert after(pace, pause_ms=4.5) == 2.0, "near the target it stays"
    assert after(pace, pause_ms=1.0) == 100.0


def test_a_target_that_cannot_be_had_does_not_shorten_it_for_nothing() -> None:
    """Finding the dirty pages alone takes twice the target."""
    pace = Pace(100.0, target_pause_ms=1.0)
    assert after(pace, pause_ms=2.1, harvest_ms=1.5, stop_ms=0.3, save_ms=0.2) == 100.0
    assert after(pace, pause_ms=9.0, harvest_ms=1.5, stop_ms=0.3, save_ms=0.2, copy_ms=7.0) == 1.0, "the copy can be shorter"
    assert after(pace, pause_ms=2.0, harvest_ms=1.5, stop_ms=0.3, save_ms=0.2) == 100.0


def test_the_link_keeps_its_share_free() -> None:
    pace = Pace(10.0, link_share=0.25)
    assert after(pace, transfer_ms=20.0) == pytest.approx(80.0, rel=0.01)
    assert after(pace, transfer_ms=1.0) == 10.0


def test_the_link_comes_before_the_pauses() -> None:
    pace = Pace(100.0, target_pause_ms=5.0, link_share=0.5)
    assert after(pace, pause_ms=50.0, transfer_ms=30.0) == pytest.approx(60.0, rel=0.01)


@pytest.mark.parametrize("options", [
    {"interval_ms": -1.0}, {"interval_ms": 1.0, "target_pause_ms": 0.0}, {"interval_ms": 1.0, "link_share": 0.0},
    {"interval_ms": 1.0, "link_share": 1.1}, {"interval_ms": 1.0, "interval_min_ms": 0.0},
])
def test_what_cannot_be_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is"):
        Pace(**options)


def test_the_rate_is_that_of_checkpoints_long_enough_to_show_it() -> None:
    rate = LinkRate()
    rate.took(1000, 10.0)
    assert rate.bytes_per_s == 0.0
    rate.took(1_000_000, 10.0)
    assert rate.bytes_per_s == pytest.approx(100e6)
    for _ in range(40):
        rate.took(1_000_000, 100.0)
    assert rate.bytes_per_s == pytest.approx(10e6, rel=0.01)


def test_what_a_wait_ends_late_is_not_added_up() -> None:
    pace = Pace(50.0)
    pace.begin(1000.0, asked=True)
    assert pace.due_s == pytest.approx(1000.050)
    for n in range(1, 100):  # each a millisecond late
        pace.begin(1000.0 + 0.050 * n + 0.001)
        assert pace.due_s == pytest.approx(1000.0 + 0.050 * (n + 1))


def test_what_was_missed_is_not_caught_up_with() -> None:
    pace = Pace(50.0)
    pace.begin(1000.0, asked=True)
    pace.begin(1000.300)  # the one before took six intervals
    assert pace.due_s == pytest.approx(1000.350)


def test_one_that_was_asked_for_begins_the_interval_anew() -> None:
    pace = Pace(50.0)
    pace.begin(1000.0, asked=True)
    pace.begin(1000.020, asked=True)
    assert pace.due_s == pytest.approx(1000.070)
    pace.begin(1000.080, asked=True)  # asked for as the other was due
    assert pace.due_s == pytest.approx(1000.130)


def test_without_an_interval_each_is_due_at_once() -> None:
    pace = Pace(0.0)
    pace.begin(1000.0, asked=True)
    pace.begin(1000.010)
    assert pace.due_s == 1000.010
