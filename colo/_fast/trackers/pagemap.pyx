"""Dirty pages by Linux's PAGEMAP_SCAN over memory write-protected through userfaultfd in asynchronous mode
(Linux 6.7).

The first write to a protected page is noted and let through by the kernel, with nobody woken. One ioctl
walks the page tables, reports the pages written, and protects them again under the page-table lock: a write
lands before (this harvest reports it) or after (the next one does). Cost: about 2 ns per page walked and 50
ns per dirty page; the first write to a page after a harvest pays for one fault.

- Writes through *this* mapping are seen: also system calls that write into it, and KVM guests. What reaches
  the pages another way is not: so only private anonymous memory is taken, and memory that others can change
  (shared mappings, files) is refused, unless the caller answers for it (``sole_writer``).
- Not seen either, and not to be told from the mapping: devices' DMA into pinned pages that ends after a
  harvest (O_DIRECT reads, io_uring's registered buffers, VFIO): :meth:`mark` those when they have ended.
- Transparent huge pages stay whole until written, then the kernel splits them, so that 4 KiB pages are told
  apart; with hugetlbfs the huge page is the grain. Memory never touched stays unpopulated (page tables are
  made: 2 MiB per GiB).
- Blocks that do not begin on a page of the host work; a write near such an edge marks both pages of the
  block.
"""
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from posix.fcntl cimport O_CLOEXEC, O_RDONLY, open as open_file
from posix.unistd cimport close, getpid

from colo._fast.trackers.base cimport BlockTracker, fill_addresses

import errno
import mmap
import os

from colo.errors import TrackerError, Unsupported


cdef extern from "tracker_pagemap.h" nogil:
    struct colo_scan_region:
        uint64_t start
        uint64_t end
    uint64_t COLO_UFFD_FEATURES, COLO_UFFD_WP_HUGETLBFS_SHMEM, COLO_UFFD_WP_UNPOPULATED, COLO_UFFD_WP_ASYNC
    int colo_uffd_open()
    int colo_uffd_features(int fd, uint64_t *has)
    int colo_uffd_setup(int fd)
    int colo_uffd_register(int fd, uint64_t low, uint64_t high)
    int colo_uffd_unregister(int fd, uint64_t low, uint64_t high)
    int colo_uffd_protect(int fd, uint64_t low, uint64_t high)
    long colo_scan_written(int pagemap, uint64_t *low, uint64_t high, colo_scan_region *regions, size_t room)


cdef enum:
    REGIONS = 8192                      # 192 KiB; runs of dirty pages that one call reports at most

FEATURES = {
    "WP_ASYNC (Linux 6.7)": COLO_UFFD_WP_ASYNC,
    "WP_UNPOPULATED (Linux 6.4)": COLO_UFFD_WP_UNPOPULATED,
    "WP_HUGETLBFS_SHMEM (Linux 5.19)": COLO_UFFD_WP_HUGETLBFS_SHMEM,
}


def open_userfaultfd() -> int:
    """A userfaultfd of this process, ready for :class:`PagemapTracker`; also for another process to be
    given (over a unix socket), which then tracks this one's memory. Unsupported says what is missing."""
    cdef int fd = colo_uffd_open()
    cdef uint64_t has = 0
    cdef int error
    if fd < 0:
        if -fd == errno.ENOSYS:
            raise Unsupported("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")
        raise Unsupported(f"userfaultfd is not permitted here ({os.strerror(-fd)}): a sandbox closes the "
                          "system call; allow it, or give access to /dev/userfaultfd")
    error = colo_uffd_features(fd, &has)
    close(fd)
    if error:
        raise Unsupported(f"userfaultfd does not tell its features: {os.strerror(-error)}")
    missing = [name for name, bit in FEATURES.items() if not has & bit]
    if missing or has != COLO_UFFD_FEATURES:
        raise Unsupported("this kernel's userfaultfd lacks " + (", ".join(missing) or "write protection"))
    fd = colo_uffd_open()
    error = colo_uffd_setup(fd) if fd >= 0 else fd
    if error:
        if fd >= 0:
            close(fd)
        raise Unsupported(f"userfaultfd cannot be set up: {os.strerror(-error)}")
    return fd


cdef int open_pagemap(int pid) except -1:
    path = f"/proc/{pid or 'self'}/pagemap"
    cdef bytes name = path.encode()
    cdef int fd = open_file(name, O_RDONLY | O_CLOEXEC)
    if fd < 0:
        try:
            os.close(os.open(path, os.O_RDONLY))
        except OSError as error:
            raise Unsupported(f"{path} cannot be opened ({error.strerror}): it takes the rights to trace "
                              "that process, and for its own that it be dumpable") from error
        raise Unsupported(f"{path} cannot be opened")
    return fd


def probe() -> str | None:
    """None when the tracker works on this machine, in this process; otherwise why not. Tried on a page of
    its own."""
    cdef colo_scan_region regions[4]
    cdef uint64_t low, base
    cdef int fd = -1, pagemap = -1, error
    cdef long got
    try:
        fd = open_userfaultfd()
        pagemap = open_pagemap(0)
        with mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
            base = address_of(pages)
            error = colo_uffd_register(fd, base, base + 4 * mmap.PAGESIZE)
            if not error:
                error = colo_uffd_protect(fd, base, base + 4 * mmap.PAGESIZE)
            if error:
                return f"write-protecting memory through userfaultfd fails here: {os.strerror(-error)}"
            pages[2 * mmap.PAGESIZE] = 1
            low = base
            got = colo_scan_written(pagemap, &low, base + 4 * mmap.PAGESIZE, regions, 4)
            if got == -errno.ENOTTY:
                return "this kernel has no PAGEMAP_SCAN (Linux 6.7)"
            if got < 0:
                return f"PAGEMAP_SCAN fails here: {os.strerror(-got)}"
            low = base + 2 * mmap.PAGESIZE
            if got != 1 or regions[0].start != low or regions[0].end != low + mmap.PAGESIZE:
                return "PAGEMAP_SCAN does not report the page that was written"
    except Unsupported as reason:
        return str(reason)
    finally:
        if fd >= 0:
            close(fd)
        if pagemap >= 0:
            close(pagemap)
    return None


cdef uint64_t address_of(buffer) except 0:
    cdef unsigned char[::1] view = memoryview(buffer).cast("B")
    return <uint64_t><uintptr_t>&view[0]


cdef class PagemapTracker(BlockTracker):
    """Dirty pages of one block by PAGEMAP_SCAN; see the module's text for what it sees and costs.

    Harvesting is atomic towards writing threads. The memory is refused (TrackerError) when another
    userfaultfd watches it, a second tracker of this kind included. For a :class:`ProcessMemory`,
    ``userfaultfd`` is a descriptor of :func:`open_userfaultfd` made *in that process*; it stays the
    caller's to close. Memory that others can change is refused too (TrackerError), unless ``sole_writer`` says that
    nobody does, or that each such change is told by :meth:`mark`.
    """

    cdef int uffd
    cdef int pagemap
    cdef bint borrowed
    cdef bint sole_writer
    cdef uint64_t low
    cdef uint64_t high
    cdef colo_scan_region *regions

    name = "pagemap"
    atomic = True
    by_content = False

    def __cinit__(self, memory, *args, **kwargs):
        self.uffd = -1
        self.pagemap = -1
        self.regions = NULL

    def __init__(self, memory, *, block="ram", size_t page_bytes=4096, userfaultfd=None,
                 bint sole_writer=False):
        super().__init__(memory, block=block, page_bytes=page_bytes)
        self.sole_writer = sole_writer
        self.borrowed = userfaultfd is not None
        if self.borrowed:
            self.uffd = userfaultfd
        elif self.pid:
            raise ValueError(f"{block}: to track process {self.pid}, a userfaultfd made in it is needed")
        self.regions = <colo_scan_region *>malloc(REGIONS * sizeof(colo_scan_region))
        if self.regions == NULL:
            raise MemoryError

    def __dealloc__(self):
        # In a forked child these are the child's own copies: closing them leaves the parent's tracking alone.
        self.close_files()
        free(self.regions)

    cdef void close_files(self) noexcept:
        if self.uffd >= 0 and not self.borrowed:
            close(self.uffd)
            self.uffd = -1
        if self.pagemap >= 0:
            close(self.pagemap)
            self.pagemap = -1

    cdef int attach(self) except -1:
        """Registers the range, unprotected yet."""
        cdef uint64_t grain = self.host_page_bytes, base = <uint64_t><uintptr_t>self.base
        cdef int error
        self.low = base & ~(grain - 1)
        self.high = (base + self.length_bytes + grain - 1) & ~(grain - 1)
        why = None if self.sole_writer else self.unseen_writers()
        if why is not None:
            raise TrackerError(f"{self.block}: pagemap does not see all writes to it: {why}")
        if not self.borrowed:
            self.uffd = open_userfaultfd()
        self.pagemap = open_pagemap(self.pid)
        with nogil:
            error = colo_uffd_register(self.uffd, self.low, self.high)
        if error:
            why = {
                errno.EBUSY: "another userfaultfd watches it already (another tracker?)",
                errno.EINVAL: "this kind of mapping cannot be watched "
                              "(huge pages that the block does not end with?)",
                errno.EPERM: "the mapping cannot be written",
                errno.EBADF: "the userfaultfd given is closed",
            }.get(-error, os.strerror(-error))
            raise TrackerError(f"{self.block}: {self.length_bytes} bytes at {base:#x} cannot be tracked "
                               f"with pagemap: {why}")
        return 0

    cdef int begin(self) except -1:
        cdef int error
        try:
            self.attach()
            with nogil:
                error = colo_uffd_protect(self.uffd, self.low, self.high)
            if error:
                colo_uffd_unregister(self.uffd, self.low, self.high)
                raise TrackerError(f"{self.block}: write-protecting the block failed: {os.strerror(-error)}")
        except BaseException:
            self.close_files()
            raise
        return 0

    cdef int find(self, uint64_t *found) except -1:
        cdef uint64_t low = self.low, base = <uint64_t><uintptr_t>self.base
        cdef long got = 0, i
        with nogil:
            while low < self.high:
                got = colo_scan_written(self.pagemap, &low, self.high, self.regions, REGIONS)
                if got < 0:
                    break
                for i in range(got):
                    fill_addresses(found, base, self.length_bytes, self.page_bytes,
                                   self.regions[i].start, self.regions[i].end)
        if got < 0:
            raise self.lose(self.explain(-got))
        return 0

    def explain(self, error):
        if not self.is_userfaultfd():
            return "its userfaultfd was closed"
        if error == errno.EPERM:
            return "memory of the block was remapped, or its userfaultfd closed, while it was tracked"
        if error == errno.ESRCH:
            return f"process {self.pid or getpid()} is gone"
        if error == errno.EBADF:
            return "its descriptor of /proc/self/pagemap was closed"
        return f"PAGEMAP_SCAN failed: {os.strerror(error)}"

    def is_userfaultfd(self):
        try:
            return os.readlink(f"/proc/self/fd/{self.uffd}") == "anon_inode:[userfaultfd]"
        except OSError:
            return False

    cdef int end(self) except -1:
        # When the descriptor was closed under us its number may be somebody else's by now: that one is not
        # ours to close.
        if self.is_userfaultfd():
            with nogil:
                colo_uffd_unregister(self.uffd, self.low, self.high)
        elif not self.borrowed:
            self.uffd = -1
        self.close_files()
        return 0

    def fits(self):
        """None when this block can be tracked, otherwise why not; registers it for a moment, protecting
        nothing."""
        if self.started:
            return None
        try:
            self.hold()
            try:
                self.attach()
                colo_uffd_unregister(self.uffd, self.low, self.high)
            finally:
                self.close_files()
                self.let_go()
        except (TrackerError, Unsupported, BufferError) as reason:
            return str(reason)
        return None
