# The page encoder's engine (ramrecords.h, gather.h) and the class that drives it.
from libc.stdint cimport int64_t, uint8_t, uint64_t

from .digest cimport StreamDigest
from .kernels cimport colo_kernels
from .pagecache cimport RememberedPages, colo_cache_counts, colo_page_cache, colo_shadow
from .recordarena cimport RecordArena


cdef extern from "<sys/uio.h>" nogil:
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len


cdef extern from "gather.h" nogil:
    enum:
        COLO_OUTLET_MEMORY, COLO_OUTLET_SOCKET, COLO_OUTLET_PIPE, COLO_OUTLET_FILE
        COLO_SENT_ALL, COLO_SENT_ERROR, COLO_SENT_DEADLINE, COLO_SENT_SIGNAL, COLO_SENT_WOKEN
        COLO_GATHER_MAX
    int64_t COLO_NO_DEADLINE
    ctypedef struct colo_outlet:
        int fd
        int kind
        int nonblocking
        int wake_fd
        int64_t deadline_ns
    int colo_gather_send(const colo_outlet *out, iovec *iov, size_t *first, size_t count, int *error)


cdef extern from "collect.h" nogil:
    void colo_collect(uint8_t *to, const iovec *iov, size_t count)


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


cdef extern from "crew.h" nogil:
    enum:
        COLO_CREW_MAX
        COLO_BATCH_PAGES
    ctypedef struct colo_crew:
        colo_page_codec *codecs
        uint64_t worst_batch_bytes
    colo_crew *colo_crew_new(int threads, size_t page_bytes)
    void colo_crew_free(colo_crew *crew)
    int colo_crew_run(colo_crew *crew, colo_records *to, const colo_ram_block *b, size_t *next,
                      uint64_t budget, uint64_t *seen, int (*send)(void *, colo_records *) noexcept nogil,
                      void *argument)


cdef class PageEncoder:
    cdef colo_outlet outlet
    cdef colo_ram_block block
    cdef colo_records records
    cdef Py_buffer memory
    cdef bint memory_held
    cdef object bitmap
    cdef object codec
    cdef RememberedPages remembered
    cdef readonly Py_ssize_t page_bytes
    cdef size_t next_page
    cdef uint64_t seen
    cdef bint busy, failed
    cdef int error
    cdef object raised
    cdef colo_crew *crew
    cdef RecordArena arena
    cdef StreamDigest digest
    cdef bint digested
    cdef uint64_t sent_bytes, sends

    cdef int send(self, colo_records *r) noexcept nogil
    cdef int collect(self, colo_records *r) noexcept nogil
    cdef void digest_records(self, colo_records *r, size_t start, size_t skip) noexcept nogil
    cdef void encode_more(self, colo_records *r, uint64_t budget_bytes) noexcept nogil
    cdef int run_handlers(self) noexcept with gil
    cdef int drive(self, uint64_t budget_bytes, bint flush) noexcept nogil
    cdef bint worth_a_crew(self, uint64_t budget_bytes) noexcept nogil
    cdef int enter(self, object deadline_ns) except -1
    cdef int leave(self, int status) except -1
    cdef int flush_now(self) except -1
    cdef int put(self, const uint8_t *data, size_t n, bint flush) except -1
