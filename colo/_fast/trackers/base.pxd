# What every dirty tracker of one RAM block shares, as the trackers and native code that reports its own
# writes see it.
from libc.stdint cimport uint8_t, uint64_t


cdef class BlockTracker:
    cdef readonly str block
    cdef readonly size_t pages
    cdef readonly size_t page_bytes
    cdef readonly size_t length_bytes
    cdef readonly int pid               # 0: this process
    cdef readonly bint started
    cdef readonly str lost              # why it can go on no more, or None
    cdef readonly object memory
    cdef uint8_t *base                  # where the block begins, in its own process
    cdef size_t words
    cdef uint64_t tail_mask
    cdef uint64_t *pending              # bits to report at the next harvest; atomic access only
    cdef uint64_t *found                # scratch of one harvest
    cdef size_t host_page_bytes
    cdef bytearray pending_store
    cdef bytearray found_store
    cdef object lock
    cdef object pin
    cdef object maps
    cdef int owner_pid

    # What a tracker adds. find() sets bits of `found` (never clears) and must leave none unset that it has
    # cleared elsewhere.
    cdef int begin(self) except -1
    cdef int find(self, uint64_t *found) except -1
    cdef int end(self) except -1

    cdef size_t move_out(self, bitmap, bint look) except? 0
    cdef int require_running(self) except -1
    cdef int check_memory(self) except -1
    cdef object lose(self, str why)
    # Thread-safe, at any time; the range must lie in the block. After the bytes were written, not before.
    cdef void mark_bytes(self, size_t offset, size_t length) noexcept nogil


# Sets the bits of every page that [low, high) of the process touches; parts outside the block are left out.
cdef void fill_addresses(uint64_t *words, uint64_t base, size_t length, size_t page_bytes,
                         uint64_t low, uint64_t high) noexcept nogil

# A bitmap buffer of exactly `words` aligned words into `view`; ValueError otherwise. The caller releases it.
cdef int get_words(bitmap, Py_buffer *view, size_t words, bint writable, str block) except -1

# dst |= src, atomically word by word, leaving out bits past the last page.
cdef void merge_words(uint64_t *dst, const uint64_t *src, size_t words, uint64_t tail_mask) noexcept nogil
