# The engine that makes records of pages (ramrecords.h), as those who fill, send and compress for it see it.
from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels.kernels cimport colo_kernels
from colo._fast.send.pagecache cimport colo_cache_counts, colo_page_cache, colo_shadow


cdef extern from "<sys/uio.h>" nogil:
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len


cdef extern from "ramrecords.h" nogil:
    enum:
        COLO_KINDS
        COLO_NAME_ROOM
    uint64_t WIRE_RAM_EOS
    ctypedef struct colo_record_counts:
        uint64_t *pages
        uint64_t *bytes
    ctypedef struct colo_page_codec:
        int (*compress)(void *state, const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                        int xbzrle_bytes, uint8_t *dst, int room, int *encoding) noexcept nogil
        void *state
        int floor_bytes
    ctypedef struct colo_ram_block:
        const uint8_t *memory
        size_t pages
        size_t page_bytes
        const uint64_t *dirty
        colo_shadow *shadow
        colo_page_cache *cache
        uint64_t address
        uint64_t age
        const colo_kernels *kernels
        int detect_zero
        uint8_t *name
        size_t name_bytes
    ctypedef struct colo_records:
        uint8_t *arena
        size_t used, room
        iovec *iov
        size_t first, count, max
        uint64_t bytes
        int outside
        int named
        uint8_t *snapshot
        colo_page_codec codec
        colo_record_counts counts
        colo_cache_counts remembered
    void colo_put_u64(uint8_t *p, uint64_t value)
    size_t colo_record_worst_bytes(size_t page_bytes)
    void colo_records_wrote(colo_records *r, size_t n)
    void colo_records_point(colo_records *r, const uint8_t *page, size_t n)
    void colo_records_reset(colo_records *r)
    size_t colo_encode_pages(colo_records *r, const colo_ram_block *b, size_t start, size_t end,
                             uint64_t limit_bytes, uint64_t *seen)
