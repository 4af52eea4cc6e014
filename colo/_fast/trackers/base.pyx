"""What every dirty tracker of one RAM block shares: the block, the bits given back, the checks.

A tracker says which pages of a block were written since it was asked last. ``start`` begins with no page
dirty; ``harvest`` moves the dirty pages out; whoever harvested owns them and hands them to ``give_back``
when they could not be delivered. A write is never lost between two harvests; a page may be reported once
too often.
"""
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport getpid

import errno
import mmap
import threading

from colo._fast.trackers.mappings import seen_by_others
from colo.errors import TrackerError


cdef extern from "tracker_words.h" nogil:
    void colo_words_mark(uint64_t *words, size_t first, size_t count)
    void colo_words_merge(uint64_t *dst, const uint64_t *src, size_t words, uint64_t tail_mask)
    size_t colo_words_take(uint64_t *pending, const uint64_t *found, uint64_t *out, size_t words,
                           uint64_t tail_mask)
    void colo_words_clear(uint64_t *words, size_t count)
    int colo_memory_lost(const uint8_t *base, size_t length, size_t host_page_bytes)


PAGE_BYTES_MIN = 1024
PAGE_BYTES_MAX = 65536


class ProcessMemory:
    """``length_bytes`` of another process's memory, from ``address`` on, for trackers that can watch it."""

    __slots__ = ("address", "length_bytes", "pid")

    def __init__(self, pid: int, address: int, length_bytes: int) -> None:
        if pid <= 0 or address < 0 or length_bytes <= 0 or address + length_bytes > 1 << 56:
            raise ValueError(f"no memory of a process: pid {pid}, address {address:#x}, {length_bytes} bytes")
        self.pid = pid
        self.address = address
        self.length_bytes = length_bytes

    def __repr__(self) -> str:
        return f"ProcessMemory({self.pid}, {self.address:#x}, {self.length_bytes:#x})"


cdef void fill_addresses(uint64_t *words, uint64_t base, size_t length, size_t page_bytes,
                         uint64_t low, uint64_t high) noexcept nogil:
    cdef size_t first, last, at
    if low < base:
        low = base
    if high > base + length:
        high = base + length
    if low >= high:
        return
    first = (low - base) // page_bytes
    last = (high - 1 - base) // page_bytes
    if last - first < 64:
        for at in range(first, last + 1):
            words[at >> 6] |= <uint64_t>1 << (at & 63)
        return
    while first & 63:
        words[first >> 6] |= <uint64_t>1 << (first & 63)
        first += 1
    while last - first >= 63:
        words[first >> 6] = ~<uint64_t>0
        first += 64
        if first > last:
            return
    for at in range(first, last + 1):
        words[at >> 6] |= <uint64_t>1 << (at & 63)


cdef class BlockTracker:
    """The part of a dirty tracker that does not depend on how writes are found; of no use by itself.

    ``memory`` is any writable buffer, or a :class:`ProcessMemory`. It is held (it cannot be resized or
    closed) from ``start`` to ``stop``. Bitmaps are buffers of ``ceil(pages / 64)`` 64-bit words: page n is
    bit ``n % 64`` of word ``n // 64``.
    """

    def __cinit__(self, memory, *args, **kwargs):
        self.pending = NULL
        self.found = NULL
        self.base = NULL
        self.owner_pid = 0
        self.pid = 0

    def __init__(self, memory, *, block="ram", size_t page_bytes=4096):
        cdef size_t length = 0
        if page_bytes < PAGE_BYTES_MIN or page_bytes > PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
            raise ValueError(f"{block}: pages of {page_bytes} bytes: a power of two from {PAGE_BYTES_MIN} to "
                             f"{PAGE_BYTES_MAX} is needed")
        if isinstance(memory, ProcessMemory):
            self.pid = memory.pid
            length = memory.length_bytes
        else:
            with memoryview(memory) as view:
                if view.readonly:
                    raise BufferError(f"{block}: the block's buffer is read-only")
                if not view.c_contiguous:
                    raise BufferError(f"{block}: the block's buffer is not contiguous")
                length = view.nbytes
        if length == 0 or length % page_bytes:
            raise ValueError(f"{block}: {length} bytes are no whole number of pages of {page_bytes}")
        self.memory = memory
        self.block = block
        self.page_bytes = page_bytes
        self.length_bytes = length
        self.pages = length // page_bytes
        self.words = (self.pages + 63) // 64
        self.tail_mask = ~<uint64_t>0 if self.pages % 64 == 0 else (<uint64_t>1 << (self.pages % 64)) - 1
        self.pending_store = bytearray(8 * self.words)
        self.found_store = bytearray(8 * self.words)
        self.pending = <uint64_t *><char *>self.pending_store
        self.found = <uint64_t *><char *>self.found_store
        self.host_page_bytes = mmap.PAGESIZE
        self.lock = threading.Lock()

    # -- what a tracker adds ------------------------------------------------------------

    cdef int begin(self) except -1:
        raise NotImplementedError

    cdef int find(self, uint64_t *found) except -1:
        raise NotImplementedError

    cdef int end(self) except -1:
        return 0

    # -- the contract ------------------------------------------------------------

    def start(self):
        """Track writes from now on; no page is dirty yet (the first full copy is the caller's).

        TrackerError when it runs already or the memory cannot be tracked, Unsupported when this machine
        cannot.
        """
        with self.lock:
            if self.started:
                raise TrackerError(f"{self.block}: the {type(self).__name__} is started already")
            self.hold()
            try:
                self.owner_pid = getpid()
                self.lost = None
                self.check_memory()
                colo_words_clear(self.pending, self.words)
                self.begin()
            except BaseException:
                self.let_go()
                raise
            self.started = True

    def harvest(self, bitmap):
        """Move the dirty pages out: their bits are set in ``bitmap`` (none is cleared). Returns how many
        were dirty.

        ``bitmap`` is a writable buffer of ``8 * ceil(pages / 64)`` bytes. On an error nothing is moved out.
        TrackerError when the tracker is not started, or has lost sight of the memory (unmapped, remapped,
        made shorter, its descriptor closed): which pages were written is then unknown, and after ``stop``
        and ``start`` all of it must be copied.
        """
        return self.move_out(bitmap, True)

    def harvest_pending(self, bitmap):
        """As :meth:`harvest`, but only what is known already: marked, given back, or collected along with
        another block of the same process."""
        return self.move_out(bitmap, False)

    cdef size_t move_out(self, bitmap, bint look) except? 0:
        cdef Py_buffer out
        cdef size_t count = 0
        with self.lock:
            self.require_running()
            get_words(bitmap, &out, self.words, True, self.block)
            try:
                with nogil:
                    memset(self.found, 0, 8 * self.words)
                try:
                    self.check_memory()
                    if look:
                        self.find(self.found)
                except BaseException:
                    colo_words_merge(self.pending, self.found, self.words, self.tail_mask)
                    raise
                with nogil:
                    count = colo_words_take(self.pending, self.found, <uint64_t *>out.buf, self.words,
                                            self.tail_mask)
            finally:
                PyBuffer_Release(&out)
        return count

    def give_back(self, bitmap):
        """Report the pages of ``bitmap`` again at the next harvest: what was harvested from them was not
        delivered."""
        cdef Py_buffer view
        if not self.started:
            raise TrackerError(f"{self.block}: the {type(self).__name__} is not started")
        get_words(bitmap, &view, self.words, False, self.block)
        with nogil:
            colo_words_merge(self.pending, <const uint64_t *>view.buf, self.words, self.tail_mask)
        PyBuffer_Release(&view)

    def mark(self, offset, length):
        """Report the pages of ``length`` bytes from ``offset`` on at the next harvest: they changed where
        no tracker sees it (a hole punched in the file below, a device's DMA, another mapping). Thread-safe;
        call it after the change. ValueError when the range leaves the block."""
        if offset < 0 or length < 0 or offset + length > self.length_bytes:
            raise ValueError(f"{self.block}: offset {offset:#x} + {length:#x} bytes leaves the block of "
                             f"{self.length_bytes:#x}")
        self.mark_bytes(offset, length)

    def stop(self):
        """Track no more and let go of the memory. Harmless when not started."""
        with self.lock:
            if not self.started:
                return
            self.started = False
            try:
                # After a fork the child's copy must not undo what the parent still uses.
                if self.owner_pid == getpid():
                    self.end()
            finally:
                self.let_go()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self.stop()

    # -- parts ------------------------------------------------------------

    cdef void mark_bytes(self, size_t offset, size_t length) noexcept nogil:
        cdef size_t first
        if length:
            first = offset // self.page_bytes
            colo_words_mark(self.pending, first, (offset + length - 1) // self.page_bytes - first + 1)

    cdef int require_running(self) except -1:
        if not self.started:
            raise TrackerError(f"{self.block}: the {type(self).__name__} is not started")
        if self.lost is not None:
            raise TrackerError(self.lost)
        if self.owner_pid != getpid():
            raise TrackerError(f"{self.block}: this tracker was started by process {self.owner_pid}; "
                               "after a fork, start another one")
        return 0

    cdef object lose(self, str why):
        self.lost = (f"{self.block}: {why}; which pages were written is unknown: stop and start the "
                     "tracker, and copy the whole block")
        return TrackerError(self.lost)

    def hold(self):
        cdef Py_buffer view
        if self.pid:
            try:
                self.maps = open(f"/proc/{self.pid}/maps", encoding="ascii", errors="replace")
            except OSError as error:
                raise TrackerError(f"{self.block}: process {self.pid} cannot be seen: {error}") from error
            self.base = <uint8_t *><uintptr_t>self.memory.address
            return
        self.pin = memoryview(self.memory)
        if self.pin.nbytes != self.length_bytes:
            now = self.pin.nbytes
            self.let_go()
            raise TrackerError(f"{self.block}: the buffer has {now} bytes, and had {self.length_bytes} "
                               "when the tracker was made: make a new one")
        # memoryview keeps the export; only the address is wanted here.
        PyObject_GetBuffer(self.pin, &view, PyBUF_SIMPLE | PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS)
        self.base = <uint8_t *>view.buf
        PyBuffer_Release(&view)

    def let_go(self):
        if self.pin is not None:
            self.pin.release()
            self.pin = None
        if self.maps is not None:
            self.maps.close()
            self.maps = None
        self.base = NULL

    cdef int check_memory(self) except -1:
        cdef int gone
        if self.pid:
            gone = 0 if self.mapped_there() else errno.ENOMEM
        else:
            with nogil:
                gone = colo_memory_lost(self.base, self.length_bytes, self.host_page_bytes)
        if gone == errno.ENOMEM:
            raise self.lose("memory of the block was unmapped while it was tracked")
        if gone:
            raise self.lose("the file under the block was made shorter while it was tracked")
        return 0

    def unseen_writers(self):
        """Why page tables do not show all writes to the block, or None; for trackers that go by them."""
        cdef uint64_t grain = self.host_page_bytes, base = <uint64_t><uintptr_t>self.base
        why = seen_by_others(self.pid, base & ~(grain - 1), (base + self.length_bytes + grain - 1) & ~(grain - 1))
        if why is None:
            return None
        return (f"{why}; take the tracker shadow or hash, use private anonymous memory, or say sole_writer=True "
                "where nobody else writes, or each such write is marked")

    def mapped_there(self):
        """Whether all of the other process's range is mapped, by its /proc/PID/maps."""
        cdef object at = self.memory.address, end = self.memory.address + self.length_bytes
        try:
            self.maps.seek(0)
            for line in self.maps:
                low, _, rest = line.partition("-")
                if int(low, 16) > at:
                    return False
                at = max(at, int(rest.partition(" ")[0], 16))
                if at >= end:
                    return True
        except OSError:
            pass
        return False


cdef int get_words(bitmap, Py_buffer *view, size_t words, bint writable, str block) except -1:
    PyObject_GetBuffer(bitmap, view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else PyBUF_SIMPLE))
    if <size_t>view.len != 8 * words:
        got = view.len
        PyBuffer_Release(view)
        raise ValueError(f"{block}: a bitmap of {8 * words} bytes is needed ({words} words), "
                         f"this one has {got}")
    if <uintptr_t>view.buf & 7:
        PyBuffer_Release(view)
        raise ValueError(f"{block}: the bitmap's words are not aligned to 8 bytes")
    return 0


cdef void merge_words(uint64_t *dst, const uint64_t *src, size_t words, uint64_t tail_mask) noexcept nogil:
    colo_words_merge(dst, src, words, tail_mask)
