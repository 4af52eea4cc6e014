# The dirty bitmap as other parts of the core see it. A DirtyBitmap's words never move while the object lives.
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "bitmap.h" nogil:
    size_t colo_bitmap_words(size_t pages)
    uint64_t colo_bitmap_tail_mask(size_t pages)
    int colo_bitmap_test(const uint64_t *words, size_t page)
    size_t colo_bitmap_next_set(const uint64_t *words, size_t pages, size_t start)
    size_t colo_bitmap_next_clear(const uint64_t *words, size_t pages, size_t start)
    void colo_bitmap_fill(uint64_t *words, size_t first, size_t count, int value)
    size_t colo_bitmap_count(const uint64_t *words, size_t pages)
    size_t colo_bitmap_count_range(const uint64_t *words, size_t first, size_t count)
    Py_ssize_t colo_bitmap_put_runs(const uint64_t *words, size_t pages, uint8_t *dst, size_t room)
    Py_ssize_t colo_bitmap_get_runs(uint64_t *words, size_t pages, const uint8_t *src, size_t length)


cdef class DirtyBitmap:
    cdef uint64_t *words
    cdef readonly Py_ssize_t pages
    cdef Py_ssize_t nwords
    cdef Py_ssize_t export_shape[1]
    cdef Py_ssize_t export_stride[1]

    cdef int check_range(self, Py_ssize_t first, Py_ssize_t count) except -1
    cdef int check_same(self, DirtyBitmap other) except -1
