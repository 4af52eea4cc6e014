"""The staged checkpoint: pages that have arrived but are not yet part of the committed image.

It is a redo log. The stream's own bytes are read straight into the arena and stay there; an entry a page says what to
do with them. (A stream that lies in memory already is its own arena.) Until the checkpoint is whole the image is not
touched, and dropping the checkpoint is forgetting the entries. Once committed, the entries are replayed onto the image
in the order they came: the committed state is image plus log at every instant.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from colo._fast.kernels.kernels cimport active
from colo._fast.kernels.ramblock cimport RamBlock, ram_block
from colo._fast.receive.ram_refusals cimport OUT_OF_STORAGE
from colo._fast.receive.redolog cimport (
    NO_MEMORY, NO_ROOM, STAGED_INFLATED, STAGED_PAGE, STAGED_XBZRLE, STAGED_ZERO, RedoLog, staged_entry,
)
from colo._fast.receive.replay cimport give_storage, replay_entries

import os

from colo.errors import StorageError

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_PAGE_BYTES
    const int WIRE_PAGE_BITS

cdef enum:
    MAX_BLOCKS = 4096
    SLACK_BYTES = 16 << 20


cdef class Staging(RedoLog):
    """A staged checkpoint for the RAM blocks given to :meth:`begin`; its log is in ``files``, or in memory (:class:`RedoLog`).

    One object serves all checkpoints of a session in turn: :meth:`begin`, records added by
    :class:`~colo._fast.receive.pagedecoder.PageDecoder`, :meth:`reserve`, then :meth:`apply` or :meth:`drop`. Only
    unlimited checkpoints are kept in files.
    """

    def __dealloc__(self):
        free(self.blocks)

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
        self.map_log(need, self.count_limit, limit_bytes is None and self.log_fd >= 0)
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
            code = self.back_entries(records)
        if code == 0:
            code = self.back_made_pages(pages_bytes)
        if code:
            raise self.storage_error()
        with nogil:
            code = self.check_entries(records, log_bytes, pages_bytes, &bad)
        if code:
            raise StorageError(
                f"{os.readlink(f'/proc/self/fd/{self.entries_fd}')}: entry {bad} of {records} is none of a checkpoint of these "
                "RAM blocks: the redo log is damaged")
        self.count = records
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

    def shrink(self, size_t keep_bytes):
        """Return the arena's memory above ``keep_bytes`` to the system; only between checkpoints."""
        if self.count == 0:
            self.give_back(keep_bytes)

    cdef int add(self, int kind, int block, uint64_t page_offset, uint64_t data, uint32_t length) noexcept nogil:
        cdef staged_entry *e
        cdef int code
        self.staged_pages += 1
        if kind == STAGED_ZERO and self.count:
            e = &self.entries[self.count - 1]
            if (e.kind == STAGED_ZERO and e.block == block and e.length != <uint32_t>-1
                    and e.page_offset + (<uint64_t>e.length << WIRE_PAGE_BITS) == page_offset):
                e.length += 1
                return 0
        if self.count >= self.count_limit:
            return NO_ROOM
        if self.count == self.room:
            code = self.grow_entries(self.count + 1)
            if code:
                return code
        e = &self.entries[self.count]
        self.count += 1
        e.page_offset = page_offset
        e.data = data
        e.length = length
        e.block = <uint16_t>block
        e.kind = <uint16_t>kind
        return 0

    cdef int room_for_page(self, uint8_t **room) noexcept nogil:
        if self.inflated == NULL and self.map_made_pages():
            return NO_MEMORY
        if self.no_room_for_page():
            return NO_ROOM
        if self.back_made_pages(self.inflated_used + WIRE_PAGE_BYTES):
            return OUT_OF_STORAGE
        room[0] = self.inflated + self.inflated_used
        return 0

    cdef bint no_room_for_page(self) noexcept nogil:
        return self.inflated_used + WIRE_PAGE_BYTES > self.arena_bytes

    cdef int add_made_page(self, int block, uint64_t page_offset) noexcept nogil:
        self.inflated_used += WIRE_PAGE_BYTES
        return self.add(STAGED_INFLATED, block, page_offset, self.inflated_used - WIRE_PAGE_BYTES, <uint32_t>WIRE_PAGE_BYTES)

    cdef int reserve_storage(self, int *bad_block, uint64_t *bad_offset) noexcept nogil:
        return give_storage(self.entries, self.count, self.blocks, bad_block, bad_offset)

    cdef void replay(self) noexcept nogil:
        replay_entries(self.entries, self.count, self.blocks, self.log, self.inflated)

    cdef void forget(self) noexcept nogil:
        if self.used + self.inflated_used > self.high_bytes:
            self.high_bytes = self.used + self.inflated_used
        self.count = 0
        self.used = 0
        self.inflated_used = 0
        self.staged_pages = 0
