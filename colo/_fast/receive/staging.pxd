from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from colo._fast.kernels.ramblock cimport ram_block


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
    cdef int log_fd, entries_fd, pages_fd       # the log's files, -1: it is this process's memory
    cdef bint filed                             # whether the checkpoint under way is in them
    cdef size_t entries_bytes                   # of their mapping; 0: allocated
    cdef size_t arena_backed, entries_backed, pages_backed      # bytes that have storage
    cdef int storage_errno, storage_fd          # what was refused last
    cdef size_t used                # arena bytes that belong to staged records
    cdef size_t high_bytes
    cdef ram_block **blocks
    cdef size_t block_count
    cdef readonly list block_list
    cdef readonly uint64_t staged_pages

    cdef int map_log(self, size_t need, bint filed) except -1
    cdef int back(self, int fd, size_t *backed, size_t end, size_t most) noexcept nogil
    # Storage for the log up to ``end``, before it is written: 0, or an errno.
    cdef int back_log(self, size_t end) noexcept nogil
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
    cdef void replay_four(self, const staged_entry *e, ram_block *b) noexcept nogil
    cdef void forget(self) noexcept nogil
    cdef void unmap(self) noexcept
