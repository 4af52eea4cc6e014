# Where records go.
from libc.stdint cimport int64_t, uint64_t

from colo._fast.send.ramrecords cimport colo_records, iovec
from colo._fast.send.recordarena cimport RecordArena


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


cdef class Outlet:
    cdef colo_outlet to
    cdef RecordArena arena      # takes the records when there is no descriptor
    cdef int error              # an errno, after COLO_SENT_ERROR
    cdef object raised          # by a signal handler, after COLO_SENT_SIGNAL
    cdef uint64_t sends

    # fd: a number or what has fileno(), open for writing, else ValueError; None: collect in arena.
    cdef int open(self, object fd, RecordArena arena) except -1
    cdef int send(self, colo_records *r) noexcept nogil
    cdef object failure(self, int status)

    cdef int look_at_fd(self) except -1
    cdef int collect(self, colo_records *r) noexcept nogil
    cdef int run_handlers(self) noexcept with gil
