"""One contract, all trackers; then what choosing among them promises."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.trackers.base import BlockTracker, ProcessMemory
from colo._fast.trackers.shadow import ShadowTracker
from colo.abc import BlockMemory, DirtyTracker, GuestBlock
from colo.errors import TrackerError, Unsupported
from colo.memory import trackers
from colo.memory.trackers import MemoryTracker, open_tracker, probe

PAGE = 4096
PAGES = 1000
AVAILABLE = {result.name: result for result in probe()}
WATCHING = [name for name in trackers.KINDS if name != "explicit"]

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def need(name: str) -> str:
    if not AVAILABLE[name].available:
        pytest.skip(f"{name}: {AVAILABLE[name].reason}")
    return name


@pytest.fixture(params=list(trackers.KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return need(request.param)


@pytest.fixture(params=WATCHING)
def watching(request: pytest.FixtureRequest) -> str:
    """Trackers that find writes themselves."""
    return need(request.param)


def anonymous(pages: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


def shared_anonymous(pages: int) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE)


def memfd(pages: int) -> mmap.mmap:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, pages * PAGE)
    mapping = mmap.mmap(fd, pages * PAGE)
    os.close(fd)
    return mapping


def private_memfd(pages: int) -> mmap.mmap:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, pages * PAGE)
    mapping = mmap.mmap(fd, pages * PAGE, flags=mmap.MAP_PRIVATE)
    os.close(fd)
    return mapping


def numpy_array(pages: int) -> np.ndarray:
    return np.zeros(pages * PAGE, np.uint8)


def heap_bytes(pages: int) -> bytearray:
    return bytearray(pages * PAGE)


def huge(pages: int) -> mmap.mmap:
    mapping = mmap.mmap(-1, max(pages * PAGE, 8 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def address_of(buffer: object) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Written:
    """Memory under one tracker, and writes to it that an explicit tracker is told of."""

    def __init__(self, name: str, memory: object, **options: object) -> None:
        self.memory = memory
        self.view = memoryview(memory).cast("B")
        if name in ("pagemap", "softdirty"):
            options.setdefault("sole_writer", True)  # test_ways_memory_changes.py has the others
        self.tracker: MemoryTracker[BlockTracker] = open_tracker(name, {"ram": memory}, **options)
        self.pages = len(self.view) // PAGE

    def write(self, page: int, value: int | None = None, *, offset: int = 7) -> None:
        at = page * PAGE + offset
        self.view[at] = (self.view[at] + 1) % 256 if value is None else value
        if self.tracker.name == "explicit":
            self.tracker["ram"].report(at, 1)

    def harvest(self) -> list[int]:
        bitmap = DirtyBitmap(self.pages)
        count = self.tracker.harvest([bitmap])
        assert count == bitmap.count()
        return [page for first, n in bitmap.runs() for page in range(first, first + n)]


def bits(pages: int, dirty: list[int]) -> DirtyBitmap:
    bitmap = DirtyBitmap(pages)
    for page in dirty:
        bitmap.set(page)
    return bitmap


class TestContract:
    def test_nothing_is_dirty_after_the_start(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        written.write(3)
        with written.tracker:
            assert written.harvest() == []

    def test_written_pages_are_reported_once(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        with written.tracker:
            for page in (0, 5, 63, 64, 65, 500, PAGES - 1):
                written.write(page)
            assert written.harvest() == [0, 5, 63, 64, 65, 500, PAGES - 1]
            assert written.harvest() == []
            written.write(5)
            assert written.harvest() == [5]

    @pytest.mark.parametrize(
        "make", [anonymous, shared_anonymous, memfd, private_memfd, huge], ids=lambda make: make.__name__
    )
    @pytest.mark.parametrize("populated", [True, False])
    def test_random_writes_round_after_round(
        self, kind: str, make: Callable[[int], mmap.mmap], populated: bool
    ) -> None:
        written = Written(kind, make(PAGES))
        rng = random.Random(5)
        if populated:
            np.frombuffer(written.memory, np.uint8)[:] = 1
        with written.tracker:
            for _ in range(12):
                dirty = sorted(rng.sample(range(written.pages), rng.choice([1, 10, 300])))
                for page in dirty:
                    written.write(page, offset=rng.randrange(PAGE))
                found = written.harvest()
                if kind == "softdirty" and make is huge:
                    assert set(found) >= set(dirty)  # the huge page is the grain
                else:
                    assert found == dirty
            for page in range(written.pages):
                written.write(page)
            assert written.harvest() == list(range(written.pages))
            assert written.harvest() == []

    @pytest.mark.parametrize("make", [numpy_array, heap_bytes], ids=lambda make: make.__name__)
    def test_memory_off_the_host_page_is_reported_at_least_where_written(
        self, kind: str, make: Callable[[int], object]
    ) -> None:
        written = Written(kind, make(300))
        with written.tracker:
            for page in (0, 17, 120, 299):
                written.write(page, offset=0)
                written.write(page, offset=PAGE - 1)
            found = set(written.harvest())
            assert found >= {0, 17, 120, 299}
            again = set(written.harvest())
            if kind != "softdirty":  # which also reports huge pages as one, and memory whose mapping grew
                assert len(found) <= 12
                # The host pages at the edges are shared with other objects, whose writes cannot be told apart.
                assert again <= {0, 299}

    @pytest.mark.parametrize("page_bytes", [1024, 4096, 16384, 65536])
    def test_page_sizes_other_than_the_hosts(self, kind: str, page_bytes: int) -> None:
        memory = anonymous(160)
        tracker = open_tracker(kind, {"ram": memory}, page_bytes=page_bytes)
        pages = 160 * PAGE // page_bytes
        with tracker:
            for at in (0, 100 * PAGE + 5, 160 * PAGE - 1):
                memory[at] = 1
                if kind == "explicit":
                    tracker["ram"].report(at, 1)
            bitmap = DirtyBitmap(pages)
            tracker.harvest([bitmap])
            for at in (0, 100 * PAGE + 5, 160 * PAGE - 1):
                assert bitmap.test(at // page_bytes)
            assert bitmap.count() <= 3 * max(1, PAGE // page_bytes)

    def test_harvest_adds_to_the_bitmap_and_clears_nothing(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        with written.tracker:
            bitmap = bits(PAGES, [9, 70])
            written.write(70)
            written.write(71)
            assert written.tracker.harvest([bitmap]) == 2
            assert bitmap.runs() == [(9, 1), (70, 2)]

    def test_what_is_given_back_is_reported_again_once(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        with written.tracker:
            for page in (1, 2, 3, 900):
                written.write(page)
            lost = written.harvest()
            written.write(4)
            written.tracker.give_back([bits(PAGES, lost)])
            assert written.harvest() == [1, 2, 3, 4, 900]
            assert written.harvest() == []

    def test_given_back_pages_that_are_written_again_count_once(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        with written.tracker:
            written.write(1)
            written.tracker.give_back([bits(PAGES, written.harvest())])
            written.write(1)
            assert written.harvest() == [1]

    def test_bits_past_the_last_page_are_ignored(self, kind: str) -> None:
        written = Written(kind, anonymous(70))
        with written.tracker:
            written.tracker.give_back([np.full(2, 2**64 - 1, np.uint64)])
            assert written.harvest() == list(range(70))

    def test_marked_bytes_are_reported(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        with written.tracker:
            written.tracker["ram"].mark(PAGE - 1, 2)
            written.tracker["ram"].mark(500 * PAGE, 0)
            assert written.harvest() == [0, 1]
            for offset, length in ((-1, 2), (0, PAGES * PAGE + 1), (PAGES * PAGE, 1), (2**63, 2**63)):
                with pytest.raises(ValueError, match="leaves the block"):
                    written.tracker["ram"].mark(offset, length)

    def test_stop_and_start_forget_what_was_dirty(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        written.tracker.start()
        written.write(8)
        written.tracker.give_back([bits(PAGES, [9])])
        written.tracker.stop()
        written.tracker.stop()
        written.write(10)
        written.tracker.start()
        assert written.harvest() == []
        written.write(11)
        assert written.harvest() == [11]
        written.tracker.stop()

    def test_out_of_turn_calls_are_refused(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        with pytest.raises(TrackerError, match="not started"):
            written.harvest()
        with pytest.raises(TrackerError, match="not started"):
            written.tracker.give_back([bits(PAGES, [1])])
        with written.tracker, pytest.raises(TrackerError, match="started already"):
            written.tracker.start()

    def test_bitmaps_that_do_not_fit_are_refused_and_nothing_is_lost(self, kind: str) -> None:
        written = Written(kind, anonymous(PAGES))
        words = (PAGES + 63) // 64
        with written.tracker:
            written.write(6)
            for wrong in (bytearray(8 * words - 8), bytearray(8 * words + 8), bytearray(3)):
                with pytest.raises(ValueError, match="a bitmap of 128 bytes is needed"):
                    written.tracker.harvest([wrong])
            with pytest.raises(BufferError):
                written.tracker.harvest([bytes(8 * words)])
            with pytest.raises(ValueError, match="aligned"):
                written.tracker.harvest([memoryview(bytearray(8 * words + 8))[1 : 8 * words + 1]])
            with pytest.raises(ValueError, match="2 bitmaps for 1 RAM blocks"):
                written.tracker.harvest([bytearray(8 * words)] * 2)
            assert written.harvest() == [6]

    def test_memory_that_does_not_fit_is_refused(self, kind: str) -> None:
        with pytest.raises(BufferError, match="read-only"):
            open_tracker(kind, {"ram": bytes(PAGE)})
        with pytest.raises(ValueError, match="no whole number of pages"):
            open_tracker(kind, {"ram": bytearray(PAGE + 1)})
        with pytest.raises(ValueError, match="no whole number of pages"):
            open_tracker(kind, {"ram": bytearray(0)})
        with pytest.raises(BufferError, match="not contiguous"):
            open_tracker(kind, {"ram": np.zeros((PAGE, 2), np.uint8)[:, 0]})
        with pytest.raises(ValueError, match="power of two"):
            open_tracker(kind, {"ram": bytearray(6000)}, page_bytes=3000)

    def test_memory_is_held_while_tracked(self, kind: str) -> None:
        memory = anonymous(16)
        tracker = open_tracker(kind, {"ram": memory})
        with tracker, pytest.raises(BufferError):
            memory.resize(32 * PAGE)
        with tracker, pytest.raises(BufferError):
            memory.close()
        memory.close()

    def test_memory_resized_before_the_start_is_refused(self, kind: str) -> None:
        memory = bytearray(16 * PAGE)
        tracker = open_tracker(kind, {"ram": memory})
        memory.extend(bytes(PAGE))
        with pytest.raises(TrackerError, match="had 65536"):
            tracker.start()

    def test_unmapping_a_part_is_an_error_until_a_new_start(self, kind: str) -> None:
        memory = anonymous(64)
        written = Written(kind, memory)
        written.tracker.start()
        at = address_of(memory)
        written.write(3)
        assert libc.munmap(at + 32 * PAGE, 4 * PAGE) == 0
        try:
            with pytest.raises(TrackerError, match=r"unmapped while it was tracked.*copy the whole block"):
                written.harvest()
            with pytest.raises(TrackerError, match="unmapped"):
                written.harvest()
            written.tracker.stop()
            with pytest.raises(TrackerError, match="unmapped"):
                written.tracker.start()
        finally:
            # Whole again, before Python unmaps the block.
            assert libc.mmap(at + 32 * PAGE, 4 * PAGE, 3, 0x32, -1, 0) == at + 32 * PAGE
        with written.tracker:
            written.write(33)
            assert written.harvest() == [33]

    def test_remapping_a_part_is_reported_or_an_error(self, watching: str) -> None:
        memory = anonymous(64)
        np.frombuffer(memory, np.uint8)[:] = 1
        written = Written(watching, memory)
        with written.tracker:
            at = address_of(memory)
            assert libc.mmap(at + 32 * PAGE, 4 * PAGE, 3, 0x32, -1, 0) == at + 32 * PAGE
            if watching == "pagemap":
                with pytest.raises(TrackerError, match="remapped"):
                    written.harvest()
            else:
                assert set(written.harvest()) >= {32, 33, 34, 35}

    def test_a_file_made_shorter_under_the_block_is_an_error(self, kind: str) -> None:
        fd = os.memfd_create("ram")
        os.ftruncate(fd, 64 * PAGE)
        memory = mmap.mmap(fd, 64 * PAGE)
        written = Written(kind, memory)
        with written.tracker:
            written.write(1)
            os.ftruncate(fd, 60 * PAGE)
            with pytest.raises(TrackerError, match="made shorter"):
                written.harvest()
        os.close(fd)

    def test_a_forked_child_cannot_use_or_disturb_the_parents_tracker(self, kind: str) -> None:
        written = Written(kind, anonymous(64))
        with written.tracker:
            written.write(1)
            child = os.fork()
            if child == 0:
                try:
                    written.harvest()
                except TrackerError as error:
                    written.tracker.stop()
                    os._exit(0 if "fork" in str(error) else 1)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            written.write(2)
            assert written.harvest() == [1, 2]
            assert written.harvest() == []

    def test_it_promises_what_abc_asks(self, kind: str) -> None:
        tracker = open_tracker(kind, {"ram": anonymous(1)})
        assert isinstance(tracker, DirtyTracker)
        assert tracker.name == kind


@pytest.mark.parametrize("make", [anonymous, memfd, huge], ids=lambda make: make.__name__)
def test_no_write_is_lost_between_harvest_and_protection(kind: str, make: Callable[[int], mmap.mmap]) -> None:
    """Threads write while harvests go on; a copy that follows the harvests must end up equal to memory.

    Each thread writes each page once a phase, so that a write lost is not made good by the next one.
    """
    written = Written(kind, make(1024))
    if not written.tracker.atomic:
        pytest.skip(f"{kind} is documented to need a paused VM")
    pages, chunk = written.pages, 16
    memory = np.frombuffer(written.memory, np.uint64).reshape(pages, PAGE // 8)
    memory[:] = 1
    copy = memory.copy()
    start_line = threading.Barrier(3)
    finished = [0, 0]

    def write(who: int) -> None:
        rng = random.Random(who)
        while True:
            start_line.wait()
            for first in rng.sample(range(0, pages, chunk), pages // chunk):
                # In C without the GIL, which a harvest gives up too: the two really meet.
                words = memory[first : first + chunk, 100 * who : 100 * who + 64]
                np.add(words, 1, out=words)
                if kind == "explicit":
                    written.tracker["ram"].report(first * PAGE, chunk * PAGE)
            finished[who] += 1

    def until_aborted(who: int) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            write(who)

    def follow(dirty: list[int]) -> None:
        part = written.tracker["ram"]
        source = memory
        if isinstance(part, ShadowTracker):
            # By content: the page that was compared lies in the shadow, and that is the one to send.
            source = np.frombuffer(part.shadow, np.uint64).reshape(pages, PAGE // 8)
        copy[dirty] = source[dirty]

    threads = [threading.Thread(target=until_aborted, args=(who,)) for who in (0, 1)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    for thread in threads:
        thread.start()
    try:
        with written.tracker:
            meetings = harvests = phase = 0
            until = time.monotonic() + 2
            while meetings < 20 and (phase < 20 or time.monotonic() < until):
                phase += 1
                start_line.wait()
                while min(finished) < phase:
                    dirty = written.harvest()
                    harvests += 1
                    meetings += 0 < len(dirty) < pages
                    if harvests % 7 == 3:
                        written.tracker.give_back([bits(pages, dirty)])
                    else:
                        follow(dirty)
                follow(written.harvest())
                np.testing.assert_array_equal(copy, memory)
            assert meetings or kind == "explicit"  # whose harvest is too short to be met for certain
    finally:
        sys.setswitchinterval(interval_s)
        start_line.abort()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("name", ["shadow", "hash"])
def test_writes_of_another_process_to_shared_memory_are_found_by_content(name: str) -> None:
    pages = 256
    fd = os.memfd_create("ram")
    os.ftruncate(fd, pages * PAGE)
    written = Written(name, mmap.mmap(fd, pages * PAGE))
    memory = np.frombuffer(written.memory, np.uint64).reshape(pages, PAGE // 8)
    copy = memory.copy()
    ready_r, ready_w = os.pipe()
    with written.tracker:
        child = os.fork()
        if child == 0:
            with mmap.mmap(fd, pages * PAGE) as theirs:
                rng = random.Random(1)
                for n in range(1, 40_000):
                    at = rng.randrange(pages) * PAGE
                    theirs[at : at + 8] = n.to_bytes(8, "little")
                    if n == 100:
                        os.write(ready_w, b"x")
            os._exit(0)
        os.read(ready_r, 1)
        seen = 0
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            dirty = written.harvest()
            seen += len(dirty)
            copy[dirty] = memory[dirty]
        dirty = written.harvest()
        copy[dirty] = memory[dirty]
        assert seen
        np.testing.assert_array_equal(copy, memory)
    for descriptor in (fd, ready_r, ready_w):
        os.close(descriptor)


class TestSeveralBlocks:
    def test_each_block_has_its_bitmap(self, kind: str) -> None:
        memory = BlockMemory.allocate({"pc.ram": 200 * PAGE, "vga.vram": 10 * PAGE})
        tracker = open_tracker(kind, memory)
        with tracker:
            for idstr, page in (("pc.ram", 150), ("vga.vram", 3)):
                memory[idstr][page * PAGE] = 1
                if kind == "explicit":
                    tracker[idstr].report(page * PAGE, 1)
            bitmaps = tracker.new_bitmaps()
            assert tracker.harvest(bitmaps) == 2
            assert [bitmap.runs() for bitmap in bitmaps] == [[(150, 1)], [(3, 1)]]
            tracker.give_back(bitmaps)
            again = tracker.new_bitmaps()
            assert tracker.harvest(again) == 2
            assert again == bitmaps

    def test_a_failing_block_gives_back_what_the_others_had(self, kind: str) -> None:
        first, second = anonymous(64), anonymous(64)
        tracker = open_tracker(kind, {"a": first, "b": second})
        with tracker:
            first[5 * PAGE] = 1
            if kind == "explicit":
                tracker["a"].report(5 * PAGE, 1)
            at = address_of(second)
            assert libc.munmap(at, 4 * PAGE) == 0
            try:
                with pytest.raises(TrackerError, match=r"^b: "):
                    tracker.harvest(tracker.new_bitmaps())
                bitmap = DirtyBitmap(64)
                tracker["a"].harvest(bitmap)
                assert bitmap.runs() == [(5, 1)]
            finally:
                assert libc.mmap(at, 4 * PAGE, 3, 0x32, -1, 0) == at

    def test_a_start_that_fails_leaves_no_block_tracked(self, kind: str) -> None:
        first, second = bytearray(16 * PAGE), bytearray(16 * PAGE)
        tracker = open_tracker(kind, {"a": first, "b": second})
        second.extend(bytes(PAGE))
        with pytest.raises(TrackerError, match=r"^b: "):
            tracker.start()
        assert not tracker["a"].started
        first.extend(bytes(PAGE))  # not held

    def test_names_must_differ(self) -> None:
        blocks = [GuestBlock("ram", bytearray(PAGE)), GuestBlock("ram", bytearray(PAGE))]
        with pytest.raises(ValueError, match="same name"):
            open_tracker("shadow", blocks)
        with pytest.raises(ValueError, match="no RAM block"):
            open_tracker("shadow", [])


class TestChoosing:
    def test_the_probe_names_every_tracker_and_says_why_not(self) -> None:
        results = probe()
        assert [result.name for result in results] == ["pagemap", "shadow", "hash", "softdirty", "explicit"]
        for result in results:
            assert result.available == (result.reason == "")
        for name in ("shadow", "hash", "explicit"):
            assert AVAILABLE[name].available

    def test_an_unavailable_tracker_is_refused_with_the_probes_reason(self) -> None:
        for result in probe():
            if not result.available:
                with pytest.raises(Unsupported) as refused:
                    open_tracker(result.name, {"ram": bytearray(PAGE)})
                assert result.reason in str(refused.value)

    def test_an_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match="'kvm': there are auto, pagemap, shadow"):
            open_tracker("kvm", {"ram": bytearray(PAGE)})

    def test_auto_prefers_pagemap(self) -> None:
        need("pagemap")
        memory = anonymous(16)
        tracker = open_tracker("auto", {"ram": memory})
        assert tracker.name == "pagemap"
        assert tracker.refused == ()
        with tracker:
            memory[PAGE] = 1
            assert tracker.harvest([bytearray(8)]) == 1

    def test_auto_falls_back_to_shadow_and_says_why(self, tmp_path: object) -> None:
        need("pagemap")
        memory = anonymous(16)
        with open_tracker("pagemap", {"ram": memory}):
            tracker = open_tracker("auto", {"ram": memory})
        assert tracker.name == "shadow"
        assert tracker.refused[0].name == "pagemap"
        assert "another userfaultfd" in tracker.refused[0].reason

    def test_two_blocks_that_share_a_page_of_the_host_are_no_case_for_pagemap(self) -> None:
        memory = mmap.mmap(-1, 4 * mmap.PAGESIZE)
        view, half = memoryview(memory), 2 * mmap.PAGESIZE - 1024
        blocks = {"low": view[:half], "high": view[half:]}
        with pytest.raises(Unsupported, match="low and high have parts of one page of the host"):
            open_tracker("pagemap", blocks, page_bytes=1024)
        with open_tracker("auto", blocks, page_bytes=1024) as tracker:
            assert tracker.name == "shadow" and "one page of the host" in tracker.refused[0].reason
            blocks["high"][0] = 1
            bitmaps = tracker.new_bitmaps()
            assert tracker.harvest(bitmaps) == 1 and bitmaps[1].test(0)

    def test_auto_falls_back_where_the_kernel_lacks_pagemap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trackers.tracker_pagemap, "probe", lambda: "no PAGEMAP_SCAN (Linux 6.7)")
        tracker = open_tracker("auto", {"ram": anonymous(16)})
        assert tracker.name == "shadow"
        assert "6.7" in tracker.refused[0].reason

    def test_auto_says_when_nothing_fits(self) -> None:
        with pytest.raises((Unsupported, ValueError), match=r"process 1|userfaultfd"):
            open_tracker("auto", {"ram": ProcessMemory(1, 1 << 20, PAGE)})


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    import gc

    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
