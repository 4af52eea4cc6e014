"""The kernels for pages, as a table of C functions chosen at import by what the CPU has.

What each entry promises is written in ``simd/table.h``. Others do::

    from colo._fast.kernels cimport kernels
    cdef const kernels.colo_kernels *k = kernels.active()
"""
from libc.stdint cimport uint8_t, uint64_t


cdef extern from "simd/table.h" nogil:
    enum:
        COLO_PAGE_BYTES_MIN
        COLO_PAGE_BYTES_MAX
        COLO_XBZRLE_SLACK
        COLO_XBZRLE_RUN_MAX
        COLO_HASH_KEY_SHIFT
        COLO_HASH_WORDS

    ctypedef struct colo_kernels:
        const char *name
        int (*xbzrle_encode)(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                             uint8_t *dst, int dlen) noexcept nogil
        int (*xbzrle_decode)(const uint8_t *src, int slen, uint8_t *dst, int dlen) noexcept nogil
        int (*xbzrle_check)(const uint8_t *src, int slen, int dlen) noexcept nogil
        int (*xbzrle_step)(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                           const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                           uint8_t *dst, int dlen) noexcept nogil
        int (*is_zero)(const void *p, size_t n) noexcept nogil
        size_t (*scan)(const uint8_t *memory, const uint8_t *shadow, size_t pages, size_t page_bytes,
                       uint64_t *bitmap, size_t first) noexcept nogil
        size_t (*scan_hash)(const uint8_t *memory, uint64_t *hashes, const uint8_t *key, size_t pages,
                            size_t page_bytes, uint64_t *bitmap, size_t first) noexcept nogil


# The table chosen at import.
cdef const colo_kernels *active() noexcept nogil

# The table of ``level`` (a str), or the active one for None. ValueError says which levels this machine has.
cdef const colo_kernels *for_level(object level) except NULL

# Refuse page sizes other than a power of two from 1 KiB to 64 KiB (ValueError).
cdef int check_page_bytes(Py_ssize_t page_bytes) except -1

# Pages in a buffer of size_bytes; ValueError names the buffer when that is not a whole number.
cdef Py_ssize_t whole_pages(Py_ssize_t size_bytes, Py_ssize_t page_bytes, str name) except -1

# ValueError when the two ranges of memory overlap.
cdef int check_apart(const void *a, Py_ssize_t a_bytes, const void *b, Py_ssize_t b_bytes, str names) except -1
