"""What only the soft-dirty tracker meets: one clearing for the whole process, and other processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.trackers import softdirty as tracker_softdirty
from colo._fast.trackers.base import ProcessMemory
from colo._fast.trackers.softdirty import SoftDirtyTracker
from colo.errors import TrackerError, Unsupported

REASON = tracker_softdirty.probe()
has_bits = pytest.mark.skipif(REASON is not None, reason=f"softdirty: {REASON}")
PAGE = mmap.PAGESIZE


def harvest(tracker: SoftDirtyTracker) -> list[tuple[int, int]]:
    bitmap = DirtyBitmap(tracker.pages)
    tracker.harvest(bitmap)
    return bitmap.runs()


def anonymous(pages: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


@pytest.mark.skipif(REASON is None, reason="this kernel keeps soft-dirty bits")
def test_without_the_kernels_bits_the_start_says_so() -> None:
    with pytest.raises(Unsupported, match="CONFIG_MEM_SOFT_DIRTY"):
        SoftDirtyTracker(bytearray(PAGE)).start()


def test_a_process_that_is_not_there_is_named() -> None:
    assert "/proc/4194305/pagemap" in str(tracker_softdirty.probe(4194305))


def test_pages_written_or_discarded_count_and_others_do_not() -> None:
    """By entries as the kernel's documentation of pagemap has them: it may be one without these bits."""
    there, alone, swapped, written = 1 << 63, 1 << 56, 1 << 62, 1 << 55
    states = bytearray(8)
    rule = tracker_softdirty.changed_entries
    mine = there | alone
    first = [mine, mine, mine, there, swapped, 0, mine, 0]
    assert rule(first, states) == [False] * 8
    assert rule(first, states) == [False] * 8
    now = [mine | written, 0, there, 0, mine, 0, swapped, mine | written]
    # Written; discarded; read as zeros after that, or shared by a fork; discarded; read back; never there; swapped
    # out, which is not told from sharing; written for the first time.
    assert rule(now, states) == [True, True, True, True, False, False, True, True]
    assert rule([entry & ~written for entry in now], states) == [False] * 8
    with pytest.raises(ValueError, match="1 entries for 8 pages"):
        rule([0], states)


@has_bits
def test_one_trackers_harvest_loses_nothing_of_anothers() -> None:
    first, second = anonymous(100), anonymous(100)
    with SoftDirtyTracker(first) as a, SoftDirtyTracker(second) as b, SoftDirtyTracker(second) as twin:
        first[3 * PAGE] = second[4 * PAGE] = 1
        assert harvest(a) == [(3, 1)]
        second[5 * PAGE] = 1
        with SoftDirtyTracker(anonymous(1)) as late:
            assert harvest(late) == []
        assert harvest(b) == [(4, 2)]
        assert harvest(twin) == [(4, 2)]
        assert harvest(a) == []


@has_bits
def test_more_pages_than_one_read_of_pagemap() -> None:
    memory = anonymous(20_000)
    with SoftDirtyTracker(memory) as tracker:
        memory[8190 * PAGE : 8194 * PAGE] = b"x" * (4 * PAGE)
        memory[19_999 * PAGE] = 1
        assert harvest(tracker) == [(8190, 4), (19_999, 1)]


CHILD = """
import ctypes, mmap, sys
memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    memory[int(line) * mmap.PAGESIZE] ^= 1
    print("done", flush=True)
"""


@has_bits
def test_another_process_is_tracked_without_its_help() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        memory = ProcessMemory(child.pid, int(child.stdout.readline()), 64 * PAGE)
        with SoftDirtyTracker(memory) as tracker:
            for page in (7, 63):
                print(page, file=child.stdin, flush=True)
                assert child.stdout.readline() == "done\n"
            assert harvest(tracker) == [(7, 1), (63, 1)]
            assert harvest(tracker) == []
            child.kill()
            child.wait()
            with pytest.raises(TrackerError, match=r"unmapped|out of reach"):
                harvest(tracker)


@has_bits
def test_the_files_are_closed_with_the_last_tracker() -> None:
    before = os.listdir("/proc/self/fd")
    tracker = SoftDirtyTracker(anonymous(1))
    tracker.start()
    tracker.stop()
    assert os.listdir("/proc/self/fd") == before
