"""What only the explicit tracker does: taking reports."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.trackers.explicit import ExplicitTracker
from colo._fast.trackers.pagemap import PagemapTracker

PAGE = 4096


@pytest.fixture
def tracker() -> ExplicitTracker:
    tracker = ExplicitTracker(bytearray(100 * PAGE))
    tracker.start()
    return tracker


def harvest(tracker: ExplicitTracker) -> list[tuple[int, int]]:
    bitmap = DirtyBitmap(tracker.pages)
    tracker.harvest(bitmap)
    return bitmap.runs()


def test_writes_that_are_not_reported_are_not_found(tracker: ExplicitTracker) -> None:
    tracker.memory[5] = 1
    assert harvest(tracker) == []


def test_a_report_touches_every_page_of_its_range(tracker: ExplicitTracker) -> None:
    tracker.report(PAGE - 1, 2)
    tracker.report(70 * PAGE, 29 * PAGE + 1)
    tracker.report(50 * PAGE)
    assert harvest(tracker) == [(0, 2), (50, 1), (70, 30)]


def test_ranges_are_taken_all_or_none(tracker: ExplicitTracker) -> None:
    tracker.report_ranges(np.array([[0, 1], [10 * PAGE, 2 * PAGE], [99 * PAGE, PAGE], [7, 0]], np.uint64))
    assert harvest(tracker) == [(0, 1), (10, 2), (99, 1)]
    for bad in ([100 * PAGE, 1], [0, 100 * PAGE + 1], [2**64 - 1, 2], [1, 2**64 - 1]):
        with pytest.raises(ValueError, match="range 1, offset"):
            tracker.report_ranges(np.array([[0, 1], bad], np.uint64))
    with pytest.raises(ValueError, match="no aligned rows"):
        tracker.report_ranges(bytearray(24))
    assert harvest(tracker) == []


def test_a_bitmap_is_taken_as_a_report(tracker: ExplicitTracker) -> None:
    bitmap = DirtyBitmap(100)
    bitmap.set(63, 3)
    tracker.report_pages(bitmap)
    assert harvest(tracker) == [(63, 3)]
    with pytest.raises(ValueError, match="a bitmap of 16 bytes"):
        tracker.report_pages(bytearray(8))


def test_native_code_sets_bits_in_place(tracker: ExplicitTracker) -> None:
    words = np.frombuffer(tracker.bits, np.uint64)
    words[1] |= np.uint64(1 << 5)
    assert harvest(tracker) == [(69, 1)]
    assert not words.any()


def test_reports_before_the_start_are_forgotten() -> None:
    tracker = ExplicitTracker(bytearray(PAGE))
    tracker.report(0)
    tracker.start()
    assert harvest(tracker) == []


def test_each_report_of_many_threads_is_harvested_exactly_once() -> None:
    pages = 64 * 600
    tracker = ExplicitTracker(bytearray(pages * 1024), page_bytes=1024)
    tracker.start()

    def report(who: int) -> None:
        # Neighbouring bits of the same words, so that the threads meet in each word.
        rows = np.zeros((pages // 4, 2), np.uint64)
        rows[:, 0] = np.arange(who, pages, 4, dtype=np.uint64) * 1024
        rows[:, 1] = 1
        for first in range(0, len(rows), 700):
            tracker.report_ranges(rows[first : first + 700])

    threads = [threading.Thread(target=report, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    total = 0
    while any(thread.is_alive() for thread in threads):
        total += tracker.harvest(bytearray(pages // 8))
    total += tracker.harvest(bytearray(pages // 8))
    assert total == pages


def test_kinds_say_what_they_promise() -> None:
    assert (ExplicitTracker.atomic, ExplicitTracker.by_content) == (True, False)
    assert (PagemapTracker.atomic, PagemapTracker.by_content) == (True, False)
