"""Where a staged checkpoint lies until it is applied: the stream's own bytes, the entries that say what to do with them, and
the pages made of compressed records.

The three are this process's own memory, or files: then they outlive the process, and another one adopts them. A file's
storage is made before it is touched, so that a full disk is an error here and no signal.
"""
from libc.errno cimport EINTR, EIO, ENOSPC, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from colo._fast.receive.ram_refusals cimport OUT_OF_STORAGE

import os

from colo.errors import StorageError

cdef extern from *:
    """
    #include <sys/mman.h>
    """
    void *mmap(void *address, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int munmap(void *address, size_t length) noexcept nogil
    int madvise(void *address, size_t length, int advice) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    int MADV_HUGEPAGE, MADV_DONTDUMP, MADV_DONTNEED
    void *MAP_FAILED

cdef extern from "populate.h" nogil:
    void colo_populate(uint8_t *start, size_t n)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <unistd.h>
    int fallocate(int fd, int mode, off_t offset, off_t length);
    """
    int fallocate(int fd, int mode, long offset, long length) noexcept nogil
    int FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
    ssize_t pread(int fd, void *data, size_t n, long offset) noexcept nogil
    ssize_t pwrite(int fd, const void *data, size_t n, long offset) noexcept nogil

cdef enum:
    BACKED_STEP_BYTES = 2 << 20
    ENTRIES_AT_FIRST = 4096


cdef class RedoLog:
    """The memory of a log; what is in it is :class:`~colo._fast.receive.staging.Staging`'s.

    ``files``: descriptors of three files, open for reading and writing, that hold it (the stream's bytes, the entries, the
    pages made of compressed records). They are borrowed and must stay open.
    """

    def __init__(self, files=None):
        self.unmap()
        self.log_fd, self.entries_fd, self.pages_fd = (-1, -1, -1) if files is None else files

    def __dealloc__(self):
        self.unmap()

    cdef void unmap(self) noexcept:
        if self.arena != NULL:
            munmap(self.arena, self.arena_bytes)
            self.arena = NULL
        if self.inflated != NULL:
            munmap(self.inflated, self.arena_bytes)
            self.inflated = NULL
        if self.entries_bytes:
            munmap(self.entries, self.entries_bytes)
        else:
            free(self.entries)
        self.entries = NULL
        self.entries_bytes = 0
        self.room = 0
        self.arena_backed = self.entries_backed = self.pages_backed = 0

    cdef int map_log(self, size_t need, size_t entries, bint filed) except -1:
        """Address space for a log of ``need`` bytes, and, in files, for all of its ``entries`` and made pages."""
        cdef size_t entries_bytes = whole_pages(entries * sizeof(staged_entry))
        if self.arena != NULL and self.arena_bytes >= need and self.filed == filed \
                and (not filed or self.entries_bytes >= entries_bytes):
            return 0
        self.unmap()
        self.filed = filed
        if not filed:
            self.arena = reserve_address_space(need)
            self.arena_bytes = need
            return 0
        need = whole_pages(need)
        self.arena = map_file(self.log_fd, need)
        self.arena_bytes = need
        self.entries = <staged_entry *>map_file(self.entries_fd, entries_bytes)
        self.entries_bytes = entries_bytes
        self.inflated = map_file(self.pages_fd, need)
        return 0

    cdef int map_made_pages(self) noexcept nogil:
        """Address space for the made pages of a log that is this process's memory; 0 or NO_MEMORY."""
        cdef void *p = mmap(NULL, self.arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if p == MAP_FAILED:
            return NO_MEMORY
        madvise(p, self.arena_bytes, MADV_DONTDUMP)   # guest memory is secret
        self.inflated = <uint8_t *>p
        return 0

    cdef int grow_entries(self, size_t entries) noexcept nogil:
        """Memory for ``entries`` entries, and for some more."""
        cdef size_t room
        cdef staged_entry *grown
        if self.filed:
            return OUT_OF_STORAGE if self.back_entries(entries) else 0
        room = self.room * 2 if self.room else ENTRIES_AT_FIRST
        grown = <staged_entry *>realloc(self.entries, room * sizeof(staged_entry))
        if grown == NULL:
            return NO_MEMORY
        self.entries = grown
        self.room = room
        return 0

    cdef int back_log(self, size_t end) noexcept nogil:
        if not self.filed:
            return 0
        return back(self, self.log_fd, &self.arena_backed, end, self.arena_bytes)

    cdef int back_made_pages(self, size_t end) noexcept nogil:
        if not self.filed:
            return 0
        return back(self, self.pages_fd, &self.pages_backed, end, self.arena_bytes)

    cdef int back_entries(self, size_t entries) noexcept nogil:
        cdef int code = back(self, self.entries_fd, &self.entries_backed, entries * sizeof(staged_entry), self.entries_bytes)
        if code == 0:
            self.room = self.entries_backed // sizeof(staged_entry)
        return code

    def storage_error(self):
        """The last refusal of storage for the log, as an exception to raise."""
        name = os.readlink(f"/proc/self/fd/{self.storage_fd}") if self.storage_fd >= 0 else "the redo log"
        return StorageError(
            f"{name}: no storage for the checkpoint under way: {os.strerror(self.storage_errno)}; free space there, or give "
            "another directory with --ram-dir")

    def prepare(self, size_t length_bytes):
        """Have memory at hand for that many stream bytes, so that receiving them takes no page fault; after :meth:`begin`,
        while nobody waits. Without the kernel's help, or memory, it comes at its first use."""
        cdef size_t n = min(whole_pages(length_bytes), self.arena_bytes & ~<size_t>4095)
        if self.arena != NULL and n:
            with nogil:
                if self.filed and make_storage(self.log_fd, 0, n) == 0:
                    self.arena_backed = max(self.arena_backed, n)
                if not self.filed or self.arena_backed >= n:
                    colo_populate(self.arena, n)

    cdef void give_back(self, size_t keep_bytes) noexcept nogil:
        """The arena's memory, or storage, above ``keep_bytes``: nothing there is of use any more."""
        cdef size_t keep
        if self.arena == NULL or keep_bytes >= self.arena_bytes:
            return
        keep = whole_pages(keep_bytes)
        if not self.filed:
            madvise(self.arena + keep, self.arena_bytes - keep, MADV_DONTNEED)
        elif fallocate(self.log_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <long>keep,
                       <long>(self.arena_bytes - keep)) == 0:
            self.arena_backed = min(self.arena_backed, keep)


cdef int back(RedoLog log, int fd, size_t *backed, size_t end, size_t most) noexcept nogil:
    """Storage for [0, end) of a log's file, and for some more if there is: 0, or the errno."""
    cdef size_t to
    cdef int code
    if end <= backed[0]:
        return 0
    to = min(whole_pages(backed[0] + BACKED_STEP_BYTES), whole_pages(most))
    if to < end:
        to = whole_pages(end)
    code = make_storage(fd, backed[0], to)
    if code == ENOSPC and to > whole_pages(end):
        to = whole_pages(end)
        code = make_storage(fd, backed[0], to)
    if code:
        log.storage_errno = code
        log.storage_fd = fd
        return code
    backed[0] = to
    return 0


cdef inline size_t whole_pages(size_t n) noexcept nogil:
    return (n + 4095) & ~<size_t>4095


cdef uint8_t *map_file(int fd, size_t n) except NULL:
    """A shared mapping of the file's first n bytes; it is made so long, without storage."""
    cdef void *p
    if os.fstat(fd).st_size < n:
        try:
            os.ftruncate(fd, n)
        except OSError as error:
            raise StorageError(f"{os.readlink(f'/proc/self/fd/{fd}')}: cannot be {n} bytes: {error.strerror}") from error
    p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
    if p == MAP_FAILED:
        raise MemoryError(f"no address space for {n} bytes of staged pages")
    madvise(p, n, MADV_HUGEPAGE)   # where the file system has huge pages
    madvise(p, n, MADV_DONTDUMP)   # guest memory is secret
    return <uint8_t *>p


cdef int make_storage(int fd, size_t start, size_t end) noexcept nogil:
    """Storage for [start, end) of a file, what is there stays: 0, or an errno."""
    cdef size_t at
    cdef ssize_t got
    cdef uint8_t there[4096]
    while fallocate(fd, 0, <long>start, <long>(end - start)) != 0:
        if errno == EINTR:
            continue
        if errno != EOPNOTSUPP and errno != ENOSYS:
            return errno
        # Writing gives storage anywhere. What is there already is written to itself.
        at = start
        while at < end:
            memset(there, 0, sizeof(there))
            got = pread(fd, there, 4096, <long>at)
            if got >= 0:
                got = pwrite(fd, there, 4096, <long>at)
            if got != 4096:
                return errno if got < 0 else EIO
            at += 4096
        return 0
    return 0


cdef uint8_t *reserve_address_space(size_t n) except NULL:
    cdef void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        raise MemoryError(f"no address space for {n} bytes of staged pages")
    madvise(p, n, MADV_HUGEPAGE)   # far fewer faults while it is first filled
    madvise(p, n, MADV_DONTDUMP)   # guest memory is secret
    return <uint8_t *>p
