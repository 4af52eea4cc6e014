"""Memory that records are collected in, to be sent when the VM runs again.

It keeps its memory from one checkpoint to the next, so that in the pause nothing is allocated and nothing faults: pages are
copied to where pages were before.
"""
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport EBUSY, ENOMEM
from libc.stdint cimport uint8_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/mman.h>
    """
    void *mmap(void *address, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int munmap(void *address, size_t length) noexcept nogil
    void *mremap(void *old, size_t old_length, size_t length, int flags) noexcept nogil
    int madvise(void *address, size_t length, int advice) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MREMAP_MAYMOVE
    int MADV_HUGEPAGE, MADV_DONTDUMP, MADV_DONTNEED
    void *MAP_FAILED

cdef extern from "populate.h" nogil:
    void colo_populate(uint8_t *start, size_t n)

cdef size_t HUGE_PAGE_BYTES = 2 << 20


cdef inline size_t whole_huge_pages(size_t n) noexcept nogil:
    return (n + HUGE_PAGE_BYTES - 1) // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES


cdef class RecordArena:
    """Bytes that a :class:`~colo._fast.send.pageencoder.PageEncoder` collects; a read-only buffer of them.

    While it is exported (a memoryview of it lives) it neither moves nor changes: collecting raises BufferError then.
    Guest memory is secret: core dumps leave it out.
    """

    def __dealloc__(self):
        if self.data != NULL:
            munmap(self.data, self.room)

    def __len__(self):
        return self.used

    def __getbuffer__(self, Py_buffer *view, int flags):
        # An arena that was never used has no memory: an empty buffer still needs an address.
        PyBuffer_FillInfo(view, self, self.data if self.data != NULL else <void *>&self.used, self.used, 1, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    cdef int make_room(self, size_t n) noexcept nogil:
        cdef size_t room
        cdef void *p
        if n <= self.room - self.used:
            return 0
        if self.exports:
            return EBUSY
        room = whole_huge_pages((self.used + n) + (self.used + n) // 2)
        if self.data == NULL:
            p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        else:
            p = mremap(self.data, self.room, room, MREMAP_MAYMOVE)
        if p == MAP_FAILED:
            return ENOMEM
        self.data = <uint8_t *>p
        self.room = room
        madvise(p, room, MADV_HUGEPAGE)
        madvise(p, room, MADV_DONTDUMP)
        return 0

    @property
    def room_bytes(self):
        """Bytes it can hold without growing."""
        return self.room

    def prepare(self, size_t length_bytes):
        """Make room for that many bytes in all, backed by memory, so that collecting them takes no page fault.

        To be called while nobody waits. Raises MemoryError, or BufferError while the arena is exported.
        """
        cdef int code = 0
        cdef size_t end = whole_huge_pages(length_bytes)
        if end <= self.touched:
            return
        with nogil:
            if length_bytes > self.used:
                code = self.make_room(length_bytes - self.used)
            if code == 0:
                end = min(end, self.room)
                colo_populate(self.data + self.touched, end - self.touched)
                self.touched = end
        if code:
            refuse(code, length_bytes)

    def clear(self, keep_bytes=None):
        """Forget the bytes. Memory above ``keep_bytes`` goes back to the system (None: none does)."""
        cdef size_t keep
        if self.exports:
            refuse(EBUSY, 0)
        self.used = 0
        if keep_bytes is not None and self.data != NULL:
            keep = whole_huge_pages(keep_bytes)
            if keep < self.room:
                madvise(self.data + keep, self.room - keep, MADV_DONTNEED)
                self.touched = min(self.touched, keep)


cdef int refuse(int code, size_t n) except -1:
    if code == EBUSY:
        raise BufferError("the collected records are in use: release the memoryview of them first")
    raise MemoryError(f"no memory for {n} bytes of records")
