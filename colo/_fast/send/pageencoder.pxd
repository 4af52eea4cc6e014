# The class that drives the page encoder's engine (ramrecords.h, crew.h).
from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels.digest cimport StreamDigest
from colo._fast.send.outlet cimport Outlet
from colo._fast.send.ramrecords cimport colo_page_codec, colo_ram_block, colo_records
from colo._fast.send.sentblock cimport SentBlock


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
    cdef Outlet outlet
    cdef SentBlock block
    cdef colo_records records
    cdef object codec
    cdef readonly Py_ssize_t page_bytes
    cdef size_t next_page
    cdef uint64_t seen
    cdef bint busy, failed
    cdef colo_crew *crew
    cdef StreamDigest digest
    cdef bint digested
    cdef uint64_t sent_bytes

    cdef void digest_records(self, colo_records *r, size_t start, size_t skip) noexcept nogil
    cdef void encode_more(self, colo_records *r, uint64_t budget_bytes) noexcept nogil
    cdef int drive(self, uint64_t budget_bytes, bint flush) noexcept nogil
    cdef bint worth_a_crew(self, uint64_t budget_bytes) noexcept nogil
    cdef int enter(self, object deadline_ns) except -1
    cdef int leave(self, int status) except -1
    cdef int flush_now(self) except -1
    cdef int put(self, const uint8_t *data, size_t n, bint flush) except -1
