from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from colo._fast.ramblock cimport ram_block


cdef enum:
    STAGED_ZERO = 0         # length: pages in the run
    STAGED_PAGE = 1
    STAGED_XBZRLE = 2       # length: encoded bytes
    STAGED_INFLATED = 3     # data: offset in the inflated arena

    # What adding an entry returns beside 0.
    NO_ROOM = 1             # more entries than the blocks can call for
    NO_MEMORY = 2


ctypedef struct staged_entry:
    uint64_t page_offset    # in the block, bytes
    uint64_t data           # where the entry's bytes begin in the log
    uint32_t length
    uint16_t block
    uint16_t kind


cdef class Staging:
    cdef uint8_t *arena             # stream bytes as they came; address space is reserved, memory is touched as used
    cdef size_t arena_bytes
    cdef const uint8_t *log         # what entries' data count from: the arena, or a stream that lies in memory already
    cdef object lender              # keeps such a stream's memory
    cdef size_t limit               # bytes of the arena this checkpoint may use
    cdef uint8_t *inflated          # pages made of compressed records
    cdef size_t inflated_used
    cdef staged_entry *entries
    cdef size_t count
    cdef size_t room
    cdef size_t count_limit
    cdef size_t used                # arena bytes that belong to staged records
    cdef size_t high_bytes
    cdef ram_block **blocks
    cdef size_t block_count
    cdef readonly list block_list
    cdef readonly uint64_t staged_pages

    cdef int add(self, int kind, int block, uint64_t page_offset, uint64_t data, uint32_t length) noexcept nogil
    # Where a page may be made of its compressed record. 0, NO_ROOM or NO_MEMORY.
    cdef int room_for_page(self, uint8_t **room) noexcept nogil
    cdef bint no_room_for_page(self) noexcept nogil
    # Add the page that was made there.
    cdef int add_made_page(self, int block, uint64_t page_offset) noexcept nogil
    cdef int reserve_storage(self, int *bad_block, uint64_t *bad_offset) noexcept nogil
    cdef void replay(self) noexcept nogil
    cdef void replay_four(self, const staged_entry *e, ram_block *b) noexcept nogil
    cdef void forget(self) noexcept nogil
    cdef void unmap(self) noexcept
