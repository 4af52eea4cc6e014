"""The staged checkpoint: pages that have arrived but are not yet part of the committed image.

It is a redo log. The stream's own bytes are read straight into the arena and stay there; an entry a page says what to
do with them. (A stream that lies in memory already is its own arena.) Until the checkpoint is whole the image is not
touched, and dropping the checkpoint is forgetting the entries. Once committed, the entries are replayed onto the image
in the order they came. Replaying is idempotent (XBZRLE replaces bytes, it does not add them), so a replay cut short is
repeated from the start: the committed state is image plus log at every instant.

The log can live in files instead of this process's own memory: then it outlives the process, and another one adopts it.
Its storage is made before it is touched, so that a full disk is an error here and no signal.
"""
from libc.errno cimport EINTR, EIO, ENOSPC, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

import os

from colo._fast.kernels.kernels cimport active
from colo._fast.receive.ram_refusals cimport OUT_OF_STORAGE
from colo._fast.kernels.ramblock cimport RamBlock, clear_bit, ram_block, set_bit, test_bit

from colo.errors import StorageError

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_PAGE_BYTES
    const int WIRE_PAGE_BITS

cdef extern from "pagecopy.h":
    void colo_copy_four(uint8_t **to, const uint8_t **source, size_t n) noexcept nogil
    void colo_copy_four_anywhere(uint8_t **to, const uint8_t **source, size_t n) noexcept nogil
    void colo_zero_stream(uint8_t *to, size_t n) noexcept nogil
    void colo_stream_fence() noexcept nogil

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
    MAX_BLOCKS = 4096
    SLACK_BYTES = 16 << 20
    BACKED_STEP_BYTES = 2 << 20

cdef uint8_t zero_page[4096]


cdef class Staging:
    """A staged checkpoint for the RAM blocks given to :meth:`begin`.

    One object serves all checkpoints of a session in turn: :meth:`begin`, records added by
    :class:`~colo._fast.receive.pagedecoder.PageDecoder`, :meth:`reserve`, then :meth:`apply` or :meth:`drop`.

    ``files``: descriptors of three files, open for reading and writing, that hold the log of unlimited checkpoints (the
    stream's bytes, the entries, the pages made of compressed records). They are borrowed and must stay open.
    """

    def __init__(self, files=None):
        self.unmap()
        self.log_fd, self.entries_fd, self.pages_fd = (-1, -1, -1) if files is None else files

    def __dealloc__(self):
        self.unmap()
        free(self.blocks)

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

    def begin(self, list blocks, limit_bytes=None):
        """Start an empty checkpoint over ``blocks`` (list of RamBlock, in the stream's order; at most 4096).

        ``limit_bytes`` bounds the stream bytes kept; by default what all pages of the blocks need, each sent once raw.
        Raises RuntimeError if a committed checkpoint has not been applied yet.
        """
        cdef RamBlock block
        cdef size_t i, pages = 0
        if self.count:
            raise RuntimeError("the staged checkpoint before this one was neither applied nor dropped")
        if len(blocks) > MAX_BLOCKS:
            raise ValueError(f"{len(blocks)} RAM blocks; at most {MAX_BLOCKS}")
        for block in blocks:
            pages += block.c.used_length >> WIRE_PAGE_BITS
        need = limit_bytes if limit_bytes is not None else pages * (WIRE_PAGE_BYTES + 8) + SLACK_BYTES
        self.count_limit = 2 * pages + 1024 if limit_bytes is None else need // 8
        self.map_log(need, limit_bytes is None and self.log_fd >= 0)
        self.limit = need
        table = <ram_block **>realloc(self.blocks, max(1, len(blocks)) * sizeof(ram_block *))
        if table == NULL:
            raise MemoryError("no memory for the table of RAM blocks")
        self.blocks = table
        for i, block in enumerate(blocks):
            self.blocks[i] = &block.c
        self.block_list = list(blocks)
        self.block_count = len(blocks)
        self.log = self.arena
        self.lender = None
        self.forget()

    cdef int map_log(self, size_t need, bint filed) except -1:
        """Address space for a log of ``need`` bytes, and, in files, for all of its entries and made pages."""
        cdef size_t entries_bytes = whole_pages(self.count_limit * sizeof(staged_entry))
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

    cdef int back(self, int fd, size_t *backed, size_t end, size_t most) noexcept nogil:
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
            self.storage_errno = code
            self.storage_fd = fd
            return code
        backed[0] = to
        return 0

    cdef int back_log(self, size_t end) noexcept nogil:
        if not self.filed:
            return 0
        return self.back(self.log_fd, &self.arena_backed, end, self.arena_bytes)

    def storage_error(self):
        """The last refusal of storage for the log, as an exception to raise."""
        name = os.readlink(f"/proc/self/fd/{self.storage_fd}") if self.storage_fd >= 0 else "the redo log"
        return StorageError(
            f"{name}: no storage for the checkpoint under way: {os.strerror(self.storage_errno)}; free space there, or give "
            "another directory with --ram-dir")

    @property
    def extent(self):
        """What is staged, for :meth:`adopt`: (entries, bytes of the stream, bytes of made pages)."""
        return self.count, self.used, self.inflated_used

    def adopt(self, list blocks, size_t records, size_t log_bytes, size_t pages_bytes):
        """Take the log that the files hold for the staged checkpoint over ``blocks``: another process's, that has ended.

        All of it is checked, nothing believed. Raises :class:`~colo.errors.StorageError`, with nothing staged, when a file is
        too short or an entry says what no checkpoint of these blocks can.
        """
        cdef size_t bad = 0
        cdef int code
        if self.log_fd < 0:
            raise ValueError("a log in files is needed")
        for fd, wanted in ((self.log_fd, log_bytes), (self.entries_fd, records * sizeof(staged_entry)),
                           (self.pages_fd, pages_bytes)):
            if os.fstat(fd).st_size < wanted:
                raise StorageError(
                    f"{os.readlink(f'/proc/self/fd/{fd}')} has {os.fstat(fd).st_size} bytes, the decision record says {wanted}: "
                    "it was cut short, and the checkpoint cannot be had from it")
        self.begin(blocks)
        if records > self.count_limit or log_bytes > self.limit or pages_bytes > self.limit:
            raise StorageError(
                f"a redo log of {records} entries, {log_bytes} and {pages_bytes} bytes is more than its RAM blocks can call for")
        # Where a hole is, looking would need storage, and end in SIGBUS without.
        code = self.back_log(log_bytes)
        if code == 0:
            code = self.back(self.entries_fd, &self.entries_backed, records * sizeof(staged_entry), self.entries_bytes)
        if code == 0:
            code = self.back(self.pages_fd, &self.pages_backed, pages_bytes, self.arena_bytes)
        if code:
            raise self.storage_error()
        with nogil:
            code = self.check_entries(records, log_bytes, pages_bytes, &bad)
        if code:
            raise StorageError(
                f"{os.readlink(f'/proc/self/fd/{self.entries_fd}')}: entry {bad} of {records} is none of a checkpoint of these "
                "RAM blocks: the redo log is damaged")
        self.count = records
        self.room = self.entries_backed // sizeof(staged_entry)
        self.used = log_bytes
        self.inflated_used = pages_bytes

    cdef int check_entries(self, size_t records, size_t log_bytes, size_t pages_bytes, size_t *bad) noexcept nogil:
        cdef size_t i
        cdef staged_entry *e
        cdef uint64_t run, length
        for i in range(records):
            bad[0] = i
            e = &self.entries[i]
            if e.block >= self.block_count or e.page_offset & (WIRE_PAGE_BYTES - 1):
                return 1
            length = self.blocks[e.block].used_length
            run = e.length if e.kind == STAGED_ZERO else 1
            if run == 0 or e.page_offset >= length or run > (length - e.page_offset) >> WIRE_PAGE_BITS:
                return 1
            if e.kind == STAGED_PAGE:
                if e.data > log_bytes or log_bytes - e.data < WIRE_PAGE_BYTES:
                    return 1
            elif e.kind == STAGED_XBZRLE:
                if e.length > WIRE_PAGE_BYTES or e.data > log_bytes or log_bytes - e.data < e.length:
                    return 1
                if active().xbzrle_check(self.log + e.data, <int>e.length, <int>WIRE_PAGE_BYTES) < 0:
                    return 1
            elif e.kind == STAGED_INFLATED:
                if e.data > pages_bytes or pages_bytes - e.data < WIRE_PAGE_BYTES:
                    return 1
            elif e.kind != STAGED_ZERO:
                return 1
        return 0

    @property
    def staged_bytes(self):
        """Stream bytes held for the staged records."""
        return self.used + self.inflated_used

    @property
    def high_water_bytes(self):
        """The most :attr:`staged_bytes` has been."""
        return self.high_bytes

    @property
    def records(self):
        """Entries held (a run of zero pages is one)."""
        return self.count

    def reserve(self):
        """Give every page that is to be written its storage, so that applying cannot run out of disk.

        Raises :class:`~colo.errors.StorageError`; the image is unchanged then.
        """
        cdef int code, bad_block = 0
        cdef uint64_t bad_offset = 0
        with nogil:
            code = self.reserve_storage(&bad_block, &bad_offset)
        if code:
            raise StorageError(
                f"RAM block {self.block_list[bad_block].idstr}: no storage for the page at {bad_offset:#x}: "
                f"{os.strerror(code)}; free space in the RAM directory or give another with --ram-dir")

    def apply(self):
        """Replay the staged records onto the blocks' memory and forget them. :meth:`reserve` must have succeeded."""
        with nogil:
            self.replay()
            self.forget()

    def count_pages(self, uint32_t[::1] buckets not None, uint64_t bucket_pages):
        """Add the staged pages to ``buckets``: element n counts those among pages n * ``bucket_pages`` and on of all blocks,
        one behind the other in the order of :meth:`begin`; pages behind the last bucket count in it."""
        cdef size_t i, n = buckets.shape[0]
        cdef uint64_t page, run, first = 0
        cdef uint64_t *starts
        cdef staged_entry *e
        if n == 0 or bucket_pages == 0:
            raise ValueError("a heat map has buckets, of one page or more")
        starts = <uint64_t *>malloc(max(1, self.block_count) * sizeof(uint64_t))
        if starts == NULL:
            raise MemoryError("no memory to count pages")
        with nogil:
            for i in range(self.block_count):
                starts[i] = first
                first += self.blocks[i].used_length >> WIRE_PAGE_BITS
            for i in range(self.count):
                e = &self.entries[i]
                run = e.length if e.kind == STAGED_ZERO else 1
                page = starts[e.block] + (e.page_offset >> WIRE_PAGE_BITS)
                for page in range(page, page + run):
                    buckets[min(page // bucket_pages, <uint64_t>n - 1)] += 1
        free(starts)

    def drop(self):
        """Forget the staged records; the blocks' memory is as it was."""
        self.forget()

    def prepare(self, size_t length_bytes):
        """Have memory at hand for that many stream bytes, so that receiving them takes no page fault; after :meth:`begin`,
        while nobody waits. Without the kernel's help, or memory, it comes at its first use."""
        cdef size_t n = min((length_bytes + 4095) & ~<size_t>4095, self.arena_bytes & ~<size_t>4095)
        if self.arena != NULL and n:
            with nogil:
                if self.filed and make_storage(self.log_fd, 0, n) == 0:
                    self.arena_backed = max(self.arena_backed, n)
                if not self.filed or self.arena_backed >= n:
                    colo_populate(self.arena, n)

    def shrink(self, size_t keep_bytes):
        """Return the arena's memory above ``keep_bytes`` to the system; only between checkpoints."""
        cdef size_t keep
        if self.count == 0 and self.arena != NULL and keep_bytes < self.arena_bytes:
            keep = (keep_bytes + 4095) & ~<size_t>4095
            if not self.filed:
                madvise(self.arena + keep, self.arena_bytes - keep, MADV_DONTNEED)
            elif fallocate(self.log_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <long>keep,
                           <long>(self.arena_bytes - keep)) == 0:
                self.arena_backed = min(self.arena_backed, keep)

    cdef int add(self, int kind, int block, uint64_t page_offset, uint64_t data, uint32_t length) noexcept nogil:
        cdef staged_entry *e
        cdef staged_entry *grown
        cdef size_t room
        self.staged_pages += 1
        if kind == STAGED_ZERO and self.count:
            e = &self.entries[self.count - 1]
            if (e.kind == STAGED_ZERO and e.block == block and e.length != <uint32_t>-1
                    and e.page_offset + (<uint64_t>e.length << WIRE_PAGE_BITS) == page_offset):
                e.length += 1
                return 0
        if self.count >= self.count_limit:
            return NO_ROOM
        if self.count == self.room and self.filed:
            if self.back(self.entries_fd, &self.entries_backed, (self.count + 1) * sizeof(staged_entry), self.entries_bytes):
                return OUT_OF_STORAGE
            self.room = self.entries_backed // sizeof(staged_entry)
        elif self.count == self.room:
            room = self.room * 2 if self.room else 4096
            grown = <staged_entry *>realloc(self.entries, room * sizeof(staged_entry))
            if grown == NULL:
                return NO_MEMORY
            self.entries = grown
            self.room = room
        e = &self.entries[self.count]
        self.count += 1
        e.page_offset = page_offset
        e.data = data
        e.length = length
        e.block = <uint16_t>block
        e.kind = <uint16_t>kind
        return 0

    cdef int room_for_page(self, uint8_t **room) noexcept nogil:
        cdef void *p
        if self.inflated == NULL:
            p = mmap(NULL, self.arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
            if p == MAP_FAILED:
                return NO_MEMORY
            madvise(p, self.arena_bytes, MADV_DONTDUMP)   # guest memory is secret
            self.inflated = <uint8_t *>p
        if self.no_room_for_page():
            return NO_ROOM
        if self.filed and self.back(self.pages_fd, &self.pages_backed, self.inflated_used + WIRE_PAGE_BYTES, self.arena_bytes):
            return OUT_OF_STORAGE
        room[0] = self.inflated + self.inflated_used
        return 0

    cdef bint no_room_for_page(self) noexcept nogil:
        return self.inflated_used + WIRE_PAGE_BYTES > self.arena_bytes

    cdef int add_made_page(self, int block, uint64_t page_offset) noexcept nogil:
        self.inflated_used += WIRE_PAGE_BYTES
        return self.add(STAGED_INFLATED, block, page_offset, self.inflated_used - WIRE_PAGE_BYTES, <uint32_t>WIRE_PAGE_BYTES)

    cdef int reserve_storage(self, int *bad_block, uint64_t *bad_offset) noexcept nogil:
        cdef size_t i
        cdef staged_entry *e
        cdef ram_block *b = NULL
        cdef uint64_t start = 0, end = 0
        cdef int code, block = -1
        for i in range(self.count):
            e = &self.entries[i]
            if e.kind == STAGED_ZERO or test_bit(self.blocks[e.block].present, e.page_offset >> WIRE_PAGE_BITS):
                continue
            if e.block == block and e.page_offset == end:
                end += WIRE_PAGE_BYTES
                continue
            if end > start:
                code = allocate(b, start, end)
                if code:
                    bad_block[0] = block
                    bad_offset[0] = start
                    return code
            block = e.block
            b = self.blocks[block]
            start = e.page_offset
            end = start + WIRE_PAGE_BYTES
        if end > start:
            code = allocate(b, start, end)
            if code:
                bad_block[0] = block
                bad_offset[0] = start
                return code
        return 0

    cdef void replay(self) noexcept nogil:
        cdef size_t i = 0
        cdef uint64_t page
        cdef staged_entry *e
        cdef ram_block *b
        while i < self.count:
            e = &self.entries[i]
            b = self.blocks[e.block]
            if b.memory == NULL:
                pass
            elif e.kind == STAGED_PAGE:
                if i + 4 <= self.count and four_ascending_pages(e):
                    self.replay_four(e, b)
                    i += 4
                    continue
                memcpy(b.memory + e.page_offset, self.log + e.data, WIRE_PAGE_BYTES)
                clear_bit(b.zero, e.page_offset >> WIRE_PAGE_BITS)
            elif e.kind == STAGED_ZERO:
                page = e.page_offset >> WIRE_PAGE_BITS
                for page in range(page, page + e.length):
                    if not test_bit(b.zero, page):
                        colo_zero_stream(b.memory + (page << WIRE_PAGE_BITS), WIRE_PAGE_BYTES)
                        set_bit(b.zero, page)
            elif e.kind == STAGED_XBZRLE:
                active().xbzrle_decode(self.log + e.data, <int>e.length, b.memory + e.page_offset, <int>WIRE_PAGE_BYTES)
                clear_bit(b.zero, e.page_offset >> WIRE_PAGE_BITS)
            else:
                memcpy(b.memory + e.page_offset, self.inflated + e.data, WIRE_PAGE_BYTES)
                clear_bit(b.zero, e.page_offset >> WIRE_PAGE_BITS)
            i += 1
        colo_stream_fence()

    cdef void replay_four(self, const staged_entry *e, ram_block *b) noexcept nogil:
        cdef uint8_t *to[4]
        cdef const uint8_t *source[4]
        cdef int k
        for k in range(4):
            to[k] = b.memory + e[k].page_offset
            source[k] = self.log + e[k].data
            clear_bit(b.zero, e[k].page_offset >> WIRE_PAGE_BITS)
        if <uintptr_t>b.memory & 63:
            colo_copy_four_anywhere(to, source, WIRE_PAGE_BYTES)
        else:
            colo_copy_four(to, source, WIRE_PAGE_BYTES)

    cdef void forget(self) noexcept nogil:
        if self.used + self.inflated_used > self.high_bytes:
            self.high_bytes = self.used + self.inflated_used
        self.count = 0
        self.used = 0
        self.inflated_used = 0
        self.staged_pages = 0


cdef inline bint four_ascending_pages(const staged_entry *e) noexcept nogil:
    """Whether e[0..4) are raw pages of one block, no page twice, so that their order does not matter."""
    cdef int k
    for k in range(1, 4):
        if e[k].kind != STAGED_PAGE or e[k].block != e[0].block or e[k].page_offset <= e[k - 1].page_offset:
            return False
    return True


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


cdef int allocate(ram_block *b, uint64_t start, uint64_t end) noexcept nogil:
    """Storage for [start, end) of a sparse block; 0 or an errno. Where the file system cannot allocate, write zeros."""
    cdef uint64_t at
    if b.fd >= 0 and fallocate(b.fd, 0, <long>start, <long>(end - start)) != 0:
        if errno != EOPNOTSUPP and errno != ENOSYS:
            return errno
        at = start
        while at < end:
            if pwrite(b.fd, zero_page, 4096, <long>at) != 4096:
                return errno
            at += WIRE_PAGE_BYTES
    for at in range(start >> WIRE_PAGE_BITS, end >> WIRE_PAGE_BITS):
        set_bit(b.present, at)
    return 0
