"""Dirty pages by Linux's soft-dirty bits: bit 55 of /proc/PID/pagemap, cleared by writing 4 to
/proc/PID/clear_refs.

It works on any process one may trace, and needs CONFIG_MEM_SOFT_DIRTY. Five things to know:

- Only writes through the process's own page tables are seen. Memory that others can change (shared mappings,
  mappings of files) is refused, unless the caller answers for it (``sole_writer``).
- Memory that is discarded (madvise, mremap) has no page left to carry a bit. So it is remembered which pages
  were there, and were the process's alone: one that no longer is counts as dirty.
- Reading and clearing are two steps, and a write between them is lost: **the VM must stand still during a
  harvest.**
- Transparent huge pages are the grain where memory has them: a write makes all 512 small pages of one dirty.
  And when a mapping grows (a heap does), its pages not touched yet count as dirty.
- Clearing is for the whole process. All trackers of one process therefore share each clearing: before it,
  the bits of all of them are collected. Another program that clears the same process (a checkpointing tool)
  destroys the tracking unseen.
"""
from libc.errno cimport EINTR, errno as c_errno
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from posix.unistd cimport pread

from colo._fast.trackers.base cimport BlockTracker, fill_addresses, merge_words

import mmap
import os
import threading
import weakref

from colo.errors import TrackerError, Unsupported


cdef enum:
    ENTRIES = 8192                      # 64 KiB of pagemap at a time: 32 MiB of memory
    CLEAR_SOFT_DIRTY = 4

processes = weakref.WeakValueDictionary()
processes_lock = threading.Lock()


class ProcessBits:
    """The soft-dirty bits of one process: its files, and the trackers that share each clearing."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.trackers = weakref.WeakSet()
        self.pagemap = self.clear_refs = -1
        self.lock = threading.Lock()
        where = f"/proc/{pid}"
        try:
            self.pagemap = os.open(f"{where}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unsupported(f"{where}/pagemap cannot be opened: {error.strerror}") from error
        try:
            self.clear_refs = os.open(f"{where}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unsupported(f"{where}/clear_refs cannot be opened: {error.strerror}") from error

    def clear(self) -> None:
        os.write(self.clear_refs, b"%d" % CLEAR_SOFT_DIRTY)

    def __del__(self) -> None:
        for fd in (self.pagemap, self.clear_refs):
            if fd >= 0:
                os.close(fd)


def probe(pid: int = 0) -> str | None:
    """None when the kernel keeps soft-dirty bits and process ``pid`` (0: this one) may be watched;
    otherwise why not. Clears nothing: a page written for the first time has its bit set where there are
    such bits."""
    cdef int fd
    cdef uint64_t entry = 0
    cdef unsigned char[::1] view
    try:
        for whose in {os.getpid(), pid or os.getpid()}:
            ProcessBits(whose)
    except Unsupported as reason:
        return str(reason)
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page[0] = 1
            view = page
            at = <uint64_t><uintptr_t>&view[0] // <uint64_t>mmap.PAGESIZE * 8
            view = None
            if pread(fd, &entry, 8, at) != 8:
                return "/proc/self/pagemap cannot be read"
    finally:
        os.close(fd)
    if not entry >> 55 & 1:
        return "this kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)"
    return None


cdef inline bint changed(uint64_t entry, uint8_t *state) noexcept nogil:
    """Whether the page of this pagemap entry was written, or discarded, since ``state`` was noted, which becomes
    what it is now: bit 0 there at all (in memory or swap), bit 1 no other process has it."""
    cdef uint8_t was = state[0]
    state[0] = (entry >> 62 != 0) | (entry >> 56 & 1) << 1
    return entry >> 55 & 1 or was & ~state[0]


def changed_entries(entries, bytearray states not None) -> list[bool]:
    """The rule of a harvest, for ``entries`` of /proc/PID/pagemap and the ``states`` of their pages (0 at first),
    which are brought up to date."""
    cdef uint8_t *state = <uint8_t *><char *>states
    cdef Py_ssize_t i
    if len(entries) != len(states):
        raise ValueError(f"{len(entries)} entries for {len(states)} pages")
    return [bool(changed(entries[i], state + i)) for i in range(len(states))]


cdef class SoftDirtyTracker(BlockTracker):
    """Dirty pages of one block by soft-dirty bits. The VM must stand still during a harvest; see the
    module's text. ``sole_writer``: nobody changes the memory by another way than this process's page tables, or each
    such change is told by :meth:`mark`."""

    name = "softdirty"
    atomic = False
    by_content = False

    cdef object __weakref__
    cdef object bits
    cdef bytearray entries
    cdef bytearray states               # of each page of the host, as colo_page_state() has it
    cdef bint sole_writer

    def __init__(self, memory, *, block="ram", size_t page_bytes=4096, bint sole_writer=False):
        super().__init__(memory, block=block, page_bytes=page_bytes)
        self.sole_writer = sole_writer
        self.entries = bytearray(8 * ENTRIES)

    cdef int begin(self) except -1:
        reason = probe(self.pid)
        if reason is not None:
            raise Unsupported(f"{self.block}: softdirty: {reason}")
        why = None if self.sole_writer else self.unseen_writers()
        if why is not None:
            raise TrackerError(f"{self.block}: softdirty does not see all writes to it: {why}")
        pid = self.pid or os.getpid()
        with processes_lock:
            bits = processes.get(pid)
            if bits is None:
                bits = processes[pid] = ProcessBits(pid)
        self.bits = bits
        self.states = bytearray((self.length_bytes + 2 * self.host_page_bytes - 2) // self.host_page_bytes + 1)
        try:
            self.gather(True)
        except BaseException:
            self.bits = None
            raise
        return 0

    cdef int find(self, uint64_t *found) except -1:
        # This tracker's own bits go the same way as those of its neighbours: into what is pending, which
        # the harvest takes. Another mapping may have come in the block's place: the bits would not tell.
        why = None if self.sole_writer else self.unseen_writers()
        if why is not None:
            raise self.lose(f"memory of the block was remapped while it was tracked: {why}")
        self.gather(False)
        return 0

    cdef int gather(self, bint join) except -1:
        """Collects for every tracker of the process, then clears for all; ``join``: this one counts from
        then on."""
        cdef SoftDirtyTracker tracker
        with self.bits.lock:
            try:
                for tracker in self.bits.trackers:
                    tracker.collect(self.bits.pagemap, False)
                if join:
                    self.collect(self.bits.pagemap, True)
                self.bits.clear()
            except OSError as error:
                raise self.lose(f"the soft-dirty bits of process {self.bits.pid} are out of reach "
                                f"({error.strerror})") from error
            if join:
                self.bits.trackers.add(self)
        return 0

    cdef int collect(self, int fd, bint first) except -1:
        """Bits of the pages written into ``pending``; ``first``: only how the pages are now."""
        cdef uint64_t grain = self.host_page_bytes, base = <uint64_t><uintptr_t>self.base
        cdef uint64_t at = base // grain, end = (base + self.length_bytes + grain - 1) // grain, low = 0
        cdef uint64_t *entries = <uint64_t *><char *>self.entries
        cdef bytearray scratch = bytearray(8 * self.words)
        cdef uint64_t *words = <uint64_t *><char *>scratch
        cdef uint8_t *states = <uint8_t *><char *>self.states
        cdef Py_ssize_t got = 0
        cdef size_t i, count
        cdef bint run = False
        with nogil:
            while at < end:
                count = min(<uint64_t>ENTRIES, end - at)
                got = pread(fd, entries, 8 * count, 8 * at)
                if got < 0 and c_errno == EINTR:
                    continue
                if got < 8:
                    break
                count = <size_t>got // 8
                for i in range(count):
                    if changed(entries[i], states) != run:
                        if run:
                            fill_addresses(words, base, self.length_bytes, self.page_bytes, low,
                                           (at + i) * grain)
                        else:
                            low = (at + i) * grain
                        run = not run
                    states += 1
                at += count
            if run:
                fill_addresses(words, base, self.length_bytes, self.page_bytes, low, at * grain)
            if not first:
                merge_words(self.pending, words, self.words, self.tail_mask)
        if at < end:
            if got < 0:
                raise OSError(c_errno, os.strerror(c_errno))
            raise OSError(0, "the process is gone")
        return 0

    cdef int end(self) except -1:
        with self.bits.lock:
            self.bits.trackers.discard(self)
        self.bits = None
        return 0
