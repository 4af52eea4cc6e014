# Decoding of single pages that a colo end compressed, as the page decoder uses it.
from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    DECODED = 0
    DECODE_MALFORMED = -1
    DECODE_UNKNOWN = -2
    DECODE_MISSING = -3


cdef class AdaptiveDecoder:
    cdef uint8_t *work
    cdef void *zstd_context
    cdef readonly Py_ssize_t page_bytes

    cdef int decode(self, int encoding, const uint8_t *src, int length, const uint8_t *old_page,
                    uint8_t *new_page) noexcept nogil
    cdef int apply_all(self, const uint8_t *src, size_t length, uint8_t *memory, size_t memory_bytes,
                       size_t *at, uint64_t *pages) noexcept nogil
