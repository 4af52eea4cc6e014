"""Buffered reading of a stream from a file descriptor or from memory, with deadlines.

One object stands between a channel and everything that parses it, so that there is one position, one set of deadlines
and one place where a closed, reset or silent peer becomes an exception.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

import os
import socket
import stat

from colo.errors import ChannelLost, DeadlineExceeded, Interrupted, Truncated

cdef extern from "pagecopy.h":
    void colo_copy_stream(uint8_t *to, const uint8_t *source, size_t n) noexcept nogil

cdef enum:
    POLLIN = 1
    PEEK_LIMIT = 1 << 30
    FAR = 1 << 20

DEFAULT_CAPACITY_BYTES = 1 << 20


cdef class ReadBuffer:
    """Big-endian reads from a socket, pipe, file or bytes-like object.

    ``fd`` is borrowed: it is not closed here. ``wake_fd`` (an eventfd or pipe) becoming readable ends any wait with
    :class:`~colo.errors.Interrupted`. The end of the data in the middle of a read is :class:`~colo.errors.ChannelLost`
    on a socket and :class:`~colo.errors.Truncated` elsewhere; time running out is
    :class:`~colo.errors.DeadlineExceeded`.
    """

    def __cinit__(self):
        self.io.fd = -1
        self.io.wake_fd = -1
        self.owns = False
        self.phase = "reading"

    def __init__(self, int fd, *, size_t capacity_bytes=DEFAULT_CAPACITY_BYTES, int wake_fd=-1):
        if self.data != NULL or self.exporter is not None:
            raise RuntimeError("ReadBuffer is already initialised")
        if not 4096 <= capacity_bytes <= PEEK_LIMIT:
            raise ValueError(f"capacity_bytes must be 4096 to {PEEK_LIMIT}, not {capacity_bytes}")
        self.io.fd = fd
        self.io.wake_fd = wake_fd
        mode = os.fstat(fd).st_mode
        self.is_file = stat.S_ISREG(mode)
        if stat.S_ISSOCK(mode):
            self.io.is_socket = 1
            with socket.socket(fileno=os.dup(fd)) as probe:
                self.io.is_tcp = probe.family in (socket.AF_INET, socket.AF_INET6) and probe.type == socket.SOCK_STREAM
        self.data = <uint8_t *>malloc(capacity_bytes)
        if self.data == NULL:
            raise MemoryError(f"no memory for a read buffer of {capacity_bytes} bytes")
        self.capacity = capacity_bytes
        self.owns = True

    @staticmethod
    def from_bytes(data):
        """A reader over ``data`` (any contiguous bytes-like object), which is held, not copied."""
        cdef ReadBuffer self = ReadBuffer.__new__(ReadBuffer)
        cdef const uint8_t[::1] view = memoryview(data).cast("B") if len(memoryview(data)) else None
        self.exporter = view
        if view is not None:
            self.data = <uint8_t *>&view[0]
            self.tail = self.capacity = view.shape[0]
        else:
            self.exporter = data
        self.ended = True
        return self

    def __dealloc__(self):
        if self.owns:
            free(self.data)

    # -- position and deadlines

    cdef uint64_t offset(self) noexcept nogil:
        return self.base + self.head

    @property
    def position(self):
        """Offset in the stream of the next unread byte."""
        return self.offset()

    @property
    def available(self):
        """Bytes that can be read without waiting for the source."""
        return self.tail - self.head

    @property
    def is_socket(self):
        """Whether the source is a socket (its end is then a lost channel)."""
        return bool(self.io.is_socket)

    def set_deadline(self, str phase, seconds=None):
        """Name what is being waited for, and end it ``seconds`` from now (None: never) however the bytes trickle."""
        self.phase = phase
        self.io.deadline_ns = 0 if seconds is None else colo_now_ns() + <int64_t>(seconds * 1e9)

    def set_idle(self, seconds=None):
        """End any wait in which not one byte comes for ``seconds`` (None: never)."""
        self.io.idle_ns = 0 if seconds is None else max(1, <int64_t>(seconds * 1e9))

    # -- filling

    cdef int fail(self, ssize_t code, str what) except -1:
        """Turn a code of fdio.h into its exception; 0 means the source ended. EINTR returns after signals ran."""
        cdef str at = f"at byte {self.base + self.tail} of the stream"
        if code == -EINTR:
            PyErr_CheckSignals()
            return 0
        if code == 0:
            if self.io.is_socket:
                raise ChannelLost(f"the peer closed the connection {at} ({self.phase}: {what})")
            raise Truncated(f"the data ends here ({what} expected)", where=self.phase, offset=self.base + self.tail)
        if code == IO_DEADLINE:
            raise DeadlineExceeded(f"the deadline for '{self.phase}' passed {at} ({what})", phase=self.phase)
        if code == IO_IDLE:
            raise DeadlineExceeded(
                f"not a byte for {self.io.idle_ns / 1e9:g} s {at} ({self.phase}: {what})", phase="progress")
        if code == IO_WOKEN:
            raise Interrupted(f"the wait was ended from this side {at} ({self.phase})")
        raise ChannelLost(f"{os.strerror(-code)} {at} ({self.phase}: {what})")

    cdef int more(self, size_t room, str what) except -1:
        """Read at least one more byte behind tail, making place for ``room``; 0 when the source has ended."""
        cdef ssize_t got
        cdef size_t unread = self.tail - self.head
        if self.ended:
            return 0
        if self.head and (unread == 0 or self.capacity - self.tail < room):
            memmove(self.data, self.data + self.head, unread)
            self.base += self.head
            self.head = 0
            self.tail = unread
        if self.capacity - self.tail < room:
            self.grow(unread + room)
        while True:
            with nogil:
                got = colo_read_some(&self.io, self.data + self.tail, self.capacity - self.tail)
            if got > 0:
                self.tail += got
                return 1
            if got == 0:
                self.ended = True
                return 0
            self.fail(got, what)

    cdef int grow(self, size_t capacity) except -1:
        cdef size_t size = self.capacity
        while size < capacity:
            size *= 2
        cdef uint8_t *data = <uint8_t *>realloc(self.data, size)
        if data == NULL:
            raise MemoryError(f"no memory for a read buffer of {size} bytes")
        self.data = data
        self.capacity = size
        return 0

    cdef int need(self, size_t n, str what) except -1:
        while self.tail - self.head < n:
            if not self.more(n - (self.tail - self.head), what):
                self.fail(0, what)
        return 0

    cdef ssize_t read_direct(self, uint8_t *to, size_t n) noexcept nogil:
        cdef size_t have = self.tail - self.head
        cdef ssize_t got
        if have:
            if n < have:
                have = n
            colo_copy_stream(to, self.data + self.head, have)
            self.head += have
            return have
        if self.ended:
            return 0
        self.base += self.head
        self.head = self.tail = 0
        got = colo_read_some(&self.io, to, n)
        if got > 0:
            self.base += got
        elif got == 0:
            self.ended = True
        return got

    cdef int give_back(self, const uint8_t *data, size_t n) except -1:
        if self.exporter is not None or self.head >= n:
            self.head -= n        # the same bytes still stand there
            return 0
        # All that was buffered has been handed out before read_direct turned to the source.
        if self.tail != self.head:
            raise RuntimeError("give_back after further reads")
        self.base = self.offset() - n
        self.head = self.tail = 0
        if self.capacity < n:
            self.grow(n)
        memcpy(self.data, data, n)
        self.tail = n
        return 0

    # -- reads

    def read_u8(self):
        self.need(1, "u8")
        self.head += 1
        return self.data[self.head - 1]

    def read_u16(self):
        cdef const uint8_t *p
        self.need(2, "u16")
        p = self.data + self.head
        self.head += 2
        return (<uint32_t>p[0] << 8) | p[1]

    def read_u32(self):
        self.need(4, "u32")
        self.head += 4
        return load_u32(self.data + self.head - 4)

    def read_u64(self):
        self.need(8, "u64")
        self.head += 8
        return (<uint64_t>load_u32(self.data + self.head - 8) << 32) | load_u32(self.data + self.head - 4)

    def read_exact(self, size_t n):
        """``n`` bytes; the caller has bounded ``n``."""
        if n > PEEK_LIMIT:
            raise ValueError(f"a single read is limited to {PEEK_LIMIT} bytes, not {n}")
        self.need(n, f"{n} bytes")
        self.head += n
        return PyBytes_FromStringAndSize(<char *>self.data + self.head - n, n)

    def skip(self, size_t n):
        """Read past ``n`` bytes without keeping them; in a file, a long way is not read at all."""
        cdef size_t step
        while n:
            if self.is_file and self.tail == self.head and n > FAR and self.leap(n):
                return
            if self.tail == self.head and not self.more(1, f"{n} bytes"):
                self.fail(0, f"{n} more bytes")
            step = min(n, self.tail - self.head)
            self.head += step
            n -= step

    cdef bint leap(self, size_t n) except -1:
        """Go on in the file ``n`` bytes behind what was buffered; False where the file ends before."""
        here = os.lseek(self.io.fd, 0, os.SEEK_CUR)
        if <uint64_t>n > <uint64_t>max(0, os.fstat(self.io.fd).st_size - here):
            return False
        os.lseek(self.io.fd, n, os.SEEK_CUR)
        self.base += self.head + n
        self.head = self.tail = 0
        return True

    def skip_all(self, size_t limit):
        """Read past all that is left, at most ``limit`` bytes of it; in a file, nothing is read."""
        cdef size_t step
        cdef uint64_t end = self.offset() + limit
        while self.offset() < end and not self.at_end():
            step = min(self.tail - self.head, end - self.offset())
            self.head += step
            if self.is_file and self.tail == self.head:
                left = max(0, os.fstat(self.io.fd).st_size - os.lseek(self.io.fd, 0, os.SEEK_CUR))
                self.skip(min(<uint64_t>left, end - self.offset()))

    def peek(self, size_t n):
        """The next ``n`` bytes without reading past them; fewer only where the source ends before."""
        if n > PEEK_LIMIT:
            raise ValueError(f"a single peek is limited to {PEEK_LIMIT} bytes, not {n}")
        while self.tail - self.head < n:
            if not self.more(n - (self.tail - self.head), f"{n} bytes"):
                n = self.tail - self.head
        return PyBytes_FromStringAndSize(<char *>self.data + self.head, n)

    def at_end(self):
        """Wait for a byte; True if the source ended instead."""
        return self.tail == self.head and not self.more(1, "more data")

    def poll(self, double timeout_ms):
        """Whether an unread byte (or the end) is here within ``timeout_ms``; nothing is read."""
        cdef int64_t until
        cdef int code
        if self.tail > self.head or self.ended:
            return self.tail > self.head
        until = colo_now_ns() + <int64_t>(timeout_ms * 1e6)
        while True:
            with nogil:
                code = colo_wait(&self.io, POLLIN, until)
            if code == 0:
                return True
            if code == IO_IDLE:
                return False
            self.fail(code, "more data")


cdef inline uint32_t load_u32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]
