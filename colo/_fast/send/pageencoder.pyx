"""Sends dirty pages as records of the ``ram`` section: dirty bitmap + RAM block + remembered pages -> file
descriptor.

The work is done in C, in batches, without the GIL (``ramrecords.h`` makes the records, the outlet sends
them). Raw pages are gathered from where they lie, never copied in this process.

What is remembered and what is sent must be the same bytes even while the guest writes:

* without a cache, a raw page is read by the kernel as it is sent, and a page written meanwhile may arrive as
  a mixture of old and new. It is dirty again, then, and follows in a later round; what the VM resumes from is
  sent while it is stopped;
* with a cache or shadow copy each page is read once, into the copy, and encoded and sent from there.

Memory that goes away (a file mapping whose file is cut short) ends the process by SIGBUS, as for any program;
a buffer whose owner can resize it refuses to while a block is open.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from colo._fast.kernels.bitmap cimport DirtyBitmap, colo_bitmap_count_range
from colo._fast.kernels.digest cimport StreamDigest, colo_digest_update
from colo._fast.kernels.kernels cimport for_level
from colo._fast.send.adaptive cimport AdaptiveCodec
from colo._fast.send.outlet cimport COLO_GATHER_MAX, COLO_NO_DEADLINE, COLO_OUTLET_MEMORY, COLO_SENT_ALL, Outlet
from colo._fast.send.pagecache cimport RememberedPages, check_page_bytes, colo_cache_counts_move
from colo._fast.send.ramrecords cimport (
    WIRE_RAM_EOS, colo_encode_pages, colo_put_u64, colo_record_counts, colo_record_worst_bytes, colo_records,
    colo_records_point, colo_records_reset, colo_records_wrote, iovec,
)
from colo._fast.send.recordarena cimport RecordArena
from colo._fast.send.sentblock cimport SentBlock

from typing import NamedTuple

from colo.errors import ChannelError

cdef size_t ARENA_BYTES = 256 << 10
cdef uint64_t NO_BUDGET = ~(<uint64_t>0)
KINDS = ("zero", "page", "xbzrle", "lz4_delta", "zstd_delta", "lz4_page", "zstd_page", "mask_delta",
         "unchanged")


class EncoderStats(NamedTuple):
    """Counts since the encoder was made.

    ``pages`` and ``bytes`` are by kind of record: ``zero``, ``page`` (raw), ``xbzrle``, ``lz4_delta``,
    ``zstd_delta``, ``lz4_page``, ``zstd_page``, ``mask_delta``, and ``unchanged`` (marked dirty, but equal to what the
    receiver holds: nothing is sent). ``bytes`` counts whole records, with their headers. ``sent_bytes`` is
    all that went out, section headers included, in ``sends`` system calls or more (a call that could not take
    all is repeated and counted once).
    """

    pages: dict[str, int]
    bytes: dict[str, int]
    sent_bytes: int
    sends: int


cdef int send_batch(void *encoder, colo_records *r) noexcept nogil:
    if (<PageEncoder>encoder).digested:
        (<PageEncoder>encoder).digest_records(r, r.first, 0)
    return (<PageEncoder>encoder).outlet.send(r)


cdef class PageEncoder:
    """Encodes and sends pages. One user at a time; it belongs to one connection and ends with it.

    ``fd``: a socket, pipe or file open for writing, not owned; or None to collect the bytes, in ``arena`` (a
    :class:`~colo._fast.send.recordarena.RecordArena`) or for :meth:`take`.
    A blocking descriptor is waited on without a limit only when a call gives no deadline. A blocking *pipe*
    under a deadline is written in pieces of 4 KiB, the most that cannot block: set O_NONBLOCK on it for
    speed. Sockets never raise SIGPIPE; on a pipe it must be ignored, as Python does. ``wake_fd``: when this
    becomes readable, a call that waits ends with Interrupted. ``page_bytes``: the target's page, a power of
    two of 1024 to 65536. ``simd``: see :mod:`colo._fast.kernels.kernels`. ``codec``: an
    :class:`~colo._fast.send.adaptive.AdaptiveCodec`, only towards a colo peer that agreed to it.
    ``threads``: 1 to 16, the caller's own included; the others live only during a call that has at least 512
    pages to encode against a shadow copy or to compress, and share that work (sending stays in order; a
    PageCache is used by one thread).

    Raises ValueError for a descriptor that is not open for writing, or a page size that is not one.
    """

    def __cinit__(self, *args, **kwargs):
        self.outlet = Outlet()
        self.block = SentBlock()

    def __init__(self, fd=None, *, Py_ssize_t page_bytes=4096, int wake_fd=-1, simd=None,
                 AdaptiveCodec codec=None, int threads=1, RecordArena arena=None):
        cdef int i
        if self.records.arena != NULL:
            raise TypeError("a PageEncoder is made once")
        check_page_bytes(page_bytes)
        if not 1 <= threads <= COLO_CREW_MAX:
            raise ValueError(f"a page encoder works with 1 to {COLO_CREW_MAX} threads, not {threads}")
        self.block.c.kernels = for_level(simd)
        self.block.c.page_bytes = page_bytes
        self.page_bytes = page_bytes
        self.outlet.to.wake_fd = wake_fd
        self.outlet.open(fd, arena)
        self.records.room = max(ARENA_BYTES, 8 * colo_record_worst_bytes(page_bytes))
        self.records.max = COLO_GATHER_MAX
        self.records.arena = <uint8_t *>malloc(self.records.room)
        self.records.snapshot = <uint8_t *>malloc(page_bytes)
        self.records.iov = <iovec *>calloc(self.records.max, sizeof(iovec))
        if self.records.arena == NULL or self.records.snapshot == NULL or self.records.iov == NULL:
            raise MemoryError("no memory for a page encoder")
        if codec is not None:
            codec.bind(page_bytes, threads)
            self.codec = codec
            self.records.codec = codec.for_thread(0)
        if threads > 1:
            self.crew = colo_crew_new(threads, page_bytes)
            if self.crew == NULL:
                raise MemoryError("no memory for a page encoder")
            for i in range(threads if codec is not None else 0):
                self.crew.codecs[i] = codec.for_thread(i)

    def __dealloc__(self):
        free(self.records.arena)
        free(self.records.snapshot)
        free(self.records.iov)
        colo_crew_free(self.crew)

    # -- the engine, without the GIL

    cdef void digest_records(self, colo_records *r, size_t start, size_t skip) noexcept nogil:
        """Add the records in iov[start...) to the digest, without the first ``skip`` bytes."""
        cdef size_t i
        for i in range(start, r.count):
            colo_digest_update(&self.digest.d, <const uint8_t *>r.iov[i].iov_base + skip, r.iov[i].iov_len - skip)
            skip = 0

    cdef void encode_more(self, colo_records *r, uint64_t budget_bytes) noexcept nogil:
        """Make records of the open block's next pages, as many as there is room for."""
        cdef size_t last = 0, skip = 0
        cdef bint digested = self.digested
        if digested:
            # What was written before may grow at its end: sent bytes are contiguous there.
            last = r.count - 1 if r.count > r.first else r.count
            skip = r.iov[last].iov_len if last < r.count else 0
        self.next_page = colo_encode_pages(r, &self.block.c, self.next_page, self.block.c.pages, budget_bytes, &self.seen)
        if digested:
            self.digest_records(r, last, skip)

    cdef bint worth_a_crew(self, uint64_t budget_bytes) noexcept nogil:
        cdef size_t left
        # Raw pages cost the kernel's copy and little else, and the slots of a PageCache are shared by pages:
        # one thread.
        if self.crew == NULL or self.block.c.cache != NULL:
            return False
        if self.block.c.shadow == NULL and self.records.codec.compress == NULL:
            return False
        if self.next_page >= self.block.c.pages or budget_bytes < 2 * self.crew.worst_batch_bytes:
            return False
        if self.block.c.dirty == NULL:
            return self.block.c.pages - self.next_page >= 2 * COLO_BATCH_PAGES
        left = colo_bitmap_count_range(self.block.c.dirty, self.next_page, self.block.c.pages - self.next_page)
        return left >= 2 * COLO_BATCH_PAGES

    cdef int drive(self, uint64_t budget_bytes, bint flush) noexcept nogil:
        """Encode and send until the budget or the block is used up."""
        cdef colo_records *r = &self.records
        cdef bint more
        cdef int status
        if self.worth_a_crew(budget_bytes):
            if r.count > 0:
                status = self.outlet.send(r)
                if status != COLO_SENT_ALL:
                    return status
            status = colo_crew_run(self.crew, r, &self.block.c, &self.next_page, budget_bytes, &self.seen,
                                   send_batch, <void *>self)
            if status != COLO_SENT_ALL:
                return status
        while True:
            if self.next_page < self.block.c.pages and r.bytes < budget_bytes:
                self.encode_more(r, budget_bytes)
            more = self.next_page < self.block.c.pages and r.bytes < budget_bytes
            if r.count > 0 and (more or flush or r.outside):
                status = self.outlet.send(r)
                if status != COLO_SENT_ALL:
                    return status
            if not more:
                return COLO_SENT_ALL

    # -- the edge

    cdef int enter(self, object deadline_ns) except -1:
        if self.busy:
            raise RuntimeError("this PageEncoder is in use by another thread")
        if self.failed:
            raise ChannelError("an earlier call of this PageEncoder failed in the middle of the stream: make "
                               "a new one")
        self.outlet.to.deadline_ns = COLO_NO_DEADLINE if deadline_ns is None else <int64_t>deadline_ns
        self.busy = True
        return 0

    cdef int leave(self, int status) except -1:
        self.busy = False
        if status == COLO_SENT_ALL:
            return 0
        self.failed = True
        raise self.outlet.failure(status)

    cdef int flush_now(self) except -1:
        cdef int status = COLO_SENT_ALL
        if self.records.count > 0:
            with nogil:
                status = self.outlet.send(&self.records)
        self.leave(status)
        return 0

    def begin_block(self, str idstr not None, memory, DirtyBitmap bitmap=None, RememberedPages cache=None, *,
                    uint64_t address=0, uint64_t age=0, bint detect_zero=True):
        """Open a RAM block: the pages sent from now on are its.

        ``memory``: a contiguous buffer of single bytes, a whole number of pages; read-only will do, and no
        alignment is needed. It is kept exported until :meth:`close` or the next block. ``bitmap``: which
        pages to send, of as many pages as the block; None: all. It is not changed, and must not be by others
        until the block is done. ``cache``: a :class:`~colo._fast.send.pagecache.PageCache` (``address`` is the
        block's address in it, ``age`` the number of the checkpoint), a
        :class:`~colo._fast.send.pagecache.ShadowCache` of as many pages, or None to send whole pages.

        Raises ValueError or BufferError, with nothing changed, when something does not fit.
        """
        if self.busy:
            raise RuntimeError("this PageEncoder is in use by another thread")
        self.block.open(idstr, memory, bitmap, cache, address, age, detect_zero)
        self.records.named = 0
        self.next_page = 0

    def encode(self, budget_bytes=None, deadline_ns=None, bint flush=True):
        """Send dirty pages of the open block, in order, until ``budget_bytes`` are reached (None: all of
        them).

        The budget may be passed by less than one record. ``deadline_ns``: on time.monotonic_ns()'s clock.
        ``flush`` False lets small records wait, to leave together with what follows, until a call that
        flushes. Returns (pages looked at, bytes made, whether pages are left).

        Raises ChannelLost, DeadlineExceeded, Interrupted, StorageError, or another ChannelError. The stream
        then ends in the middle: the encoder is of no more use, and the pages of the checkpoint must be
        invalidated in the cache.
        """
        cdef uint64_t budget = NO_BUDGET if budget_bytes is None else <uint64_t>budget_bytes
        cdef RememberedPages remembered = self.block.remembered
        cdef int status
        if not self.block.held:
            raise RuntimeError("begin_block() first")
        self.enter(deadline_ns)
        if remembered is not None:
            try:
                remembered.hold()
            except BaseException:
                self.busy = False
                raise
        self.seen = 0
        self.records.bytes = 0
        with nogil:
            status = self.drive(budget, flush)
        if remembered is not None:
            colo_cache_counts_move(remembered.counts(), &self.records.remembered)
            remembered.release()
        self.sent_bytes += self.records.bytes
        self.leave(status)
        return self.seen, self.records.bytes, self.next_page < self.block.c.pages

    def write(self, const uint8_t[::1] data not None, deadline_ns=None, bint flush=False):
        """Put other bytes of the stream (section headers, footers) between the records; they leave with the
        next flush, or at once when they are long or ``flush`` is given. Raises what :meth:`encode` does."""
        self.enter(deadline_ns)
        if data.shape[0]:
            self.put(&data[0], data.shape[0], flush)
        elif flush:
            self.flush_now()
        self.busy = False

    cdef int put(self, const uint8_t *data, size_t n, bint flush) except -1:
        if self.records.count == self.records.max:
            self.flush_now()
            self.busy = True
        if n <= self.records.room - self.records.used:
            memcpy(self.records.arena + self.records.used, data, n)
            colo_records_wrote(&self.records, n)
        else:
            colo_records_point(&self.records, data, n)
            flush = True
        self.sent_bytes += n
        if flush:
            self.flush_now()
        self.busy = False
        return 0

    def end_section(self, deadline_ns=None, bint flush=True):
        """Write the EOS record that ends a section's body; the next record names its block again. The block
        stays open, so that :meth:`encode` can go on in a further section. Raises what :meth:`encode` does."""
        cdef uint8_t eos[8]
        colo_put_u64(eos, WIRE_RAM_EOS)
        self.enter(deadline_ns)
        self.records.named = 0
        self.put(eos, 8, flush)

    def set_digest(self, StreamDigest digest):
        """Add the bytes of all pages' records from now on, and of nothing between them, to ``digest``; None: to none
        any more. Memory must not be written until it is sent."""
        if self.busy:
            raise RuntimeError("this PageEncoder is in use by another thread")
        self.digest = digest
        self.digested = digest is not None

    def flush(self, deadline_ns=None):
        """Send what is pending. Raises what :meth:`encode` does."""
        self.enter(deadline_ns)
        self.flush_now()

    def close(self):
        """Let go of the block's memory. What is pending and was not flushed is dropped."""
        if self.busy:
            raise RuntimeError("this PageEncoder is in use by another thread")
        self.block.close()
        self.next_page = 0
        colo_records_reset(&self.records)

    def take(self):
        """The bytes collected so far, when there is no file descriptor; they are let go. ValueError when
        there is one."""
        if self.outlet.to.kind != COLO_OUTLET_MEMORY:
            raise ValueError("this PageEncoder writes to a file descriptor")
        if self.busy:
            raise RuntimeError("this PageEncoder is in use by another thread")
        made = PyBytes_FromStringAndSize(<char *>self.outlet.arena.data, self.outlet.arena.used)
        self.outlet.arena.clear()
        return made

    @property
    def pending_bytes(self):
        """Bytes made and not yet sent."""
        cdef size_t i, total = 0
        for i in range(self.records.first, self.records.count):
            total += self.records.iov[i].iov_len
        return total

    @property
    def stats(self):
        """An :class:`EncoderStats`."""
        cdef colo_record_counts *c = &self.records.counts
        return EncoderStats({kind: c.pages[i] for i, kind in enumerate(KINDS)},
                            {kind: c.bytes[i] for i, kind in enumerate(KINDS)}, self.sent_bytes, self.outlet.sends)
