"""Dirty pages by comparing memory with a shadow copy of it: works everywhere, costs as much memory again
and reads both.

The decision is by content, which has two consequences. A page written with what it held already is not
dirty. And the page that is *sent* must be the one in the shadow: take it from there, or keep the VM paused
from the harvest until the pages are copied. (Otherwise: harvested as B, changed to C, sent as C, changed
back to B; the next harvest finds B in the shadow and reports nothing.)

Who copies: with ``refresh=True`` the harvest copies each dirty page into the shadow, in the same pass. With
``refresh=False`` it only compares, and whoever encodes the page, needing the old one for XBZRLE, brings the
shadow up to date, by itself (as the fused XBZRLE step does) or by :meth:`refresh`; until then each harvest
reports the page again.
"""
from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from colo._fast.kernels cimport kernels
from colo._fast.trackers.base cimport BlockTracker, get_words

import mmap

from colo._fast.trackers.base import ProcessMemory
from colo.errors import Unsupported


cdef enum:
    CHUNK_BYTES = 1 << 18               # compared, then copied while it is in the cache


cdef class ShadowTracker(BlockTracker):
    """Dirty pages of one block by comparison with a shadow copy; see the module's text for who copies.

    ``shadow`` is the caller's own buffer of the block's size (a page cache that is kept anyway), or None to
    allocate one at the start. ``refresh`` says whether a harvest brings it up to date.
    """

    name = "shadow"
    atomic = True
    by_content = True

    cdef readonly bint refreshes
    cdef object given
    cdef object held
    cdef uint8_t *copy

    def __init__(self, memory, *, block="ram", size_t page_bytes=4096, shadow=None, refresh=True):
        if isinstance(memory, ProcessMemory):
            raise Unsupported(f"{block}: shadow compares memory of this process; map the other's here first")
        super().__init__(memory, block=block, page_bytes=page_bytes)
        self.refreshes = refresh
        if shadow is not None:
            with memoryview(shadow) as view:
                if view.readonly or not view.c_contiguous:
                    raise BufferError(f"{block}: the shadow's buffer is read-only or not contiguous")
                if view.nbytes != self.length_bytes:
                    raise ValueError(f"{block}: a shadow of {view.nbytes} bytes for a block of "
                                     f"{self.length_bytes}")
        self.given = shadow

    @property
    def shadow(self):
        """The shadow copy, format ``B``, while the tracker is started; otherwise None."""
        return None if self.held is None else self.held[:]

    cdef int begin(self) except -1:
        cdef uint8_t[::1] view
        whole = self.given
        if whole is None:
            whole = mmap.mmap(-1, self.length_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                try:
                    whole.madvise(mmap.MADV_HUGEPAGE)
                except OSError:
                    pass                # a kernel without transparent huge pages
        view = held = memoryview(whole).cast("B")
        if held.nbytes != self.length_bytes:
            raise ValueError(f"{self.block}: a shadow of {held.nbytes} bytes for a block of "
                             f"{self.length_bytes}")
        self.held = held
        self.copy = &view[0]
        with nogil:
            memcpy(self.copy, self.base, self.length_bytes)
        return 0

    cdef int find(self, uint64_t *found) except -1:
        cdef const kernels.colo_kernels *table = kernels.active()
        cdef size_t chunk = CHUNK_BYTES // self.page_bytes, first = 0, count, at
        with nogil:
            if not self.refreshes:
                table.scan(self.base, self.copy, self.pages, self.page_bytes, found, 0)
            else:
                while first < self.pages:
                    count = min(chunk, self.pages - first)
                    at = first * self.page_bytes
                    if table.scan(self.base + at, self.copy + at, count, self.page_bytes, found, first):
                        self.copy_pages(found, first, count)
                    first += count
        return 0

    cdef void copy_pages(self, const uint64_t *words, size_t first, size_t count) noexcept nogil:
        """The pages of first .. first + count - 1 whose bits are set, from memory to the shadow."""
        cdef size_t page = first, end = first + count
        cdef uint64_t word
        while page < end:
            word = words[page >> 6] >> (page & 63)
            if word == 0:
                page = (page | 63) + 1
                continue
            page += ctz(word)
            if page >= end:
                break
            memcpy(self.copy + page * self.page_bytes, self.base + page * self.page_bytes, self.page_bytes)
            page += 1

    def refresh(self, bitmap):
        """Copy the pages whose bits are set in ``bitmap`` from memory into the shadow. TrackerError when
        not started, or the memory is gone. The VM must be paused, or the pages be taken from the shadow
        afterwards."""
        cdef Py_buffer view
        with self.lock:
            self.require_running()
            self.check_memory()
            get_words(bitmap, &view, self.words, False, self.block)
            with nogil:
                self.copy_pages(<const uint64_t *>view.buf, 0, self.pages)
            PyBuffer_Release(&view)

    cdef int end(self) except -1:
        self.held = None
        self.copy = NULL
        return 0


cdef extern from *:
    """
    #define colo_ctz(word) ((size_t)__builtin_ctzll(word))
    """
    size_t ctz "colo_ctz"(uint64_t word) noexcept nogil
