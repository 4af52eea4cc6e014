from libc.stdint cimport uint8_t, uint64_t

from colo._fast.receive.adaptive_decoder cimport AdaptiveDecoder
from colo._fast.receive.staging cimport Staging


cdef class CompressedPages:
    cdef AdaptiveDecoder codec
    cdef uint64_t *touched          # bit per page of all watched blocks: the page has come in this checkpoint
    cdef size_t *first_word         # of each block, in touched

    cdef int watch(self, list blocks, AdaptiveDecoder codec) except -1
    # Both return 0, NO_ROOM, NO_MEMORY, or why the record is refused (ram_refusals).
    cdef int decompress(self, Staging s, int block, uint64_t offset, int encoding, const uint8_t *source,
                        int n) noexcept nogil
    cdef int inflate(self, Staging s, int block, uint64_t offset, const uint8_t *source, size_t n) noexcept nogil
