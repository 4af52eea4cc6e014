from libc.stdint cimport uint8_t, uint64_t


# What the loops that run without the GIL see of a block.
ctypedef struct ram_block:
    const uint8_t *name
    size_t name_bytes
    uint64_t used_length     # bytes, whole target pages
    uint8_t *memory          # NULL: pages are only counted
    uint64_t *present        # bit per page: the page has storage; without it, it reads as zero
    uint64_t *zero           # bit per page: the page is known to be all zero
    uint64_t *received       # bit per page: the page has come at least once
    int fd                   # sparse file behind memory, -1: all of memory has storage
    uint64_t zero_pages      # counts since the last clear
    uint64_t normal_pages
    uint64_t xbzrle_pages
    uint64_t xbzrle_bytes
    uint64_t compressed_pages
    uint64_t compressed_bytes


cdef class RamBlock:
    cdef ram_block c
    cdef size_t words
    cdef readonly str idstr
    cdef bytes name
    cdef object exporter
    cdef object view
    cdef uint64_t count(self, const uint64_t *words)


cdef inline bint test_bit(const uint64_t *words, uint64_t bit) noexcept nogil:
    return (words[bit >> 6] >> (bit & 63)) & 1


cdef inline void set_bit(uint64_t *words, uint64_t bit) noexcept nogil:
    words[bit >> 6] |= <uint64_t>1 << (bit & 63)


cdef inline void clear_bit(uint64_t *words, uint64_t bit) noexcept nogil:
    words[bit >> 6] &= ~(<uint64_t>1 << (bit & 63))
