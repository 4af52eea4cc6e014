from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from "fdio.h":
    ctypedef struct colo_io:
        int fd
        int wake_fd
        int is_socket
        int is_tcp
        int64_t deadline_ns
        int64_t idle_ns
    int IO_DEADLINE
    int IO_IDLE
    int IO_WOKEN
    int64_t colo_now_ns() noexcept nogil
    int colo_wait(const colo_io *io, short events, int64_t until_ns) noexcept nogil
    ssize_t colo_read_some(const colo_io *io, void *to, size_t n) noexcept nogil


cdef class ReadBuffer:
    cdef colo_io io
    cdef uint8_t *data          # bytes [head, tail) are unread
    cdef size_t capacity
    cdef size_t head
    cdef size_t tail
    cdef uint64_t base          # stream offset of data[0]
    cdef bint ended             # the source has nothing after tail
    cdef bint owns
    cdef bint is_file           # a regular file: it can be sought in
    cdef object exporter        # memory sources: the buffer data points into
    cdef readonly str phase

    # Bytes into memory of the caller's own, past what is buffered. Counts as read. See fdio.h for the codes.
    cdef ssize_t read_direct(self, uint8_t *to, size_t n) noexcept nogil
    # Take back the last n bytes given out by read_direct: they are unread again.
    cdef int give_back(self, const uint8_t *data, size_t n) except -1
    cdef uint64_t offset(self) noexcept nogil
    cdef int fail(self, ssize_t code, str what) except -1
    cdef int more(self, size_t room, str what) except -1
    cdef int grow(self, size_t capacity) except -1
    cdef bint leap(self, size_t n) except -1
    cdef int need(self, size_t n, str what) except -1
