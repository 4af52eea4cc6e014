"""What only the pagemap tracker meets: the kernel's ways with memory, descriptors and other processes."""

from __future__ import annotations

import array
import contextlib
import ctypes
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.trackers import pagemap as tracker_pagemap
from colo._fast.trackers.base import ProcessMemory
from colo._fast.trackers.pagemap import PagemapTracker, open_userfaultfd
from colo.errors import TrackerError, Unsupported

REASON = tracker_pagemap.probe()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"pagemap: {REASON}")

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
Child = tuple[subprocess.Popen[bytes], socket.socket, int, int]


def anonymous(length: int) -> mmap.mmap:
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def harvest(tracker: PagemapTracker) -> list[tuple[int, int]]:
    bitmap = DirtyBitmap(tracker.pages)
    tracker.harvest(bitmap)
    return bitmap.runs()


def userfaultfds() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[userfaultfd]":
                found.append(int(name))
    return found


def huge_pages(mapping: mmap.mmap) -> int:
    """Bytes of the mapping in transparent huge pages."""
    at = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= at < high
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    return 0


def test_discarded_private_memory_is_dirty() -> None:
    """madvise(DONTNEED), as a balloon does: the pages read as zero from now on."""
    memory = anonymous(64 * PAGE)
    memory[:] = b"x" * len(memory)
    with PagemapTracker(memory) as tracker:
        memory.madvise(mmap.MADV_DONTNEED, 8 * PAGE, 4 * PAGE)
        assert harvest(tracker) == [(8, 4)]
        assert harvest(tracker) == []
        memory[9 * PAGE] = 1
        assert harvest(tracker) == [(9, 1)]


def test_dropping_the_mapping_of_shared_memory_loses_neither_data_nor_protection() -> None:
    memory = mmap.mmap(-1, 64 * PAGE)
    memory[:] = b"x" * len(memory)
    with PagemapTracker(memory, sole_writer=True) as tracker:
        memory[5 * PAGE] = 1
        memory.madvise(mmap.MADV_DONTNEED)
        assert 5 in [page for first, n in harvest(tracker) for page in range(first, first + n)]
        assert harvest(tracker) == []
        assert memory[5 * PAGE] == 1
        memory[6 * PAGE] = 1
        assert harvest(tracker) == [(6, 1)]


def test_a_hole_punched_in_the_file_below_has_to_be_marked() -> None:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 64 * PAGE)
    memory = mmap.mmap(fd, 64 * PAGE)
    memory[:] = b"x" * len(memory)
    with PagemapTracker(memory, sole_writer=True) as tracker:
        libc = ctypes.CDLL(None, use_errno=True)
        punch, keep_size = 2, 1
        libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
        assert libc.fallocate(fd, punch | keep_size, 8 * PAGE, 4 * PAGE) == 0
        tracker.mark(8 * PAGE, 4 * PAGE)
        assert harvest(tracker) == [(8, 4)]
        memory[9 * PAGE] = 1
        assert harvest(tracker) == [(9, 1)]
    os.close(fd)


def test_a_huge_page_is_told_apart_into_small_ones() -> None:
    memory = anonymous(4 * HUGE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:] = b"x" * len(memory)
    if not huge_pages(memory):
        pytest.skip("this machine gives no transparent huge pages")
    with PagemapTracker(memory) as tracker:
        assert huge_pages(memory)  # starting did not split them
        assert harvest(tracker) == []
        memory[HUGE + 5 * PAGE] = 1
        assert harvest(tracker) == [((HUGE + 5 * PAGE) // 4096, 1)]
        memory.madvise(mmap.MADV_DONTNEED, 2 * HUGE, HUGE)
        assert harvest(tracker) == [(2 * HUGE // 4096, HUGE // 4096)]


def test_hugetlbfs_is_tracked_by_the_huge_page() -> None:
    fd = os.memfd_create("huge", os.MFD_HUGETLB)
    try:
        os.ftruncate(fd, 4 * HUGE)
        memory = mmap.mmap(fd, 4 * HUGE)
    except OSError as error:
        os.close(fd)
        pytest.skip(f"no hugetlbfs pages are free (vm.nr_hugepages): {error.strerror}")
    os.close(fd)
    with PagemapTracker(memory, sole_writer=True) as tracker:
        memory[HUGE + 5] = 1
        assert harvest(tracker) == [(512, 512)]
        assert harvest(tracker) == []
        memory[3 * HUGE] = memory[0] = 1
        assert harvest(tracker) == [(0, 512), (1536, 512)]


def test_memory_never_touched_stays_unpopulated() -> None:
    memory = anonymous(64 << 20)
    with PagemapTracker(memory) as tracker:
        before = int(Path("/proc/self/statm").read_text().split()[1])
        memory[5 * PAGE] = 1
        assert harvest(tracker) == [(5, 1)]
        assert int(Path("/proc/self/statm").read_text().split()[1]) - before < 1000


def test_writes_by_the_kernel_are_seen() -> None:
    """System calls that write into memory must neither fail nor go unseen."""
    memory = anonymous(64 * PAGE)
    with PagemapTracker(memory) as tracker:
        read_end, write_end = os.pipe()
        os.write(write_end, b"x" * 100)
        with memoryview(memory)[20 * PAGE - 50 : 20 * PAGE + 50] as target:
            assert os.readv(read_end, [target]) == 100
        assert memory[20 * PAGE] == ord("x")
        assert harvest(tracker) == [(19, 2)]
        os.close(read_end)
        os.close(write_end)


def test_more_dirty_runs_than_one_call_reports() -> None:
    pages = 40_000
    memory = anonymous(pages * PAGE)
    with PagemapTracker(memory) as tracker:
        for page in range(0, pages, 2):
            memory[page * PAGE] = 1
        bitmap = DirtyBitmap(pages)
        assert tracker.harvest(bitmap) == pages // 2
        assert all(bitmap.test(page) == (page % 2 == 0) for page in range(0, pages, 37))
        assert harvest(tracker) == []


def test_a_second_tracker_on_the_same_memory_is_refused() -> None:
    memory = anonymous(16 * PAGE)
    with PagemapTracker(memory) as tracker:
        second = PagemapTracker(memory)
        assert "another userfaultfd" in str(second.fits())
        with pytest.raises(TrackerError, match="another userfaultfd watches it already"):
            second.start()
        memory[PAGE] = 1
        assert harvest(tracker) == [(1, 1)]
    with second:
        memory[2 * PAGE] = 1
        assert harvest(second) == [(2, 1)]


def test_a_file_on_a_disk_is_tracked_across_its_writing_back() -> None:
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.truncate(64 * PAGE)
        memory = mmap.mmap(file.fileno(), 64 * PAGE)
        with PagemapTracker(memory, sole_writer=True) as tracker:
            memory[3 * PAGE] = 1
            memory.flush()
            assert harvest(tracker) == [(3, 1)]
            memory.flush()
            assert harvest(tracker) == []
            memory[3 * PAGE] = memory[9 * PAGE] = 2
            assert harvest(tracker) == [(3, 1), (9, 1)]


def test_memory_that_cannot_be_written_is_refused_with_the_reason() -> None:
    """The kernel's own pages, dressed up as a buffer."""
    low, high = next(
        (int(at, 16) for at in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("[vdso]")
    )
    memory = (ctypes.c_char * (high - low)).from_address(low)
    tracker = PagemapTracker(memory, page_bytes=PAGE)
    why = tracker.fits()
    assert "cannot be tracked with pagemap" in str(why)
    with pytest.raises(TrackerError, match="cannot be tracked with pagemap"):
        tracker.start()


def test_a_closed_userfaultfd_is_an_error_until_a_new_start() -> None:
    memory = anonymous(16 * PAGE)
    before = set(userfaultfds())
    tracker = PagemapTracker(memory)
    tracker.start()
    (fd,) = set(userfaultfds()) - before
    os.close(fd)
    memory[PAGE] = 1
    for _ in range(2):
        with pytest.raises(TrackerError, match=r"its userfaultfd was closed.*copy the whole block"):
            harvest(tracker)
    tracker.give_back(DirtyBitmap(16))  # what is owed may still be handed in
    tracker.stop()
    with tracker:
        memory[2 * PAGE] = 1
        assert harvest(tracker) == [(2, 1)]


def test_a_descriptor_that_took_the_closed_ones_number_is_left_alone() -> None:
    tracker = PagemapTracker(anonymous(16 * PAGE))
    before = set(userfaultfds())
    tracker.start()
    (fd,) = set(userfaultfds()) - before
    other = os.open("/dev/null", os.O_RDONLY)
    os.dup2(other, fd)
    with pytest.raises(TrackerError, match="its userfaultfd was closed"):
        harvest(tracker)
    tracker.stop()
    del tracker
    os.fstat(fd)
    os.close(fd)
    os.close(other)


def test_a_tracker_dropped_without_stop_leaves_nothing_behind() -> None:
    memory = anonymous(16 * PAGE)
    before = userfaultfds()
    tracker = PagemapTracker(memory)
    tracker.start()
    del tracker
    assert userfaultfds() == before
    memory.close()


def as_nobody(code: str) -> str:
    """The output of ``code`` in a process that has given its rights up."""
    prelude = (
        "import ctypes, mmap, os\n"
        "from colo._fast.trackers.pagemap import PagemapTracker, probe\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"  # which also makes it undumpable
        "def set_dumpable(): ctypes.CDLL(None).prctl(4, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code],
        # A sanitized core needs its runtime in this process too.
        env={name: value for name, value in os.environ.items() if name == "LD_PRELOAD" or name.endswith("SAN_OPTIONS")}
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights up")
class TestWithoutRights:
    def test_tracking_needs_none(self) -> None:
        out = as_nobody(
            "set_dumpable()\n"
            "print(os.geteuid(), probe())\n"
            "m = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
            "t = PagemapTracker(m); t.start(); m[5 << 12] = 1\n"
            "r, w = os.pipe(); os.write(w, b'x'); os.readv(r, [memoryview(m)[9 << 12:(9 << 12) + 1]])\n"
            "b = bytearray(32); print(t.harvest(b), int.from_bytes(b, 'little'))\n"
        )
        assert out.split("\n")[:2] == ["65534 None", f"2 {1 << 5 | 1 << 9}"]

    def test_a_process_that_may_not_look_at_itself_is_told(self) -> None:
        assert "pagemap cannot be opened (Permission denied)" in as_nobody("print(probe())\n")


class TestAnotherProcess:
    CHILD = """
import array, ctypes, mmap, os, socket, sys
from colo._fast.trackers.pagemap import open_userfaultfd
channel = socket.socket(fileno=int(sys.argv[1]))
memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [open_userfaultfd()]))]
channel.sendmsg([b"%d" % at], rights)
while (order := channel.recv(100)):
    memory[int(order) * mmap.PAGESIZE] ^= 1
    channel.send(b"done")
"""

    @pytest.fixture
    def child(self) -> Iterator[Child]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, "-c", self.CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        theirs.close()
        try:
            address, ancillary, _, _ = ours.recvmsg(100, socket.CMSG_SPACE(4))
            fds = array.array("i")
            fds.frombytes(ancillary[0][2][:4])
            yield process, ours, int(address), fds[0]
            os.close(fds[0])
        finally:
            ours.close()
            process.kill()
            process.wait()

    @staticmethod
    def write(channel: socket.socket, page: int) -> None:
        channel.send(b"%d" % page)
        assert channel.recv(10) == b"done"

    def test_its_writes_are_found(self, child: Child) -> None:
        process, channel, address, fd = child
        tracker = PagemapTracker(ProcessMemory(process.pid, address, 64 * PAGE), userfaultfd=fd)
        with tracker:
            assert harvest(tracker) == []
            self.write(channel, 7)
            self.write(channel, 63)
            assert harvest(tracker) == [(7, 1), (63, 1)]
            assert harvest(tracker) == []

    def test_its_end_is_an_error(self, child: Child) -> None:
        process, _, address, fd = child
        with PagemapTracker(ProcessMemory(process.pid, address, 64 * PAGE), userfaultfd=fd) as tracker:
            process.kill()
            process.wait()
            with pytest.raises(TrackerError, match=r"unmapped|is gone"):
                harvest(tracker)

    def test_memory_it_does_not_have_is_refused(self, child: Child) -> None:
        process, _, _, fd = child
        with pytest.raises(TrackerError, match="unmapped"):
            PagemapTracker(ProcessMemory(process.pid, 1 << 20, PAGE), userfaultfd=fd).start()

    def test_without_its_userfaultfd_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match="a userfaultfd made in it is needed"):
            PagemapTracker(ProcessMemory(1, 1 << 20, PAGE))
        for bad in ((0, 0, 1), (1, -1, 1), (1, 0, 0), (1, 1 << 56, 1)):
            with pytest.raises(ValueError, match="no memory of a process"):
                ProcessMemory(*bad)


def test_a_userfaultfd_is_opened_or_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = open_userfaultfd()
    os.close(fd)
    monkeypatch.setitem(tracker_pagemap.FEATURES, "WP_FROM_THE_FUTURE (Linux 99)", 1 << 63)
    with pytest.raises(Unsupported, match=r"lacks WP_FROM_THE_FUTURE \(Linux 99\)"):
        open_userfaultfd()
