from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels.ramblock cimport ram_block
from colo._fast.receive.redolog cimport staged_entry

# Storage for every page that is to be written: 0, or an errno with the page it is about.
cdef int give_storage(const staged_entry *entries, size_t count, ram_block **blocks, int *bad_block,
                      uint64_t *bad_offset) noexcept nogil
# The entries onto the blocks' memory, in the order they came. log: what entries' data count from; made: the made pages.
cdef void replay_entries(const staged_entry *entries, size_t count, ram_block **blocks, const uint8_t *log,
                         const uint8_t *made) noexcept nogil
