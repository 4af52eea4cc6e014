from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    STAGED_ZERO = 0         # length: pages in the run
    STAGED_PAGE = 1
    STAGED_XBZRLE = 2       # length: encoded bytes
    STAGED_INFLATED = 3     # data: offset among the made pages

    # What giving an entry or a page its room returns beside 0 and OUT_OF_STORAGE.
    NO_ROOM = 1             # more than the blocks can call for
    NO_MEMORY = 2


ctypedef struct staged_entry:
    uint64_t page_offset    # in the block, bytes
    uint64_t data           # where the entry's bytes begin in the log
    uint32_t length
    uint16_t block
    uint16_t kind


cdef class RedoLog:
    cdef uint8_t *arena             # stream bytes as they came; address space is reserved, memory is touched as used
    cdef size_t arena_bytes
    cdef uint8_t *inflated          # pages made of compressed records; as much address space as the arena
    cdef staged_entry *entries
    cdef size_t room                # entries that have memory
    cdef int log_fd, entries_fd, pages_fd       # the log's files, -1: it is this process's memory
    cdef bint filed                             # whether the checkpoint under way is in them
    cdef size_t entries_bytes                   # of their mapping; 0: allocated
    cdef size_t arena_backed, entries_backed, pages_backed      # bytes that have storage
    cdef int storage_errno, storage_fd          # what was refused last

    cdef int map_log(self, size_t need, size_t entries, bint filed) except -1
    # Storage for what is about to be written: 0, or an errno.
    cdef int back_log(self, size_t end) noexcept nogil
    cdef int back_made_pages(self, size_t end) noexcept nogil
    cdef int back_entries(self, size_t entries) noexcept nogil
    # 0, NO_MEMORY or OUT_OF_STORAGE.
    cdef int grow_entries(self, size_t entries) noexcept nogil
    cdef int map_made_pages(self) noexcept nogil
    cdef void give_back(self, size_t keep_bytes) noexcept nogil
    cdef void unmap(self) noexcept
