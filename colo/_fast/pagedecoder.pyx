# link: z
"""Decoding the body of a ``ram`` section at memory speed.

The stream is read straight into the staging arena and parsed where it lies: a raw page is never copied before it is
applied. Every flag, name, offset and length is checked here, before anything is kept.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from colo._fast.adaptive_decoder cimport DECODE_MISSING, DECODED, AdaptiveDecoder
from colo._fast.buffers cimport ReadBuffer
from colo._fast.digest cimport StreamDigest, colo_digest_update
from colo._fast.kernels cimport active
from colo._fast.ramblock cimport RamBlock, ram_block, set_bit, test_bit
from colo._fast.staging cimport STAGED_INFLATED, STAGED_PAGE, STAGED_XBZRLE, STAGED_ZERO, Staging

import os

from colo.errors import LimitExceeded, StorageError, StreamError
from colo.wire import RamFlag

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_PAGE_BYTES
    const int WIRE_PAGE_BITS
    const int WIRE_XBZRLE_ENCODING
    const int WIRE_ENCODING_LZ4_DELTA
    const int WIRE_ENCODING_ZSTD_DELTA
    const int WIRE_ENCODING_MASK_DELTA
    const uint64_t WIRE_RAM_ZERO
    const uint64_t WIRE_RAM_MEM_SIZE
    const uint64_t WIRE_RAM_PAGE
    const uint64_t WIRE_RAM_EOS
    const uint64_t WIRE_RAM_CONTINUE
    const uint64_t WIRE_RAM_XBZRLE
    const uint64_t WIRE_RAM_COMPRESS_PAGE
    const uint64_t WIRE_RAM_MULTIFD_FLUSH

cdef extern from "zlib.h":
    int uncompress(uint8_t *dest, unsigned long *dest_len, const uint8_t *source, unsigned long source_len) noexcept nogil

cdef extern from "sys/mman.h":
    void *mmap(void *address, size_t length, int prot, int flags, int fd, long offset) noexcept nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED

cdef enum:
    # What parse() found. BAD_* become a StreamError with the value that was refused.
    FOUND_EOS = 0
    FOUND_MEM_SIZE = 1
    NEED_MORE = 2
    BAD_FLAGS = 3
    BAD_NO_BLOCK = 4
    BAD_EMPTY_NAME = 5
    BAD_UNKNOWN_BLOCK = 6
    BAD_OFFSET = 7
    BAD_FILL = 8
    BAD_XBZRLE_HEADER = 9
    BAD_XBZRLE_LENGTH = 10
    BAD_XBZRLE = 11
    BAD_XBZRLE_BASE = 12
    BAD_COMPRESSED_LENGTH = 13
    BAD_COMPRESSED = 14
    OUT_OF_RECORDS = 15
    OUT_OF_MEMORY = 16
    BAD_MARK = 17
    BAD_ENCODED = 18
    BAD_TWICE = 19
    BAD_METHOD = 20
    # compressBound(4096) of zlib: a sender's buffer for one page is no larger.
    COMPRESSED_MAX = 4096 + 13 + 1
    LARGEST_RECORD = 8 + 256 + 4 + 4110
    WINDOW_BYTES = 1 << 20
    READ_BYTES = 1 << 20

EOS = -1
"""What :meth:`PageDecoder.decode` returns at the end of the body."""


cdef inline uint64_t load_u64(const uint8_t *p) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value = (value << 8) | p[i]
    return value


cdef class PageDecoder:
    """Decodes RAM records from a :class:`~colo._fast.buffers.ReadBuffer` into a :class:`~colo._fast.staging.Staging`.

    ``immediate=True`` applies records as they come, in a small window: for the stream before the first commit, when
    there is no committed state to protect, and for blocks without memory, whose records are only checked and counted.
    """

    cdef Staging staging
    cdef public bint immediate
    cdef StreamDigest digest
    cdef bint digested
    cdef AdaptiveDecoder codec
    cdef bint coded
    cdef uint64_t *touched          # with a codec: bit per page of all blocks, the page has come in this checkpoint
    cdef size_t *first_word         # of each block, in touched
    cdef int current                # block of the record before, -1: none
    cdef size_t at                  # in the log: next record
    cdef size_t filled              # in the log: bytes read
    cdef uint64_t value             # what was refused, or the total of MEM_SIZE
    cdef readonly uint64_t bytes_decoded

    def __init__(self, Staging staging not None, *, bint immediate=False):
        self.staging = staging
        self.immediate = immediate
        self.current = -1

    def __dealloc__(self):
        free(self.touched)
        free(self.first_word)

    def set_codec(self, AdaptiveDecoder codec):
        """Take pages in the encodings of :class:`~colo._fast.adaptive.AdaptiveCodec` too, from the next
        :meth:`set_blocks` on, outside ``immediate``; None: refuse them. Only where that was agreed with the sender."""
        self.codec = codec

    cdef int watch_pages(self, list blocks) except -1:
        """Note from now on which pages have come."""
        cdef RamBlock block
        cdef size_t n = 0, i
        cdef void *p = realloc(self.first_word, max(1, len(blocks)) * sizeof(size_t))
        if p == NULL:
            raise MemoryError("no memory for the list of RAM blocks")
        self.first_word = <size_t *>p
        for i, block in enumerate(blocks):
            self.first_word[i] = n
            n += ((block.c.used_length >> WIRE_PAGE_BITS) + 63) // 64
        p = realloc(self.touched, max(1, n) * 8)
        if p == NULL:
            raise MemoryError("no memory for the bitmap of a checkpoint's pages")
        self.touched = <uint64_t *>p
        memset(self.touched, 0, n * 8)
        return 0

    def set_blocks(self, list blocks):
        """Begin a checkpoint over ``blocks``. CONTINUE goes on with the block of the last record, as in QEMU."""
        cdef RamBlock block
        name = self.staging.block_list[self.current].idstr if self.current >= 0 else None
        if self.immediate:
            self.staging.begin(blocks, WINDOW_BYTES + LARGEST_RECORD)
        else:
            self.staging.begin(blocks)
        self.current = -1
        self.coded = self.codec is not None and not self.immediate
        if self.coded:
            self.watch_pages(blocks)
        for i, block in enumerate(blocks):
            if block.idstr == name:
                self.current = i

    def set_digest(self, StreamDigest digest):
        """Add the bytes of all pages' records from now on to ``digest``; None: to none any more."""
        self.digest = digest
        self.digested = digest is not None

    def decode(self, ReadBuffer buffer not None):
        """Decode records from ``buffer`` up to the end of the body (returns :data:`EOS`) or to a MEM_SIZE record
        (returns its total in bytes, with the block list next in ``buffer``).

        Raises :class:`~colo.errors.StreamError` with the offset and value of what was refused, and whatever the
        buffer raises; records decoded before stay staged until the staging is dropped.
        """
        cdef Staging s = self.staging
        cdef ssize_t got = 0
        cdef int found, code, bad_block = 0
        cdef size_t want
        cdef uint64_t bad_offset = 0
        if s.blocks == NULL:
            s.begin([], WINDOW_BYTES + LARGEST_RECORD)
        if buffer.exporter is not None and not self.immediate and (s.used == 0 or s.lender is buffer):
            return self.decode_in_place(buffer)
        if s.lender is not None:
            # Part of the checkpoint lies in another stream's memory: its log moves to where this one goes on.
            if s.used > s.limit:
                raise LimitExceeded(
                    f"more than {s.limit} bytes of RAM records in one checkpoint", where=self.place(),
                    offset=buffer.offset(), value=s.used)
            memcpy(s.arena, s.log, s.used)
            s.log = s.arena
            s.lender = None
        self.at = self.filled = s.used
        while True:
            with nogil:
                found = self.parse(s)
                if found <= NEED_MORE:
                    self.keep_parsed(s, found)
                code = 0
                if self.immediate and found <= NEED_MORE:
                    code = s.reserve_storage(&bad_block, &bad_offset)
                    if code == 0:
                        s.replay()
                        s.forget()
                        memmove(s.arena, s.arena + self.at, self.filled - self.at)
                        self.filled -= self.at
                        self.at = 0
                if code == 0 and found == NEED_MORE and self.filled < s.limit:
                    want = s.limit - self.filled
                    if want > READ_BYTES:
                        want = READ_BYTES
                    got = buffer.read_direct(s.arena + self.filled, want)
                    if got > 0:
                        self.filled += got
                        continue
            if code:
                raise StorageError(
                    f"RAM block {s.block_list[bad_block].idstr}: no storage for the page at {bad_offset:#x}: "
                    f"{os.strerror(code)}; free space in the RAM directory or give another with --ram-dir")
            if found == NEED_MORE:
                if self.filled >= s.limit:
                    raise LimitExceeded(
                        f"more than {s.limit} bytes of RAM records in one checkpoint", where=self.place(),
                        offset=buffer.offset(), value=self.filled)
                buffer.fail(got, "RAM record")
                continue
            buffer.give_back(s.arena + self.at, self.filled - self.at)
            if found == FOUND_EOS:
                return EOS
            if found == FOUND_MEM_SIZE:
                return self.value
            self.refuse(found, buffer.offset())

    cdef decode_in_place(self, ReadBuffer buffer):
        """Decode a stream that lies in memory: its own bytes serve as the log, and are held until applied."""
        cdef Staging s = self.staging
        cdef int found
        if s.lender is not buffer:
            s.lender = buffer
            s.log = buffer.data + buffer.head
        self.at = buffer.data + buffer.head - s.log
        self.filled = buffer.data + buffer.tail - s.log
        with nogil:
            found = self.parse(s)
        buffer.head = s.log + self.at - buffer.data
        if found <= NEED_MORE:
            self.keep_parsed(s, found)
        if found == FOUND_EOS:
            return EOS
        if found == FOUND_MEM_SIZE:
            return self.value
        if found == NEED_MORE:
            buffer.head = buffer.tail
            buffer.fail(0, "RAM record")
        self.refuse(found, buffer.offset())

    cdef void keep_parsed(self, Staging s, int found) noexcept nogil:
        """What parse() went past belongs to the checkpoint."""
        cdef size_t end = self.at
        self.bytes_decoded += end - s.used
        if self.digested:
            if found != NEED_MORE:
                end -= 8  # the mark that ended it is no page's record
            colo_digest_update(&self.digest.d, s.log + s.used, end - s.used)
        s.used = self.at

    cdef int parse(self, Staging s) noexcept nogil:
        """Stage the whole records in log[at, filled)."""
        cdef const uint8_t *p
        cdef size_t left, used, n
        cdef uint64_t word, kind, offset
        cdef ram_block *b
        cdef int block, code
        while True:
            p = s.log + self.at
            left = self.filled - self.at
            if left < 8:
                return NEED_MORE
            word = load_u64(p)
            offset = word & ~(WIRE_PAGE_BYTES - 1)
            kind = word & (WIRE_PAGE_BYTES - 1) & ~WIRE_RAM_CONTINUE
            self.value = word
            if kind != WIRE_RAM_PAGE and kind != WIRE_RAM_ZERO and kind != WIRE_RAM_XBZRLE \
                    and kind != WIRE_RAM_COMPRESS_PAGE:
                if word & WIRE_RAM_CONTINUE:
                    return BAD_FLAGS
                if kind == WIRE_RAM_MEM_SIZE:
                    self.value = offset
                    self.at += 8
                    return FOUND_MEM_SIZE
                if kind != WIRE_RAM_EOS and kind != WIRE_RAM_MULTIFD_FLUSH:
                    return BAD_FLAGS
                if offset:
                    return BAD_MARK
                self.at += 8
                if kind == WIRE_RAM_EOS:
                    return FOUND_EOS
                continue
            if word & WIRE_RAM_CONTINUE:
                used = 8
                block = self.current
                if block < 0:
                    return BAD_NO_BLOCK
            else:
                if left < 9:
                    return NEED_MORE
                n = p[8]
                used = 9 + n
                if n == 0:
                    return BAD_EMPTY_NAME
                if left < used:
                    return NEED_MORE
                block = self.find(s, p + 9, n)
                if block < 0:
                    return BAD_UNKNOWN_BLOCK
            b = s.blocks[block]
            if offset > b.used_length - WIRE_PAGE_BYTES:
                self.value = offset
                self.current = block
                return BAD_OFFSET
            p += used
            left -= used
            if kind == WIRE_RAM_PAGE:
                if left < WIRE_PAGE_BYTES:
                    return NEED_MORE
                code = s.add(STAGED_PAGE, block, offset, self.at + used, <uint32_t>WIRE_PAGE_BYTES)
                used += WIRE_PAGE_BYTES
                b.normal_pages += 1
            elif kind == WIRE_RAM_ZERO:
                if left < 1:
                    return NEED_MORE
                if p[0]:
                    self.value = p[0]
                    self.current = block
                    return BAD_FILL
                code = s.add(STAGED_ZERO, block, offset, 0, 1)
                used += 1
                b.zero_pages += 1
            elif kind == WIRE_RAM_XBZRLE:
                if left < 3:
                    return NEED_MORE
                self.current = block
                n = (<size_t>p[1] << 8) | p[2]
                if p[0] != WIRE_XBZRLE_ENCODING:
                    self.value = p[0]
                    if not self.coded:
                        return BAD_XBZRLE_HEADER
                    if left < 3 + n:
                        return NEED_MORE
                    code = self.decompress(s, block, offset, p[0], p + 3, <int>n)
                    if code > 2:
                        return code
                    if code:
                        return OUT_OF_RECORDS if code == 1 else OUT_OF_MEMORY
                    b.compressed_pages += 1
                    b.compressed_bytes += n
                    self.keep_record(block, offset, used + 3 + n)
                    continue
                self.value = n
                if n > WIRE_PAGE_BYTES:
                    return BAD_XBZRLE_LENGTH
                if left < 3 + n:
                    return NEED_MORE
                self.value = offset
                if active().xbzrle_check(p + 3, <int>n, <int>WIRE_PAGE_BYTES) < 0:
                    return BAD_XBZRLE
                if not test_bit(b.received, offset >> WIRE_PAGE_BITS):
                    return BAD_XBZRLE_BASE
                code = s.add(STAGED_XBZRLE, block, offset, self.at + used + 3, <uint32_t>n)
                used += 3 + n
                b.xbzrle_pages += 1
                b.xbzrle_bytes += n
            else:
                if left < 4:
                    return NEED_MORE
                self.current = block
                n = (<size_t>p[0] << 24) | (<size_t>p[1] << 16) | (<size_t>p[2] << 8) | p[3]
                self.value = n
                if n == 0 or n > COMPRESSED_MAX:
                    return BAD_COMPRESSED_LENGTH
                if left < 4 + n:
                    return NEED_MORE
                self.value = offset
                code = self.inflate(s, block, offset, p + 4, n)
                if code == BAD_COMPRESSED:
                    return code
                used += 4 + n
                b.compressed_pages += 1
                b.compressed_bytes += n
            if code:
                return OUT_OF_RECORDS if code == 1 else OUT_OF_MEMORY
            self.keep_record(block, offset, used)

    cdef inline void keep_record(self, int block, uint64_t offset, size_t length) noexcept nogil:
        set_bit(self.staging.blocks[block].received, offset >> WIRE_PAGE_BITS)
        if self.coded:
            set_bit(self.touched + self.first_word[block], offset >> WIRE_PAGE_BITS)
        self.current = block
        self.at += length

    cdef uint8_t *inflated_room(self, Staging s) noexcept nogil:
        """Where to make a page, NULL when there is no memory."""
        cdef void *p
        if s.inflated == NULL:
            p = mmap(NULL, s.arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
            if p == MAP_FAILED:
                return NULL
            s.inflated = <uint8_t *>p
        return s.inflated + s.inflated_used

    cdef int decompress(self, Staging s, int block, uint64_t offset, int encoding, const uint8_t *source, int n) noexcept nogil:
        """Stage a record of the agreed codec as its page. It is made now, from the committed page where it is a delta: so
        what does not decode is refused before anything is committed."""
        cdef ram_block *b = s.blocks[block]
        cdef uint64_t page = offset >> WIRE_PAGE_BITS
        cdef uint8_t *room
        cdef int code
        if (encoding == WIRE_ENCODING_LZ4_DELTA or encoding == WIRE_ENCODING_ZSTD_DELTA
                or encoding == WIRE_ENCODING_MASK_DELTA):
            self.value = offset
            if not test_bit(b.received, page):
                return BAD_XBZRLE_BASE
            if test_bit(self.touched + self.first_word[block], page):
                return BAD_TWICE
        if b.memory == NULL:
            return 0
        room = self.inflated_room(s)
        if room == NULL:
            return 2
        if s.inflated_used + WIRE_PAGE_BYTES > s.arena_bytes:
            return 1
        code = self.codec.decode(encoding, source, n, b.memory + offset, room)
        if code == DECODE_MISSING:
            self.value = encoding
            return BAD_METHOD
        if code != DECODED:
            self.value = offset
            return BAD_ENCODED
        s.inflated_used += WIRE_PAGE_BYTES
        return s.add(STAGED_INFLATED, block, offset, s.inflated_used - WIRE_PAGE_BYTES, <uint32_t>WIRE_PAGE_BYTES)

    cdef int inflate(self, Staging s, int block, uint64_t offset, const uint8_t *source, size_t n) noexcept nogil:
        """Stage a COMPRESS_PAGE record as its page: what does not inflate to exactly one page is refused now."""
        cdef unsigned long size = WIRE_PAGE_BYTES
        if self.inflated_room(s) == NULL:
            return 2
        if s.inflated_used + WIRE_PAGE_BYTES > s.arena_bytes:
            # Pages that compress well outnumber what the window holds raw.
            if not self.immediate or self.flush(s):
                return 1
        if uncompress(s.inflated + s.inflated_used, &size, source, n) != 0 or size != WIRE_PAGE_BYTES:
            return BAD_COMPRESSED
        s.inflated_used += WIRE_PAGE_BYTES
        return s.add(STAGED_INFLATED, block, offset, s.inflated_used - WIRE_PAGE_BYTES, <uint32_t>WIRE_PAGE_BYTES)

    cdef int flush(self, Staging s) noexcept nogil:
        """Immediate mode: apply what is staged; the window's bytes stay where they are."""
        cdef int bad_block
        cdef uint64_t bad_offset
        cdef size_t used = s.used
        if s.reserve_storage(&bad_block, &bad_offset):
            return 1
        s.replay()
        s.forget()
        s.used = used
        return 0

    cdef int find(self, Staging s, const uint8_t *name, size_t n) noexcept nogil:
        cdef int i, count = <int>s.block_count
        if self.current >= 0 and s.blocks[self.current].name_bytes == n \
                and memcmp(s.blocks[self.current].name, name, n) == 0:
            return self.current
        for i in range(count):
            if s.blocks[i].name_bytes == n and memcmp(s.blocks[i].name, name, n) == 0:
                return i
        return -1

    cdef str place(self):
        if self.current < 0:
            return "ram section"
        return f"ram section, block {self.staging.block_list[self.current].idstr}"

    cdef int refuse(self, int found, uint64_t offset) except -1:
        cdef uint64_t value = self.value
        where = self.place()
        if found == BAD_FLAGS:
            flags = value & (WIRE_PAGE_BYTES - 1)
            raise StreamError(flag_text(flags), where=where, offset=offset, value=flags)
        if found in (OUT_OF_RECORDS, OUT_OF_MEMORY):
            raise LimitExceeded(
                "more RAM records in one checkpoint than its blocks have pages" if found == OUT_OF_RECORDS
                else "no memory for the staged records", where=where, offset=offset, value=self.staging.count)
        text = {
            BAD_MARK: f"an end or flush mark carries the offset {value & ~(WIRE_PAGE_BYTES - 1):#x}",
            BAD_NO_BLOCK: "CONTINUE, but no record before it named a block",
            BAD_EMPTY_NAME: "a record names a block with an empty name",
            BAD_UNKNOWN_BLOCK: "a record names a block that was not announced",
            BAD_OFFSET: f"page offset {value:#x} is past the block's end",
            BAD_FILL: f"a ZERO record fills with {value:#04x}, not 0",
            BAD_XBZRLE_HEADER: f"XBZRLE encoding {value}, not {WIRE_XBZRLE_ENCODING}",
            BAD_XBZRLE_LENGTH: f"XBZRLE length {value} is more than a page",
            BAD_XBZRLE: f"XBZRLE data of page {value:#x} run past the page or are malformed",
            BAD_XBZRLE_BASE: f"XBZRLE on page {value:#x}, which never came before",
            BAD_ENCODED: f"the compressed page {value:#x} does not decode to one page",
            BAD_TWICE: f"a compressed delta on page {value:#x}, which came before in the same checkpoint",
            BAD_METHOD: f"page encoding {value:#x} was agreed on, but its library is missing here",
            BAD_COMPRESSED_LENGTH: f"compressed length {value}; 1 to {COMPRESSED_MAX} is possible for a page",
            BAD_COMPRESSED: f"compressed data of page {value:#x} do not inflate to one page",
        }[found]
        raise StreamError(text, where=where, offset=offset, value=value)


cdef str flag_text(flags):
    if flags & RamFlag.HOOK:
        return f"flag HOOK ({flags:#x}) is RDMA's, which this channel is not"
    named = [f.name for f in RamFlag if flags & f]
    unknown = flags & ~sum(RamFlag)
    if unknown:
        return f"unknown flag {unknown:#x} in {flags:#x}" + (f" beside {', '.join(named)}" if named else "")
    if not flags:
        return "a record without a type flag"
    return f"flags {', '.join(named)} ({flags:#x}) do not go together in one record"
