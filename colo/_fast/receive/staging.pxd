from libc.stdint cimport uint8_t, uint32_t, uint64_t

from colo._fast.kernels.ramblock cimport ram_block
from colo._fast.receive.redolog cimport RedoLog


cdef class Staging(RedoLog):
    cdef const uint8_t *log         # what entries' data count from: the arena, or a stream that lies in memory already
    cdef object lender              # keeps such a stream's memory
    cdef size_t limit               # bytes of the arena this checkpoint may use
    cdef size_t used                # arena bytes that belong to staged records
    cdef size_t inflated_used
    cdef size_t count
    cdef size_t count_limit
    cdef size_t high_bytes
    cdef ram_block **blocks
    cdef size_t block_count
    cdef readonly list block_list
    cdef readonly uint64_t staged_pages

    cdef int check_entries(self, size_t records, size_t log_bytes, size_t pages_bytes, size_t *bad) noexcept nogil
    # 0, NO_ROOM, NO_MEMORY or OUT_OF_STORAGE.
    cdef int add(self, int kind, int block, uint64_t page_offset, uint64_t data, uint32_t length) noexcept nogil
    # Where a page may be made of its compressed record. 0, or as add().
    cdef int room_for_page(self, uint8_t **room) noexcept nogil
    cdef bint no_room_for_page(self) noexcept nogil
    # Add the page that was made there.
    cdef int add_made_page(self, int block, uint64_t page_offset) noexcept nogil
    cdef int reserve_storage(self, int *bad_block, uint64_t *bad_offset) noexcept nogil
    cdef void replay(self) noexcept nogil
    cdef void forget(self) noexcept nogil
