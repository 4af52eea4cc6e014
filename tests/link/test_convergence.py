"""When a migration may switch over, and when it throttles: figures only."""

from __future__ import annotations

from typing import Any

import pytest

from colo.link.convergence import AutoConverge, Round
from colo.link.migration_progress import MigrationProgress

PAGE = 4096


def a_round(**options: Any) -> Round:
    return Round(**{"number": 1, "pages": 1000, "wire_bytes": 1000 * PAGE, "seconds": 1.0, "dirty_pages": 0,
                    "dirty_seconds": 1.0, **options})


def test_whole_pages_take_their_time_at_the_bandwidth() -> None:
    assert a_round(dirty_pages=250).expected_downtime_ms == pytest.approx(250)
    assert a_round(dirty_pages=0, wire_bytes=0, seconds=0).expected_downtime_ms == 0
    # All pages were zero: what a dirty one takes is not known, so the guess is a high one.
    assert a_round(wire_bytes=9000, dirty_pages=10).expected_downtime_ms > 4000


def test_deltas_count_from_the_second_round_on() -> None:
    small: dict[str, Any] = {"wire_bytes": 100 * PAGE, "dirty_pages": 100}
    assert a_round(number=1, **small).expected_downtime_ms == pytest.approx(1000)
    assert a_round(number=2, **small).expected_downtime_ms == pytest.approx(100)


def test_nothing_sent_says_nothing() -> None:
    assert a_round(pages=0, wire_bytes=0, dirty_pages=1).expected_downtime_ms == float("inf")


def test_the_end_is_foreseen_only_if_it_comes() -> None:
    assert a_round(dirty_pages=500).eta_s == pytest.approx(1)
    assert a_round(dirty_pages=1000).eta_s is None


def test_throttling_begins_after_two_bad_rounds_and_goes_up_to_its_most() -> None:
    bad, good = a_round(dirty_pages=501), a_round(dirty_pages=500)
    converge = AutoConverge()
    steps = []
    for each in [bad, good, good, bad] + [bad, bad] * 9 + [bad] * 4:
        if converge.after(each):
            steps.append(converge.percent)
    assert steps == [20, 30, 40, 50, 60, 70, 80, 90, 99]
    assert not converge.after(bad)


@pytest.mark.parametrize("options", [
    {"initial_percent": 0}, {"max_percent": 100}, {"initial_percent": 50, "max_percent": 40}, {"increment_percent": 0}])
def test_figures_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="throttling"):
        AutoConverge(**options)


def test_progress_before_and_in_the_first_round() -> None:
    progress = MigrationProgress(total_bytes=100 * PAGE)
    assert progress.as_dict("none") == {"status": "none"}
    progress.began_ns = 1
    progress.begin_round(100)
    progress.sent(40 * PAGE, {"zero": 10, "page": 30}, 60)
    info = progress.as_dict("active")
    assert info["ram"]["remaining"] == 60 * PAGE
    assert info["ram"]["duplicate"] == 10 and info["ram"]["normal-bytes"] == 30 * PAGE
    assert info["eta-ms"] > 0 and info["ram"]["mbps"] > 0
    assert "downtime" not in info
