"""Where the records of dirty pages go: a socket, pipe or file, or memory; and what is said when they cannot.

``gather.h`` sends them, in as few system calls as there can be. A status of it becomes an exception here, and nowhere
else; an errno that tells how the peer was lost becomes the ChannelError that says so.
"""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport (
    EBUSY, ECONNABORTED, ECONNRESET, EDQUOT, EFAULT, EFBIG, EHOSTUNREACH, EIO, ENETDOWN, ENETUNREACH, ENOMEM, ENOSPC,
    ENOTCONN, EPIPE, ETIMEDOUT,
)
from libc.stdint cimport uint8_t

from colo._fast.send.ramrecords cimport colo_records_reset

import fcntl
import os
import stat

from colo.errors import ChannelError, ChannelLost, DeadlineExceeded, Interrupted, StorageError


cdef extern from "collect.h" nogil:
    void colo_collect(uint8_t *to, const iovec *iov, size_t count)


@cython.no_gc_clear  # clearing would take the arena away from an encoder that can still be used
cdef class Outlet:
    """The outlet of one :class:`~colo._fast.send.pageencoder.PageEncoder`, which says what a descriptor must be."""

    def __cinit__(self):
        self.to.fd = -1
        self.to.kind = COLO_OUTLET_MEMORY
        self.to.wake_fd = -1
        self.to.deadline_ns = COLO_NO_DEADLINE

    cdef int open(self, object fd, RecordArena arena) except -1:
        if fd is not None and arena is not None:
            raise ValueError("records are sent to a file descriptor or collected in an arena, not both")
        self.arena = arena if arena is not None else RecordArena()
        if fd is not None:
            self.to.fd = fd if isinstance(fd, int) else fd.fileno()
            self.look_at_fd()
        return 0

    cdef int look_at_fd(self) except -1:
        try:
            mode = os.fstat(self.to.fd).st_mode
            flags = fcntl.fcntl(self.to.fd, fcntl.F_GETFL)
        except OSError as error:
            raise ValueError(f"file descriptor {self.to.fd} cannot be used to send pages: "
                             f"{error.strerror}") from error
        if flags & os.O_ACCMODE == os.O_RDONLY:
            raise ValueError(f"file descriptor {self.to.fd} is not open for writing")
        self.to.nonblocking = bool(flags & os.O_NONBLOCK)
        if stat.S_ISSOCK(mode):
            self.to.kind = COLO_OUTLET_SOCKET
        elif stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            self.to.kind = COLO_OUTLET_FILE
        else:
            self.to.kind = COLO_OUTLET_PIPE
        return 0

    cdef int send(self, colo_records *r) noexcept nogil:
        """Send what is pending in ``r``. Returns COLO_SENT_ALL, or what :meth:`failure` makes an exception of."""
        cdef int status
        self.sends += 1
        if self.to.kind == COLO_OUTLET_MEMORY:
            status = self.collect(r)
        else:
            while True:
                status = colo_gather_send(&self.to, r.iov, &r.first, r.count, &self.error)
                if status != COLO_SENT_SIGNAL or self.run_handlers() < 0:
                    break
        if status == COLO_SENT_ALL:
            colo_records_reset(r)
        return status

    cdef int collect(self, colo_records *r) noexcept nogil:
        cdef size_t i, more = 0
        for i in range(r.count):
            more += r.iov[i].iov_len
        self.error = EBUSY if self.arena.exports else self.arena.make_room(more)
        if self.error:
            return COLO_SENT_ERROR
        colo_collect(self.arena.data + self.arena.used, r.iov, r.count)
        self.arena.used += more
        return COLO_SENT_ALL

    cdef int run_handlers(self) noexcept with gil:
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            self.raised = error
            return -1
        return 0

    cdef object failure(self, int status):
        """The exception for a status that is not COLO_SENT_ALL."""
        if status == COLO_SENT_DEADLINE:
            return DeadlineExceeded("the peer did not take the pages in time", phase="send pages")
        if status == COLO_SENT_SIGNAL:
            error, self.raised = self.raised, None
            return error
        if status == COLO_SENT_WOKEN:
            return Interrupted("sending of pages was ended from this side")
        if self.error == ENOMEM:
            return MemoryError(f"no memory for more than the {self.arena.used} bytes encoded so far")
        if self.error == EBUSY:
            return BufferError("the collected records are in use: release the memoryview of them first")
        return channel_error(self.error)


cdef object channel_error(int error):
    message = os.strerror(error)
    if error in (EPIPE, ECONNRESET, ENOTCONN, ECONNABORTED):
        made = ChannelLost(f"the peer closed the connection while pages were sent ({message})")
    elif error in (ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ENETDOWN):
        made = ChannelLost(f"the network lost the peer while pages were sent ({message})")
    elif error in (ENOSPC, EDQUOT, EFBIG, EIO):
        made = StorageError(f"the file that pages are written to took no more ({message}): free space, or "
                            "choose another")
    elif error == EFAULT:
        made = ChannelError("guest memory could not be read while it was sent (bad address): is it still "
                            "mapped?")
    else:
        made = ChannelError(f"pages could not be sent ({message})")
    made.__cause__ = OSError(error, message)
    return made
