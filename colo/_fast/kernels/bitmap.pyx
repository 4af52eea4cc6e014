"""Dirty bitmaps: which pages of a RAM block were written.

Page *n* is bit ``n % 64`` of 64-bit word ``n // 64``, in the machine's own byte order, so a bitmap's words
can be shared with trackers and encoders through the buffer protocol. Nothing here loops over pages in Python,
and long operations run without the GIL. A bitmap is not locked: who harvests it owns it.
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from colo import wire
from colo.errors import LimitExceeded, StreamError, Truncated

cdef Py_ssize_t MAX_PAGES = 1 << 44
cdef Py_ssize_t HEADER_BYTES = wire.BITMAP_HEADER_BYTES
cdef char *WORD_FORMAT = b"Q"
cdef uint8_t FORM_BITS = wire.BitmapForm.BITS
cdef uint8_t FORM_RUNS = wire.BitmapForm.RUNS


cdef int check_aligned(const void *p, str name) except -1:
    if <size_t>p % 8:
        raise ValueError(f"{name} is misaligned: its items have 8 bytes, its address is not a multiple of that")
    return 0


cdef class DirtyBitmap:
    """A bitmap of ``pages`` pages, all clean at first.

    Raises ValueError when ``pages`` is negative or over 2**44, MemoryError when there is no memory for it.
    ``memoryview(bitmap)`` is a writable view of its words, shape ``(ceil(pages / 64),)``, format ``Q``; bits
    past the last page are ignored.
    """

    def __cinit__(self, Py_ssize_t pages):
        if pages < 0 or pages > MAX_PAGES:
            raise ValueError(f"a dirty bitmap has 0 to 2**44 pages, not {pages}")
        self.pages = pages
        self.nwords = <Py_ssize_t>colo_bitmap_words(pages)
        self.words = <uint64_t *>calloc(max(self.nwords, 1), sizeof(uint64_t))
        if self.words == NULL:
            raise MemoryError(f"no memory for a dirty bitmap of {pages} pages")
        self.export_shape[0] = self.nwords
        self.export_stride[0] = sizeof(uint64_t)

    def __dealloc__(self):
        free(self.words)

    def __getbuffer__(self, Py_buffer *view, int flags):
        view.buf = self.words
        view.obj = self
        view.len = self.nwords * <Py_ssize_t>sizeof(uint64_t)
        view.readonly = 0
        view.itemsize = sizeof(uint64_t)
        view.format = WORD_FORMAT if flags & PyBUF_FORMAT else NULL
        view.ndim = 1
        view.shape = self.export_shape if flags & PyBUF_ND else NULL
        view.strides = self.export_stride if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL

    cdef int check_range(self, Py_ssize_t first, Py_ssize_t count) except -1:
        if first < 0 or count < 0 or first > self.pages or count > self.pages - first:
            raise ValueError(f"pages {first}..{first + count} do not lie in a bitmap of {self.pages} pages")
        return 0

    cdef int check_same(self, DirtyBitmap other) except -1:
        if other.pages != self.pages:
            raise ValueError(f"bitmaps of {self.pages} and {other.pages} pages do not belong to one RAM "
                             "block")
        return 0

    def set(self, Py_ssize_t first, Py_ssize_t count=1):
        """Mark ``count`` pages from ``first`` on as dirty. ValueError when they lie outside; nothing is
        changed then."""
        self.check_range(first, count)
        colo_bitmap_fill(self.words, first, count, 1)

    def clear(self, Py_ssize_t first=0, object count=None):
        """Mark ``count`` pages from ``first`` on (default: to the end) as clean. ValueError when they lie
        outside."""
        cdef Py_ssize_t n = self.pages - first if count is None else count
        self.check_range(first, n)
        colo_bitmap_fill(self.words, first, n, 0)

    def set_pages(self, const uint64_t[::1] numbers not None):
        """Mark the pages with these numbers (uint64, shape (n,)) as dirty. ValueError names the first that
        lies outside, before any is marked."""
        cdef Py_ssize_t i, n = numbers.shape[0], bad = -1
        if n == 0:
            return
        cdef const uint64_t *p = &numbers[0]
        check_aligned(p, "numbers")
        with nogil:
            for i in range(n):
                if p[i] >= <uint64_t>self.pages:
                    bad = i
                    break
            if bad < 0:
                for i in range(n):
                    self.words[p[i] >> 6] |= (<uint64_t>1) << (p[i] & 63)
        if bad >= 0:
            raise ValueError(f"number {bad} is page {numbers[bad]}: outside a bitmap of {self.pages} pages")

    def test(self, Py_ssize_t page):
        """Whether one page is dirty. ValueError when it lies outside."""
        self.check_range(page, 1)
        return bool(colo_bitmap_test(self.words, page))

    def count(self, Py_ssize_t first=0, object count=None):
        """How many of ``count`` pages from ``first`` on (default: all) are dirty."""
        cdef Py_ssize_t n = self.pages - first if count is None else count
        cdef size_t total
        self.check_range(first, n)
        with nogil:
            total = colo_bitmap_count_range(self.words, first, n)
        return total

    def any(self):
        """Whether any page is dirty."""
        return colo_bitmap_next_set(self.words, self.pages, 0) < <size_t>self.pages

    def next_dirty(self, Py_ssize_t start=0):
        """The first dirty page at or after ``start``, or ``pages`` when there is none."""
        self.check_range(start, 0)
        return colo_bitmap_next_set(self.words, self.pages, start)

    def union(self, DirtyBitmap other not None):
        """Mark the pages that are dirty in ``other`` (of the same number of pages, else ValueError)."""
        cdef Py_ssize_t i
        self.check_same(other)
        with nogil:
            for i in range(self.nwords):
                self.words[i] |= other.words[i]

    def subtract(self, DirtyBitmap other not None):
        """Clear the pages that are dirty in ``other`` (of the same number of pages, else ValueError)."""
        cdef Py_ssize_t i
        self.check_same(other)
        with nogil:
            for i in range(self.nwords):
                self.words[i] &= ~other.words[i]

    def copy(self):
        """A bitmap of its own with the same pages dirty."""
        cdef DirtyBitmap new = DirtyBitmap(self.pages)
        memcpy(new.words, self.words, self.nwords * sizeof(uint64_t))
        return new

    def take(self):
        """Move the dirty pages out into a new bitmap and leave this one clean: a harvest, whose owner must
        put the bits back by :meth:`union` if the checkpoint made of them is not committed."""
        cdef DirtyBitmap new = DirtyBitmap(self.pages)
        # Copied, not swapped: exported views go on showing this bitmap's words.
        memcpy(new.words, self.words, self.nwords * sizeof(uint64_t))
        memset(self.words, 0, self.nwords * sizeof(uint64_t))
        return new

    def runs(self):
        """The runs of dirty pages, in order, as a list of (first page, number of pages)."""
        cdef size_t end = 0, start
        cdef size_t pages = self.pages
        cdef list found = []
        while True:
            start = colo_bitmap_next_set(self.words, pages, end)
            if start == pages:
                return found
            end = colo_bitmap_next_clear(self.words, pages, start)
            found.append((start, end - start))

    def runs_into(self, uint64_t[:, ::1] out not None, Py_ssize_t start=0):
        """Write runs of dirty pages from page ``start`` on into ``out`` (uint64, shape (n, 2): first page,
        pages), without the GIL. Returns (rows written, page to go on from); the latter is ``pages`` when all
        are written."""
        cdef size_t at, end = start
        cdef size_t pages = self.pages
        cdef Py_ssize_t row = 0, rows = out.shape[0]
        cdef uint64_t *to
        self.check_range(start, 0)
        if out.shape[1] != 2:
            raise ValueError(f"runs go into rows of 2 numbers, not {out.shape[1]}")
        if rows == 0:
            return 0, start
        to = &out[0, 0]
        check_aligned(to, "out")
        with nogil:
            while row < rows:
                at = colo_bitmap_next_set(self.words, pages, end)
                if at == pages:
                    end = pages
                    break
                end = colo_bitmap_next_clear(self.words, pages, at)
                to[2 * row] = at
                to[2 * row + 1] = end - at
                row += 1
        return row, end

    def to_bytes(self):
        """Serialise, in the shorter of the two forms of ``wire.BitmapForm``: at most 9 + ceil(pages / 8)
        bytes."""
        cdef Py_ssize_t bits_bytes = (self.pages + 7) // 8, i, n
        cdef bytes made = PyBytes_FromStringAndSize(NULL, HEADER_BYTES + bits_bytes)
        cdef uint8_t *dst = <uint8_t *>PyBytes_AS_STRING(made)
        cdef uint64_t word
        for i in range(8):
            dst[i] = (<uint64_t>self.pages >> (56 - 8 * i)) & 0xff
        dst[8] = FORM_RUNS
        with nogil:
            n = colo_bitmap_put_runs(self.words, self.pages, dst + HEADER_BYTES, bits_bytes)
            if n < 0:
                dst[8] = FORM_BITS
                n = bits_bytes
                for i in range(bits_bytes):
                    word = self.words[i // 8]
                    if i // 8 == self.nwords - 1:
                        word &= colo_bitmap_tail_mask(self.pages)
                    dst[HEADER_BYTES + i] = (word >> (8 * (i % 8))) & 0xff
        return made if n == bits_bytes else made[:HEADER_BYTES + n]

    @staticmethod
    def from_bytes(const uint8_t[::1] data not None, Py_ssize_t max_pages):
        """The bitmap that :meth:`to_bytes` wrote. Raises Truncated, LimitExceeded (more than ``max_pages``
        pages; nothing is allocated) or StreamError; ``offset`` in them counts from the start of ``data``."""
        cdef Py_ssize_t length = data.shape[0], i, bad = -1, bits_bytes
        cdef uint64_t pages = 0
        cdef DirtyBitmap new
        cdef const uint8_t *src
        if length < HEADER_BYTES:
            raise Truncated(f"a bitmap's header has {HEADER_BYTES} bytes, here are {length}",
                            where="dirty bitmap", offset=length, value=length)
        src = &data[0]
        for i in range(8):
            pages = pages << 8 | src[i]
        if pages > <uint64_t>max(max_pages, 0) or pages > <uint64_t>MAX_PAGES:
            raise LimitExceeded(f"{pages} pages, where at most {max_pages} are allowed: the two ends "
                                "disagree on the RAM block's size", where="dirty bitmap", offset=0,
                                value=pages)
        bits_bytes = (<Py_ssize_t>pages + 7) // 8
        if src[8] != FORM_BITS and src[8] != FORM_RUNS:
            raise StreamError(f"unknown form {src[8]}", where="dirty bitmap", offset=8, value=src[8])
        if src[8] == FORM_BITS and length - HEADER_BYTES != bits_bytes:
            raise (Truncated if length - HEADER_BYTES < bits_bytes else StreamError)(
                f"{pages} pages take {bits_bytes} bytes, here are {length - HEADER_BYTES}",
                where="dirty bitmap", offset=min(length, HEADER_BYTES + bits_bytes),
                value=length - HEADER_BYTES)
        new = DirtyBitmap(pages)
        with nogil:
            if src[8] == FORM_RUNS:
                bad = colo_bitmap_get_runs(new.words, pages, src + HEADER_BYTES, length - HEADER_BYTES)
            else:
                for i in range(bits_bytes):
                    new.words[i // 8] |= <uint64_t>src[HEADER_BYTES + i] << (8 * (i % 8))
                if new.nwords and new.words[new.nwords - 1] & ~colo_bitmap_tail_mask(pages):
                    bad = bits_bytes - 1
        if bad == length - HEADER_BYTES:
            raise Truncated("a run of pages has no length", where="dirty bitmap", offset=length)
        if bad >= 0:
            raise StreamError("a run of pages is cut short, not in its shortest form, or lies outside the "
                              f"{pages} pages", where="dirty bitmap", offset=HEADER_BYTES + bad,
                              value=src[HEADER_BYTES + bad])
        return new

    def __eq__(self, other):
        if not isinstance(other, DirtyBitmap):
            return NotImplemented
        cdef DirtyBitmap b = <DirtyBitmap>other
        cdef Py_ssize_t i
        if b.pages != self.pages:
            return False
        for i in range(self.nwords - 1):
            if self.words[i] != b.words[i]:
                return False
        i = self.nwords - 1
        return i < 0 or not (self.words[i] ^ b.words[i]) & colo_bitmap_tail_mask(self.pages)

    __hash__ = None

    def __repr__(self):
        return f"<DirtyBitmap {self.count()} of {self.pages} pages dirty>"
