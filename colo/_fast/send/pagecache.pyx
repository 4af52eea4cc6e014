"""What the sender remembers of the receiver's pages, to send only what changed in them.

:class:`PageCache` is bounded and works as QEMU's XBZRLE cache does (migration/page_cache.c): pages that find
no room are sent whole. :class:`ShadowCache` remembers every page of one RAM block, so nothing ever misses,
where memory for a second copy of the RAM is at hand.

Both must hold exactly what the receiver holds. After a checkpoint that was not committed, nobody knows what
the receiver holds of the pages in it: :meth:`invalidate` them before the next one is encoded.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from colo._fast.kernels.bitmap cimport (
    DirtyBitmap, colo_bitmap_count, colo_bitmap_fill, colo_bitmap_next_set,
)
from colo._fast.kernels.kernels cimport COLO_PAGE_BYTES_MAX, COLO_PAGE_BYTES_MIN

from typing import NamedTuple


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    void *MAP_FAILED
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE


cdef extern from "<pthread.h>" nogil:
    unsigned long pthread_self()


cdef Py_ssize_t CAPACITY_BYTES_MAX = 1 << 46


class CacheStats(NamedTuple):
    """Counts since the cache was made.

    ``hits``: pages encoded against a remembered copy; of these ``unchanged`` had no change, ``overflows``
    were sent raw because their encoding would have been longer, the others took ``encoded_bytes`` (without
    record headers). ``misses``: pages sent whole for want of a copy; of these ``refused`` found their slot
    taken by a young page. ``evicted``: copies given up.
    """

    hits: int
    misses: int
    unchanged: int
    overflows: int
    refused: int
    evicted: int
    encoded_bytes: int


cdef int check_page_bytes(Py_ssize_t page_bytes) except -1:
    if page_bytes < COLO_PAGE_BYTES_MIN or page_bytes > COLO_PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
        raise ValueError(f"a page has {COLO_PAGE_BYTES_MIN} to {COLO_PAGE_BYTES_MAX} bytes, a power of two, "
                         f"not {page_bytes}")
    return 0


cdef void *map_pages(size_t length) except NULL:
    # Anonymous memory is zero, and is only taken up as pages are first remembered.
    cdef void *p = mmap(NULL, max(length, 1), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        raise MemoryError(f"no memory for {length} bytes of remembered pages")
    return p


cdef class RememberedPages:
    """The common part of :class:`PageCache` and :class:`ShadowCache`; not made by itself."""

    def __cinit__(self, *args, **kwargs):
        if pthread_mutex_init(&self.mutex, NULL) != 0:
            raise MemoryError("no memory for a lock")
        self.mutex_made = True

    def __dealloc__(self):
        if self.mutex_made:
            pthread_mutex_destroy(&self.mutex)

    cdef int hold(self) except -1:
        if self.holder == pthread_self():
            raise BufferError("this cache is in use by an encoder that this very thread is inside of "
                              "(a signal handler?)")
        with nogil:
            pthread_mutex_lock(&self.mutex)
        self.holder = pthread_self()
        return 0

    cdef void release(self) noexcept:
        self.holder = 0
        pthread_mutex_unlock(&self.mutex)

    cdef colo_cache_counts *counts(self) noexcept:
        return NULL

    @property
    def stats(self):
        """A :class:`CacheStats`."""
        cdef colo_cache_counts *c = self.counts()
        if c == NULL:
            raise TypeError("make a PageCache or a ShadowCache")
        return CacheStats(c.hits, c.misses, c.unchanged, c.overflows, c.refused, c.evicted, c.encoded_bytes)


cdef class PageCache(RememberedPages):
    """A cache of at most ``capacity_bytes`` of pages, direct-mapped by page address, one for all RAM blocks.

    The number of pages is the greatest power of two that fits, as in QEMU. Slots in use by a page that was
    sent during the last two checkpoints (``age``, a number the caller raises by one per checkpoint) are not
    given to another. Raises ValueError when
    ``capacity_bytes`` does not hold one page or ``page_bytes`` is not a power of two of 1024 to 65536.
    """

    def __init__(self, Py_ssize_t capacity_bytes, Py_ssize_t page_bytes=4096):
        check_page_bytes(page_bytes)
        if self.cache.slots != NULL:
            raise TypeError("a PageCache is made once; resize() it")
        self.page_bytes = page_bytes
        self.make(&self.cache, capacity_bytes)

    def __dealloc__(self):
        self.unmake(&self.cache)

    cdef int make(self, colo_page_cache *c, Py_ssize_t capacity_bytes) except -1:
        cdef size_t nslots = 1
        if capacity_bytes < self.page_bytes:
            raise ValueError(f"a page cache of {capacity_bytes} bytes does not hold one page of "
                             f"{self.page_bytes}")
        if capacity_bytes > CAPACITY_BYTES_MAX:
            raise ValueError(f"a page cache of {capacity_bytes} bytes is more than any machine has")
        while nslots * 2 * self.page_bytes <= <size_t>capacity_bytes:
            nslots *= 2
        c.slots = <colo_cache_slot *>malloc(nslots * sizeof(colo_cache_slot))
        if c.slots == NULL:
            raise MemoryError(f"no memory for a page cache of {nslots} pages")
        try:
            c.data = <uint8_t *>map_pages(nslots * self.page_bytes)
        except MemoryError:
            free(c.slots)
            c.slots = NULL
            raise
        c.nslots = nslots
        c.page_bytes = self.page_bytes
        colo_cache_clear(c)
        return 0

    cdef void unmake(self, colo_page_cache *c) noexcept:
        if c.slots != NULL:
            munmap(c.data, c.nslots * c.page_bytes)
            free(c.slots)
            c.slots = NULL

    cdef colo_cache_counts *counts(self) noexcept:
        return &self.cache.counts

    @property
    def capacity_bytes(self):
        """Bytes of pages it can hold: a power of two."""
        return self.cache.nslots * self.cache.page_bytes

    @property
    def used_pages(self):
        """Pages it holds now."""
        return colo_cache_used(&self.cache)

    def resize(self, Py_ssize_t capacity_bytes):
        """Change the capacity, also while an encoder uses the cache (its present call is waited for). Entries
        move over; of two that meet in one slot the younger stays. ValueError, MemoryError: the cache is as
        before. BufferError: called from within an encoder's call."""
        cdef colo_page_cache new
        memset(&new, 0, sizeof(new))
        self.make(&new, capacity_bytes)
        try:
            self.hold()
        except BufferError:
            self.unmake(&new)
            raise
        with nogil:
            colo_cache_move(&new, &self.cache)
        new.counts = self.cache.counts
        self.cache, new = new, self.cache
        self.release()
        self.unmake(&new)

    def invalidate(self, DirtyBitmap pages not None, uint64_t address=0):
        """Forget the dirty pages of a RAM block that begins at ``address``: those of a checkpoint that was
        not committed."""
        cdef size_t page = 0, index
        cdef uint64_t where
        self.hold()
        with nogil:
            while True:
                page = colo_bitmap_next_set(pages.words, pages.pages, page)
                if page >= <size_t>pages.pages:
                    break
                where = address + page * <uint64_t>self.cache.page_bytes
                index = colo_cache_index(&self.cache, where)
                if self.cache.slots[index].address == where:
                    self.cache.slots[index].address = ~(<uint64_t>0)
                page += 1
        self.release()

    def invalidate_all(self):
        """Forget everything: after the connection was lost, say."""
        self.hold()
        colo_cache_clear(&self.cache)
        self.release()

    def get(self, uint64_t address):
        """The remembered copy of the page at ``address`` as bytes, or None. For tests and inspection: it does
        not count as a use."""
        cdef size_t index
        cdef bytes found = None
        self.hold()
        index = colo_cache_index(&self.cache, address)
        if self.cache.slots[index].address == address:
            found = (<char *>self.cache.data + index * self.cache.page_bytes)[:self.cache.page_bytes]
        self.release()
        return found


@cython.no_gc_clear  # clearing would drop the buffer's owner without releasing the buffer
cdef class ShadowCache(RememberedPages):
    """A copy of every page of one RAM block of ``pages`` pages, none valid at first.

    ``memory`` may be given to hold it: a writable contiguous buffer of ``pages * page_bytes`` bytes (a file
    mapping, say), kept exported while this object lives; else memory is taken up as pages are first sent.
    ``valid`` is the bitmap of the pages that hold what the receiver holds. Raises ValueError or BufferError
    when sizes do not fit or the buffer is read-only.
    ``memoryview(shadow)`` is a read-only view of the bytes.
    """

    def __init__(self, Py_ssize_t pages, Py_ssize_t page_bytes=4096, object memory=None):
        check_page_bytes(page_bytes)
        if self.shadow.data != NULL:
            raise TypeError("a ShadowCache is made once")
        valid = DirtyBitmap(pages)
        if memory is None:
            self.shadow.data = <uint8_t *>map_pages(<size_t>pages * page_bytes)
            self.mapped_bytes = max(pages * page_bytes, 1)
        else:
            PyObject_GetBuffer(memory, &self.view, PyBUF_WRITABLE | PyBUF_ND | PyBUF_FORMAT)
            self.viewed = True
            if self.view.itemsize != 1 or self.view.len != pages * page_bytes:
                raise ValueError(f"a shadow copy of {pages} pages needs {pages * page_bytes} single bytes, "
                                 f"here are {self.view.len} bytes in items of {self.view.itemsize}")
            self.shadow.data = <uint8_t *>self.view.buf
        self.page_bytes = page_bytes
        self.valid = valid
        self.shadow.valid = self.valid.words
        self.shadow.pages = pages
        self.shadow.page_bytes = page_bytes

    def __dealloc__(self):
        if self.viewed:
            PyBuffer_Release(&self.view)
        elif self.shadow.data != NULL:
            munmap(self.shadow.data, self.mapped_bytes)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.shadow.data, self.shadow.pages * self.shadow.page_bytes, 1, flags)

    cdef colo_cache_counts *counts(self) noexcept:
        return &self.shadow.counts

    @property
    def pages(self):
        """Pages of the RAM block."""
        return self.shadow.pages

    @property
    def used_pages(self):
        """Pages that are valid now."""
        return colo_bitmap_count(self.shadow.valid, self.shadow.pages)

    def invalidate(self, DirtyBitmap pages not None):
        """Forget the dirty pages: those of a checkpoint that was not committed. ValueError: another number of
        pages."""
        self.hold()
        try:
            self.valid.subtract(pages)
        finally:
            self.release()

    def invalidate_all(self):
        """Forget everything: after the connection was lost, say."""
        self.hold()
        colo_bitmap_fill(self.shadow.valid, 0, self.shadow.pages, 0)
        self.release()

    def validate_all(self):
        """Promise that every byte of the copy is what the receiver holds: when both began from one image,
        say."""
        self.hold()
        colo_bitmap_fill(self.shadow.valid, 0, self.shadow.pages, 1)
        self.release()
