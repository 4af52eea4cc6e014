"""Every way memory changes, under every tracker: it is reported, or the tracker refuses that memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.trackers.base import ProcessMemory
from colo._fast.trackers.mappings import seen_by_others
from colo.errors import TrackerError
from colo.memory import trackers
from colo.memory.trackers import open_tracker, probe

PAGE = mmap.PAGESIZE
PAGES = 64
FIRST = 9
"""Ways change page FIRST, or some pages from it on."""
HUGE = 2 << 20
BY_PAGE_TABLE = ("pagemap", "softdirty")
AVAILABLE = {result.name: result for result in probe()}

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
libc.process_vm_writev.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong
]  # fmt: skip
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE = 2, 1, 16
MADV_REMOVE = 9


class Memory:
    """A block full of ones, and the descriptor of the file below, if there is one."""

    def __init__(self, mapping: mmap.mmap, fd: int = -1) -> None:
        self.mapping = mapping
        self.fd = fd
        self.array = np.frombuffer(mapping, np.uint8)
        self.array[:] = 1
        self.address = int(self.array.ctypes.data)
        self.at = FIRST * PAGE
        self.rounds = 2
        """How often the ways can be gone: what was reported once must be seen the second time too."""

    @property
    def target(self) -> int:
        return self.address + self.at


def private() -> Memory:
    mapping = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return Memory(mapping)


def huge() -> Memory:
    mapping = mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = Memory(mapping)
    memory.at = -memory.address % HUGE + HUGE
    return memory


def shared() -> Memory:
    return Memory(mmap.mmap(-1, PAGES * PAGE))


def memfd() -> Memory:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, PAGES * PAGE)
    return Memory(mmap.mmap(fd, PAGES * PAGE), fd)


def file_on_disk() -> Memory:
    fd = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(fd, PAGES * PAGE)
    return Memory(mmap.mmap(fd, PAGES * PAGE), fd)


def private_file() -> Memory:
    """Of which no page was written through this mapping."""
    fd = os.memfd_create("ram")
    os.write(fd, b"\1" * (PAGES * PAGE))
    mapping = mmap.mmap(fd, PAGES * PAGE, flags=mmap.MAP_PRIVATE)
    memory = Memory.__new__(Memory)
    memory.mapping, memory.fd, memory.array, memory.at = mapping, fd, np.frombuffer(mapping, np.uint8), FIRST * PAGE
    memory.address = int(memory.array.ctypes.data)
    memory.rounds = 1  # a page once written here no longer shows the file
    return memory


Way = Callable[[Memory], int]
"""Changes memory from page ``at`` on; returns how many pages."""


def store(memory: Memory) -> int:
    memory.mapping[memory.at + 5] = 2
    return 1


def numpy_store(memory: Memory) -> int:
    memory.array[memory.at : memory.at + 3 * PAGE] += 1
    return 3


def native_threads(memory: Memory) -> int:
    threads = [
        threading.Thread(target=libc.memset, args=(memory.target + n * PAGE, 3, PAGE)) for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 2


def memcpy(memory: Memory) -> int:
    libc.memcpy(memory.target, ctypes.create_string_buffer(b"x" * 100), 100)
    return 1


def read_into(memory: Memory) -> int:
    read_end, write_end = os.pipe()
    os.write(write_end, b"x" * 100)
    with memoryview(memory.mapping)[memory.at : memory.at + 100] as target:
        os.readv(read_end, [target])
    os.close(read_end)
    os.close(write_end)
    return 1


def direct_read_into(memory: Memory) -> int:
    """O_DIRECT pins the page; the read ends before the harvest begins."""
    fd = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600)
    try:
        page = mmap.mmap(-1, PAGE)
        page[:] = b"d" * PAGE
        os.write(fd, page)
        with memoryview(memory.mapping)[memory.at : memory.at + PAGE] as target:
            os.preadv(fd, [target], 0)
    except OSError as error:
        pytest.skip(f"no O_DIRECT here: {error.strerror}")
    finally:
        os.close(fd)
    return 1


def receive_into(memory: Memory) -> int:
    ours, theirs = socket.socketpair()
    with ours, theirs, memoryview(memory.mapping)[memory.at : memory.at + 100] as target:
        theirs.sendall(b"x" * 100)
        ours.recv_into(target)
    return 1


def proc_mem(memory: Memory) -> int:
    with open("/proc/self/mem", "r+b", buffering=0) as mem:
        mem.seek(memory.target)
        mem.write(b"xyz")
    return 1


def in_child(action: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def other_process_writes_into_it(memory: Memory) -> int:
    """process_vm_writev from a child into its parent, as a debugger writes."""
    parent = os.getpid()

    def write() -> None:
        source = ctypes.create_string_buffer(b"xyz")
        local = (ctypes.c_size_t * 2)(ctypes.addressof(source), 3)
        remote = (ctypes.c_size_t * 2)(memory.target, 3)
        assert libc.process_vm_writev(parent, local, 1, remote, 1, 0) == 3

    in_child(write)
    return 1


def written_after_a_fork(memory: Memory) -> int:
    """While a child lives, the parent's first write to each page copies it."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    memory.mapping[memory.at] = 7
    os.close(write_end)
    os.waitpid(child, 0)
    return 1


def dont_need(memory: Memory) -> int:
    memory.mapping.madvise(mmap.MADV_DONTNEED, memory.at, 2 * PAGE)
    return 2


def dont_need_huge(memory: Memory) -> int:
    memory.mapping.madvise(mmap.MADV_DONTNEED, memory.at, HUGE)
    return HUGE // PAGE


def moved_away(memory: Memory) -> int:
    """MREMAP_DONTUNMAP takes the pages and leaves zeros."""
    moved = libc.mremap(memory.target, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, None)
    assert moved != ctypes.c_void_p(-1).value
    libc.munmap(moved, 2 * PAGE)
    return 2


def moved_onto_it(memory: Memory) -> int:
    other = libc.mmap(None, 2 * PAGE, 3, 0x22, -1, 0)
    libc.memset(other, 9, 2 * PAGE)
    moved = libc.mremap(other, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, memory.target)
    assert moved == memory.target
    return 2


def mapped_over(memory: Memory) -> int:
    assert libc.mmap(memory.target, 2 * PAGE, 3, 0x32, -1, 0) == memory.target
    return 2


def shared_mapped_over_and_written_elsewhere(memory: Memory) -> int:
    fd = os.memfd_create("other")
    os.write(fd, b"\1" * PAGE)
    assert libc.mmap(memory.target, PAGE, 3, 0x11, fd, 0) == memory.target
    os.pwrite(fd, b"x", 0)
    os.close(fd)
    return 1


def second_mapping(memory: Memory) -> int:
    with mmap.mmap(memory.fd, PAGES * PAGE) as other:
        other[memory.at] = 2
    return 1


def duplicated_mapping(memory: Memory) -> int:
    """mremap of nothing makes a second mapping of shared memory without a descriptor."""
    other = libc.mremap(memory.target, 0, PAGE, MREMAP_MAYMOVE, None)
    assert other != ctypes.c_void_p(-1).value
    libc.memset(other, 4, 10)
    libc.munmap(other, PAGE)
    return 1


def child_writes_shared(memory: Memory) -> int:
    in_child(lambda: libc.memset(memory.target, 5, 10))
    return 1


def pwrite(memory: Memory) -> int:
    os.pwrite(memory.fd, b"x" * 10, memory.at)
    return 1


def child_pwrites(memory: Memory) -> int:
    in_child(lambda: os.pwrite(memory.fd, b"x" * 10, memory.at))
    return 1


def punched_hole(memory: Memory) -> int:
    assert libc.fallocate(memory.fd, PUNCH_HOLE | KEEP_SIZE, memory.at, 3 * PAGE) == 0
    return 3


def zero_range(memory: Memory) -> int:
    if libc.fallocate(memory.fd, ZERO_RANGE | KEEP_SIZE, memory.at, 3 * PAGE):
        pytest.skip(f"no FALLOC_FL_ZERO_RANGE here: {os.strerror(ctypes.get_errno())}")
    return 3


def madvise_remove(memory: Memory) -> int:
    memory.mapping.madvise(MADV_REMOVE, memory.at, 2 * PAGE)
    return 2


def shorter_and_longer_again(memory: Memory) -> int:
    os.ftruncate(memory.fd, memory.at)
    os.ftruncate(memory.fd, PAGES * PAGE)
    return PAGES - FIRST


def sent_into_the_file(memory: Memory) -> int:
    with open("/var/tmp", "rb", opener=lambda d, _: os.open(d, os.O_TMPFILE | os.O_RDWR, 0o600)) as source:
        os.pwrite(source.fileno(), b"s" * 10, 0)
        os.lseek(memory.fd, memory.at, os.SEEK_SET)
        os.sendfile(memory.fd, source.fileno(), 0, 10)
    return 1


THROUGH_THE_MAPPING: list[Way] = [
    store, numpy_store, native_threads, memcpy, read_into, direct_read_into, receive_into, proc_mem,
    other_process_writes_into_it, written_after_a_fork,
]  # fmt: skip
REPLACED: list[Way] = [
    dont_need, moved_away, moved_onto_it, mapped_over, shared_mapped_over_and_written_elsewhere
]  # fmt: skip
IN_THE_FILE: list[Way] = [
    second_mapping, duplicated_mapping, child_writes_shared, pwrite, child_pwrites, punched_hole, madvise_remove,
    shorter_and_longer_again, sent_into_the_file,
]  # fmt: skip
PRIVATE: list[tuple[Callable[[], Memory], Way]] = [
    *((private, way) for way in (*THROUGH_THE_MAPPING, *REPLACED)),
    *((huge, way) for way in (*THROUGH_THE_MAPPING, dont_need, dont_need_huge, mapped_over)),
]
OPEN_TO_OTHERS: list[tuple[Callable[[], Memory], Way]] = [
    (shared, store), (shared, child_writes_shared), (shared, duplicated_mapping), (shared, madvise_remove),
    *((memfd, way) for way in (*THROUGH_THE_MAPPING, *IN_THE_FILE)),
    (file_on_disk, store), (file_on_disk, second_mapping), (file_on_disk, pwrite), (file_on_disk, child_pwrites),
    (file_on_disk, zero_range),
    (private_file, store), (private_file, second_mapping), (private_file, pwrite), (private_file, child_pwrites),
    (private_file, punched_hole), (private_file, sent_into_the_file),
]  # fmt: skip


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.fixture(params=[*trackers.KINDS, "auto"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name != "auto" and not AVAILABLE[name].available:
        pytest.skip(f"{name}: {AVAILABLE[name].reason}")
    return name


def check(kind: str, memory: Memory, way: Way, *, by_page_table: bool) -> None:
    """Reported, or refused; refused only by those trackers, and only on that memory, where it has to be."""
    tracker = open_tracker(kind, {"ram": memory.mapping})
    if kind == "auto":
        assert (tracker.name in BY_PAGE_TABLE) == (by_page_table and AVAILABLE["pagemap"].available)
        assert (tracker.refused == ()) == (tracker.name == "pagemap")
    if tracker.name in BY_PAGE_TABLE and not by_page_table:
        with pytest.raises(TrackerError, match=r"does not see all writes to it: 0x\w+ is a .*sole_writer=True"):
            tracker.start()
        return
    pages = len(memory.mapping) // PAGE
    first = memory.at // PAGE
    with tracker:
        for _ in range(memory.rounds):
            before = memory.array.copy()
            count = way(memory)
            if tracker.name == "explicit":
                tracker["ram"].report(first * PAGE, count * PAGE)
            bitmap = DirtyBitmap(pages)
            try:
                tracker.harvest([bitmap])
            except TrackerError as error:
                assert way in REPLACED and tracker.name in BY_PAGE_TABLE, error
                assert "remapped" in str(error)
                return
            found = {page for at, n in bitmap.runs() for page in range(at, at + n)}
            changed = set(np.flatnonzero((before != memory.array).reshape(pages, PAGE).any(axis=1)).tolist())
            assert changed
            assert changed <= found, f"pages {sorted(changed - found)} changed unseen"
            assert changed <= set(range(first, first + count))
            if way in (dont_need, dont_need_huge):
                assert not memory.array[memory.at : memory.at + count * PAGE].any()
            memory.array[memory.at : memory.at + count * PAGE] = 1
            if tracker.name == "explicit":
                tracker["ram"].report(first * PAGE, count * PAGE)
            tracker.harvest([bitmap])


@pytest.mark.parametrize(("make", "way"), PRIVATE, ids=name_of)
def test_private_memory_is_seen_whatever_writes(kind: str, make: Callable[[], Memory], way: Way) -> None:
    check(kind, make(), way, by_page_table=True)


@pytest.mark.parametrize(("make", "way"), OPEN_TO_OTHERS, ids=name_of)
def test_memory_that_others_can_change_is_seen_or_refused(
    kind: str, make: Callable[[], Memory], way: Way
) -> None:
    check(kind, make(), way, by_page_table=False)


@pytest.mark.parametrize("make", [shared, memfd, private_file])
def test_who_answers_for_the_writers_is_taken_at_his_word(make: Callable[[], Memory]) -> None:
    if not AVAILABLE["pagemap"].available:
        pytest.skip(AVAILABLE["pagemap"].reason)
    memory = make()
    with open_tracker("pagemap", {"ram": memory.mapping}, sole_writer=True) as tracker:
        memory.mapping[memory.at] = 2
        tracker["ram"].mark(0, 1)
        bitmap = DirtyBitmap(PAGES)
        tracker.harvest([bitmap])
        assert bitmap.runs() == [(0, 1), (FIRST, 1)]


def test_one_shared_block_among_private_ones_decides_for_all() -> None:
    tracker = open_tracker("auto", {"pc.ram": private().mapping, "vga.vram": shared().mapping})
    assert tracker.name == "shadow"
    if AVAILABLE["pagemap"].available:
        assert "vga.vram" in tracker.refused[0].reason
        assert "shared mapping" in tracker.refused[0].reason


def test_another_processs_shared_memory_is_refused_too() -> None:
    if not AVAILABLE["pagemap"].available:
        pytest.skip(AVAILABLE["pagemap"].reason)
    from colo._fast.trackers.pagemap import open_userfaultfd

    memory = shared()
    fd = open_userfaultfd()
    try:
        where = ProcessMemory(os.getpid(), memory.address, PAGES * PAGE)
        tracker = open_tracker("pagemap", {"ram": where}, userfaultfd=fd)
        with pytest.raises(TrackerError, match="shared mapping"):
            tracker.start()
    finally:
        os.close(fd)


class TestMappings:
    def test_names_of_files_are_printable_and_bounded(self, tmp_path: Path) -> None:
        path = tmp_path / ("esc\x1b[31m" + "x" * 200)
        path.write_bytes(b"\0" * PAGE)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE) as mapping:
            array = np.frombuffer(mapping, np.uint8)
            why = seen_by_others(0, array.ctypes.data, array.ctypes.data + PAGE)
            del array
        assert why is not None
        assert why.isprintable()
        assert len(why) < 300

    def test_only_the_range_itself_counts(self) -> None:
        memory = memfd()
        low, high = memory.address, memory.address + PAGES * PAGE
        assert seen_by_others(0, low, high) is not None
        assert libc.mmap(low, 8 * PAGE, 3, 0x32, -1, 0) == low
        assert seen_by_others(0, low, low + 8 * PAGE) is None
        assert seen_by_others(0, low, low + 9 * PAGE) is not None
        os.close(memory.fd)

    def test_a_process_that_is_gone(self) -> None:
        with pytest.raises(TrackerError, match="cannot be read"):
            seen_by_others(2**22 + 1, 0, PAGE)

    def test_private_hugetlb_memory_is_nobody_elses(self) -> None:
        map_hugetlb = 0x40000
        try:
            mapping = mmap.mmap(-1, HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | map_hugetlb)
        except OSError as error:
            pytest.skip(f"no reserved huge pages (vm.nr_hugepages): {error.strerror}")
        array = np.frombuffer(mapping, np.uint8)
        assert seen_by_others(0, array.ctypes.data, array.ctypes.data + HUGE) is None


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    for fd in set(os.listdir("/proc/self/fd")) - before:
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        assert "userfaultfd" not in name
        assert "pagemap" not in name
        if "memfd:" in name or "/var/tmp" in name:
            os.close(int(fd))
