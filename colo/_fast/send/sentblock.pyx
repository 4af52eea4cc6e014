"""The RAM block whose pages are being sent: its memory, held exported, which pages, and what is remembered of them."""
cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from colo._fast.kernels.bitmap cimport DirtyBitmap
from colo._fast.send.pagecache cimport PageCache, RememberedPages, ShadowCache


@cython.no_gc_clear  # clearing would drop the buffer's owner without releasing the buffer
cdef class SentBlock:
    """The open block of one :class:`~colo._fast.send.pageencoder.PageEncoder`. For the core's own use: nothing is callable
    from Python."""

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.memory)

    cdef int open(self, str idstr, memory, DirtyBitmap bitmap, RememberedPages cache, uint64_t address, uint64_t age,
                  bint detect_zero) except -1:
        """Hold ``memory`` in the place of the block before. Raises ValueError or BufferError, with nothing changed, when
        something does not fit (:meth:`PageEncoder.begin_block`)."""
        cdef bytes name = idstr.encode()
        cdef Py_buffer view
        cdef Py_ssize_t page_bytes = self.c.page_bytes
        cdef size_t pages
        cdef uint8_t *copy
        cdef uint8_t *live
        if not 0 < len(name) <= 255:
            raise ValueError(f"a RAM block's name has 1 to 255 bytes, not {len(name)}: {idstr!r}")
        PyObject_GetBuffer(memory, &view, PyBUF_ND | PyBUF_FORMAT)
        try:
            if view.itemsize != 1:
                raise ValueError(f"RAM block {idstr!r}: a buffer of single bytes is needed, not items of "
                                 f"{view.itemsize}")
            if view.len % page_bytes:
                raise ValueError(f"RAM block {idstr!r}: {view.len} bytes are no whole number of pages of "
                                 f"{page_bytes}")
            pages = view.len // page_bytes
            if bitmap is not None and <size_t>bitmap.pages != pages:
                raise ValueError(f"RAM block {idstr!r} has {pages} pages, its dirty bitmap {bitmap.pages}")
            if cache is not None and cache.page_bytes != page_bytes:
                raise ValueError(f"RAM block {idstr!r}: the cache's pages have {cache.page_bytes} bytes, not "
                                 f"{page_bytes}")
            if isinstance(cache, ShadowCache):
                if (<ShadowCache>cache).shadow.pages != pages:
                    raise ValueError(f"RAM block {idstr!r} has {pages} pages, its shadow copy {cache.pages}")
                copy = (<ShadowCache>cache).shadow.data
                live = <uint8_t *>view.buf
                if copy < live + view.len and live < copy + view.len:
                    raise ValueError(f"RAM block {idstr!r} and its shadow copy overlap")
            elif cache is not None and not isinstance(cache, PageCache):
                raise ValueError(f"RAM block {idstr!r}: not a PageCache or ShadowCache: {cache!r}")
        except ValueError:
            PyBuffer_Release(&view)
            raise
        if self.held:
            PyBuffer_Release(&self.memory)
        self.memory = view
        self.held = True
        self.bitmap = bitmap
        self.remembered = cache
        self.c.memory = <const uint8_t *>view.buf
        self.c.pages = pages
        self.c.dirty = NULL if bitmap is None else bitmap.words
        self.c.shadow = &(<ShadowCache>cache).shadow if isinstance(cache, ShadowCache) else NULL
        self.c.cache = &(<PageCache>cache).cache if isinstance(cache, PageCache) else NULL
        self.c.address = address
        self.c.age = age
        self.c.detect_zero = detect_zero
        self.c.name[0] = <uint8_t>len(name)
        memcpy(&self.c.name[1], PyBytes_AS_STRING(name), len(name))
        self.c.name_bytes = 1 + len(name)
        return 0

    cdef void close(self):
        """Let go of the memory; no page is left to send."""
        if self.held:
            PyBuffer_Release(&self.memory)
            self.held = False
        self.c.pages = 0
        self.bitmap = None
        self.remembered = None
