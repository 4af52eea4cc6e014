"""Dirty pages as the VM itself reports them: by ranges, by bitmap, or bit by bit from native code."""
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t, uintptr_t

from colo._fast.trackers.base cimport BlockTracker, get_words, merge_words


cdef class ExplicitTracker(BlockTracker):
    """Dirty pages of one block as the VM reports them. Reports may come from any thread, after the write
    was made."""

    name = "explicit"
    atomic = True
    by_content = False

    cdef int begin(self) except -1:
        return 0

    cdef int find(self, uint64_t *found) except -1:
        # What was reported lies in the shared part's own bitmap, beside what was given back.
        return 0

    def report(self, offset, length=1):
        """``length`` bytes from ``offset`` on were written. ValueError when the range leaves the block."""
        self.mark(offset, length)

    def report_ranges(self, ranges):
        """Many at once: uint64 of shape (n, 2), rows of (offset, length) in bytes. ValueError, and nothing
        reported, when one of them leaves the block or the buffer is not whole rows."""
        cdef Py_buffer view
        cdef const uint64_t *rows
        cdef Py_ssize_t i, bad = -1, count
        PyObject_GetBuffer(ranges, &view, PyBUF_C_CONTIGUOUS)
        try:
            if view.len % 16 or <uintptr_t>view.buf & 7:
                raise ValueError(f"{self.block}: {view.len} bytes are no aligned rows of two uint64 "
                                 "(offset, length)")
            rows = <const uint64_t *>view.buf
            count = view.len // 16
            with nogil:
                for i in range(count):
                    if rows[2 * i] > self.length_bytes or rows[2 * i + 1] > self.length_bytes - rows[2 * i]:
                        bad = i
                        break
                else:
                    for i in range(count):
                        self.mark_bytes(rows[2 * i], rows[2 * i + 1])
            if bad >= 0:
                raise ValueError(f"{self.block}: range {bad}, offset {rows[2 * bad]:#x} + "
                                 f"{rows[2 * bad + 1]:#x} bytes, leaves the block of {self.length_bytes:#x}")
        finally:
            PyBuffer_Release(&view)

    def report_pages(self, bitmap):
        """The pages whose bits are set in a bitmap of ``8 * ceil(pages / 64)`` bytes were written."""
        cdef Py_buffer view
        get_words(bitmap, &view, self.words, False, self.block)
        with nogil:
            merge_words(self.pending, <const uint64_t *>view.buf, self.words, self.tail_mask)
        PyBuffer_Release(&view)

    @property
    def bits(self):
        """The tracker's own bitmap (format ``Q``), for native code to set bits in with atomic OR. It never
        moves."""
        return memoryview(self.pending_store).cast("Q")
