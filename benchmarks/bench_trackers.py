"""What does it cost to know which pages were written?

Per harvest: the time to move 10,000 dirty pages out, scattered over 1 GiB, and to be ready for the next ones; and with
nothing dirty. Per page written: how much longer the first write to a page takes after a harvest than the second.
The trackers that compare contents read all memory: their limit is ``memcmp`` of memory with an equal copy, which reads two
streams as fast as they come, in the same round.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.paired import paired, rate_ratio, seconds
from colo.memory.trackers import KINDS, MemoryTracker, open_tracker, probe

PAGE_BYTES = 4096
MIB = 1 << 20
DIRTY_PAGES = 10_000
REASONS = {result.name: result.reason for result in probe()}

libc = ctypes.CDLL(None)
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def private(length: int) -> mmap.mmap:
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def huge(length: int) -> mmap.mmap:
    mapping = private(length)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def memfd(length: int) -> mmap.mmap:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, length)
    mapping = mmap.mmap(fd, length)
    os.close(fd)
    return mapping


MEMORY: dict[str, Callable[[int], mmap.mmap]] = {"anonymous": private, "huge pages": huge, "memfd": memfd}


@pytest.fixture
def rounds(quick: bool) -> int:
    return 7 if quick else 25


@pytest.fixture
def ram_bytes(quick: bool) -> int:
    return (256 if quick else 1024) * MIB


def filled(mapping: mmap.mmap) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The mapping as rows of pages, every page written."""
    pages = np.frombuffer(mapping, np.uint64).reshape(-1, PAGE_BYTES // 8)
    pages[:] = np.arange(1, len(pages) + 1, dtype=np.uint64)[:, None]
    return pages


class Scattered:
    """Writes one word to each of ``count`` pages anywhere, other ones each time."""

    def __init__(self, name: str, pages: np.ndarray[Any, np.dtype[np.uint64]], tracker: MemoryTracker[Any]) -> None:
        self.explicit = name == "explicit"
        self.pages = pages
        self.tracker = tracker
        self.rng = np.random.default_rng(1)
        self.bitmap = bytearray(len(pages) // 8)

    def choose(self, count: int = DIRTY_PAGES) -> None:
        self.chosen = self.rng.choice(len(self.pages), count, replace=False)
        self.ranges = np.ascontiguousarray(np.stack([self.chosen * PAGE_BYTES, np.full(count, 8)], 1), np.uint64)

    def write(self) -> None:
        self.pages[self.chosen, 7] += np.uint64(1)
        if self.explicit:
            self.tracker["ram"].report_ranges(self.ranges)

    def harvest(self) -> int:
        return self.tracker.harvest([self.bitmap])


@pytest.mark.parametrize("memory", MEMORY)
def test_harvest_of_scattered_pages_with_pagemap(
    memory: str, figure: Callable[..., Any], rounds: int
) -> None:
    if REASONS["pagemap"]:
        pytest.skip(REASONS["pagemap"])
    # Always 1 GiB: the bar is for it, and it takes no time.
    mapping = MEMORY[memory](1024 * MIB)
    pages = filled(mapping)
    tracker = open_tracker("pagemap", {"ram": mapping}, sole_writer=True)  # of the memfd there is no other user
    started_ms = 1000 * seconds(tracker.start)
    with_dirty, idle = [], []
    work = Scattered("pagemap", pages, tracker)
    try:
        for _ in range(rounds):
            work.choose()
            work.write()
            begun = time.perf_counter()
            assert work.harvest() == DIRTY_PAGES
            with_dirty.append(1000 * (time.perf_counter() - begun))
            idle.append(1000 * seconds(work.harvest))
    finally:
        tracker.stop()
    figure(
        f"pagemap, {memory}: harvest of 10,000 pages of 1 GiB", statistics.median(with_dirty), "ms",
        bar=2.0, bar_on="value", samples=with_dirty,
    )  # fmt: skip
    figure(f"pagemap, {memory}: harvest of nothing", statistics.median(idle), "ms", samples=idle)
    figure(f"pagemap, {memory}: start", started_ms, "ms")


@pytest.mark.parametrize("name", ["shadow", "hash"])
def test_scan_against_the_read_limit(
    name: str, figure: Callable[..., Any], rounds: int, ram_bytes: int
) -> None:
    mapping, copy = private(ram_bytes), private(ram_bytes)
    filled(mapping)
    filled(copy)
    here, there = (ctypes.addressof(ctypes.c_char.from_buffer(whole)) for whole in (mapping, copy))
    with open_tracker(name, {"ram": mapping}) as tracker:
        bitmap = bytearray(ram_bytes // PAGE_BYTES // 8)
        taken = paired(
            {name: lambda: tracker.harvest([bitmap]), "limit": lambda: libc.memcmp(here, there, ram_bytes)}, rounds
        )
    assert not any(bitmap)
    gigabytes = [ram_bytes / 1e9 / took for took in taken[name]]
    figure(
        f"{name}: harvest of {ram_bytes // MIB} MiB, nothing dirty", statistics.median(gigabytes), "GB/s",
        better="higher", samples=gigabytes, limit=ram_bytes / 1e9 / statistics.median(taken["limit"]),
        limit_name="memcmp with an equal copy: two streams", ratio=rate_ratio(taken["limit"], taken[name]),
        bar=0.9 if name == "shadow" else None, bar_on="ratio",
    )  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_cost_per_page_written_and_per_harvest(
    name: str, figure: Callable[..., Any], rounds: int, ram_bytes: int
) -> None:
    if REASONS[name]:
        pytest.skip(REASONS[name])
    mapping = private(ram_bytes)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    pages = filled(mapping)
    tracker = open_tracker(name, {"ram": mapping})
    work = Scattered(name, pages, tracker)
    tracked, untracked, harvested = [], [], []
    with tracker:
        work.harvest()
        for _ in range(rounds):
            work.choose()
            work.pages[work.chosen, 7]  # as warm for the first write as for the second
            tracked.append(1e9 * seconds(work.write) / DIRTY_PAGES)
            work.explicit = False
            untracked.append(1e9 * seconds(work.write) / DIRTY_PAGES)
            work.explicit = name == "explicit"
            begun = time.perf_counter()
            assert work.harvest() == DIRTY_PAGES
            harvested.append(time.perf_counter() - begun)
    extra = [first - second for first, second in zip(tracked, untracked, strict=True)]
    figure(
        f"{name}: first write to a page", statistics.median(extra), "ns more", samples=extra,
        parts={"first write": statistics.median(tracked), "second": statistics.median(untracked)},
    )  # fmt: skip
    milliseconds = [1000 * took for took in harvested]
    figure(
        f"{name}: harvest of 10,000 pages of {ram_bytes // MIB} MiB", statistics.median(milliseconds), "ms",
        samples=milliseconds,
    )  # fmt: skip
