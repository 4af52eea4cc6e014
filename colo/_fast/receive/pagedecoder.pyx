"""Decoding the body of a ``ram`` section at memory speed.

The stream is read straight into the staging arena and parsed where it lies: a raw page is never copied before it is
applied. Every flag, name, offset and length is checked here, before anything is kept.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from colo._fast.kernels.digest cimport StreamDigest, colo_digest_update
from colo._fast.kernels.kernels cimport active
from colo._fast.kernels.ramblock cimport RamBlock, ram_block, set_bit, test_bit
from colo._fast.receive.adaptive_decoder cimport AdaptiveDecoder
from colo._fast.receive.buffers cimport ReadBuffer
from colo._fast.receive.compressed_pages cimport CompressedPages
from colo._fast.receive.ram_refusals cimport (
    BAD_COMPRESSED, BAD_COMPRESSED_LENGTH, BAD_EMPTY_NAME, BAD_FILL, BAD_FLAGS, BAD_MARK, BAD_METHOD, BAD_NO_BLOCK,
    BAD_OFFSET, BAD_UNKNOWN_BLOCK, BAD_XBZRLE, BAD_XBZRLE_BASE, BAD_XBZRLE_HEADER, BAD_XBZRLE_LENGTH,
    COMPRESSED_MAX, OUT_OF_MEMORY, OUT_OF_RECORDS, OUT_OF_STORAGE, refusal,
)
from colo._fast.receive.redolog cimport NO_MEMORY, NO_ROOM, STAGED_PAGE, STAGED_XBZRLE, STAGED_ZERO
from colo._fast.receive.staging cimport Staging

import os

from colo.errors import LimitExceeded, StorageError

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_PAGE_BYTES
    const int WIRE_PAGE_BITS
    const int WIRE_XBZRLE_ENCODING
    const uint64_t WIRE_RAM_ZERO
    const uint64_t WIRE_RAM_MEM_SIZE
    const uint64_t WIRE_RAM_PAGE
    const uint64_t WIRE_RAM_EOS
    const uint64_t WIRE_RAM_CONTINUE
    const uint64_t WIRE_RAM_XBZRLE
    const uint64_t WIRE_RAM_COMPRESS_PAGE
    const uint64_t WIRE_RAM_MULTIFD_FLUSH

cdef enum:
    # What parse() found, beside what is refused.
    FOUND_EOS = 0
    FOUND_MEM_SIZE = 1
    NEED_MORE = 2
    LARGEST_RECORD = 8 + 256 + 4 + 4110
    WINDOW_BYTES = 1 << 20
    READ_BYTES = 1 << 20
    LEAST_READ_BYTES = 4096

EOS = -1
"""What :meth:`PageDecoder.decode` returns at the end of the body."""


cdef inline uint64_t load_u64(const uint8_t *p) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(8):
        value = (value << 8) | p[i]
    return value


cdef inline int refused(int code) noexcept nogil:
    """What parse() returns where staging a record returned ``code``."""
    return OUT_OF_RECORDS if code == NO_ROOM else OUT_OF_MEMORY if code == NO_MEMORY else code


cdef class PageDecoder:
    """Decodes RAM records from a :class:`~colo._fast.receive.buffers.ReadBuffer` into a
    :class:`~colo._fast.receive.staging.Staging`.

    ``immediate=True`` applies records as they come, in a small window: for the stream before the first commit, when
    there is no committed state to protect, and for blocks without memory, whose records are only checked and counted.
    """

    cdef Staging staging
    cdef public bint immediate
    cdef StreamDigest digest
    cdef bint digested
    cdef AdaptiveDecoder codec
    cdef CompressedPages compressed
    cdef bint coded                 # in this checkpoint, the encodings of the codec are taken
    cdef int current                # block of the record before, -1: none
    cdef size_t at                  # in the log: next record
    cdef size_t filled              # in the log: bytes read
    cdef uint64_t value             # what was refused, or the total of MEM_SIZE
    cdef readonly uint64_t bytes_decoded

    def __cinit__(self, *args, **kwargs):
        self.compressed = CompressedPages()

    def __init__(self, Staging staging not None, *, bint immediate=False):
        self.staging = staging
        self.immediate = immediate
        self.current = -1

    def set_codec(self, AdaptiveDecoder codec):
        """Take pages in the encodings of :class:`~colo._fast.send.adaptive.AdaptiveCodec` too, from the next
        :meth:`set_blocks` on, outside ``immediate``; None: refuse them. Only where that was agreed with the sender."""
        self.codec = codec

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
            self.compressed.watch(blocks, self.codec)
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
        if buffer.exporter is not None and not self.immediate and not s.filed and (s.used == 0 or s.lender is buffer):
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
                    # Where little is free, it is read in smaller pieces: they may be all there is to come.
                    while s.back_log(self.filled + want) and want > LEAST_READ_BYTES:
                        want = want // 2
                    if s.back_log(self.filled + want):
                        found = OUT_OF_STORAGE
                    else:
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
            if found == OUT_OF_STORAGE:
                raise s.storage_error()
            raise refusal(found, self.value, self.place(), buffer.offset(), s.count)

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
        raise refusal(found, self.value, self.place(), buffer.offset(), s.count)

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
                    code = self.compressed.decompress(s, block, offset, p[0], p + 3, <int>n)
                    if code:
                        if code != BAD_METHOD:
                            self.value = offset
                        return refused(code)
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
                # Pages that compress well outnumber what the window holds raw.
                if self.immediate and s.no_room_for_page() and self.flush(s):
                    return OUT_OF_RECORDS
                code = self.compressed.inflate(s, block, offset, p + 4, n)
                if code == BAD_COMPRESSED:
                    return code
                used += 4 + n
                b.compressed_pages += 1
                b.compressed_bytes += n
            if code:
                return refused(code)
            self.keep_record(block, offset, used)

    cdef inline void keep_record(self, int block, uint64_t offset, size_t length) noexcept nogil:
        set_bit(self.staging.blocks[block].received, offset >> WIRE_PAGE_BITS)
        if self.coded:
            set_bit(self.compressed.touched + self.compressed.first_word[block], offset >> WIRE_PAGE_BITS)
        self.current = block
        self.at += length

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
