"""The records of a ``ram`` section counted, for target pages of any size: what is in a stream, without keeping it.

:mod:`colo._fast.receive.pagedecoder` decodes pages of 4096 bytes into memory, for sessions. This only follows the
records, checks what can be checked without the pages, and counts: for people who look into a stream.
"""
from libc.stdint cimport uint64_t

from colo._fast.receive.buffers cimport ReadBuffer

from colo.errors import StreamError
from colo.wire import IDSTR_MAX_BYTES, RamFlag

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_RAM_ZERO
    const uint64_t WIRE_RAM_MEM_SIZE
    const uint64_t WIRE_RAM_PAGE
    const uint64_t WIRE_RAM_EOS
    const uint64_t WIRE_RAM_CONTINUE
    const uint64_t WIRE_RAM_XBZRLE
    const uint64_t WIRE_RAM_HOOK
    const uint64_t WIRE_RAM_COMPRESS_PAGE
    const uint64_t WIRE_RAM_MULTIFD_FLUSH

PAGE_BYTES_MIN = 1024
"""Smaller pages would leave no room for the flags in the low bits of an offset."""
PAGE_BYTES_MAX = 65536
EOS = -1
"""What :meth:`RamSurvey.decode` returns at the end of the body."""


cdef class BlockCounts:
    """What came of one block."""

    cdef readonly str idstr
    cdef readonly uint64_t used_length
    cdef public uint64_t zero_pages, normal_pages, xbzrle_pages, compressed_pages

    def __init__(self, str idstr, uint64_t used_length):
        self.idstr = idstr
        self.used_length = used_length

    @property
    def counts(self):
        """Pages by kind."""
        return {"zero_pages": self.zero_pages, "normal_pages": self.normal_pages,
                "xbzrle_pages": self.xbzrle_pages, "compressed_pages": self.compressed_pages}


cdef class RamSurvey:
    """Follows the records of ``ram`` sections with target pages of ``page_bytes``; see the module's text."""

    cdef readonly uint64_t page_bytes
    cdef readonly list blocks
    cdef readonly uint64_t flushes      # MULTIFD_FLUSH records
    cdef readonly uint64_t hooks        # RDMA's
    cdef readonly uint64_t min_stride   # least distance of two pages of a block that came one after the other
    cdef dict by_name
    cdef BlockCounts current
    cdef uint64_t before
    cdef bint has_before

    def __init__(self, uint64_t page_bytes):
        if page_bytes < PAGE_BYTES_MIN or page_bytes > PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
            raise ValueError(f"pages of {page_bytes} bytes: a power of two from {PAGE_BYTES_MIN} to "
                             f"{PAGE_BYTES_MAX} is needed")
        self.page_bytes = page_bytes
        self.set_blocks([])

    def set_blocks(self, blocks):
        """Begin anew over ``blocks``, pairs of idstr and used length in bytes."""
        self.blocks = [BlockCounts(idstr, used_length) for idstr, used_length in blocks]
        self.by_name = {block.idstr.encode(): block for block in self.blocks}
        self.current = None
        self.has_before = False

    def decode(self, ReadBuffer buffer not None):
        """Follow records up to the end of the body (returns :data:`EOS`) or to a MEM_SIZE record (returns its
        total in bytes, with the block list next in ``buffer``). Raises StreamError, with the record's offset,
        for what cannot be, and whatever the buffer raises."""
        cdef uint64_t value, flags, kind, offset, at, length
        cdef uint64_t known = (WIRE_RAM_ZERO | WIRE_RAM_MEM_SIZE | WIRE_RAM_PAGE | WIRE_RAM_EOS | WIRE_RAM_CONTINUE
                               | WIRE_RAM_XBZRLE | WIRE_RAM_HOOK | WIRE_RAM_COMPRESS_PAGE | WIRE_RAM_MULTIFD_FLUSH)
        cdef BlockCounts block
        while True:
            at = buffer.offset()
            value = buffer.read_u64()
            flags = value & (self.page_bytes - 1)
            offset = value - flags
            if flags & ~known:
                raise self.refuse(f"unknown flag {flags & ~known:#x} in {flags:#x}", at, flags)
            kind = flags & ~WIRE_RAM_CONTINUE
            if kind == WIRE_RAM_MEM_SIZE:
                return offset
            if kind == WIRE_RAM_EOS or kind == WIRE_RAM_MULTIFD_FLUSH or kind == WIRE_RAM_HOOK:
                if offset:
                    raise self.refuse(f"a mark ({flags:#x}) carries the offset {offset:#x}", at, value)
                if kind == WIRE_RAM_EOS:
                    return EOS
                if kind == WIRE_RAM_HOOK:
                    self.hooks += 1
                else:
                    self.flushes += 1
                continue
            if kind != WIRE_RAM_ZERO and kind != WIRE_RAM_PAGE and kind != WIRE_RAM_XBZRLE \
                    and kind != WIRE_RAM_COMPRESS_PAGE:
                raise self.refuse(flag_text(flags), at, flags)
            block = self.block_of(buffer, flags, at)
            if offset >= block.used_length:
                raise self.refuse(f"page offset {offset:#x} is past the end of block '{block.idstr}'", at, offset)
            if self.has_before and offset > self.before and (
                    self.min_stride == 0 or offset - self.before < self.min_stride):
                self.min_stride = offset - self.before
            self.before = offset
            self.has_before = True
            if kind == WIRE_RAM_ZERO:
                buffer.read_u8()
                block.zero_pages += 1
            elif kind == WIRE_RAM_PAGE:
                buffer.skip(self.page_bytes)
                block.normal_pages += 1
            elif kind == WIRE_RAM_XBZRLE:
                buffer.read_u8()
                length = buffer.read_u16()
                if length > self.page_bytes:
                    raise self.refuse(f"XBZRLE length {length} is more than a page", at, length)
                buffer.skip(length)
                block.xbzrle_pages += 1
            else:
                length = buffer.read_u32()
                if length == 0 or length > 2 * self.page_bytes:
                    raise self.refuse(f"compressed length {length} cannot be a page's", at, length)
                buffer.skip(length)
                block.compressed_pages += 1

    cdef BlockCounts block_of(self, ReadBuffer buffer, uint64_t flags, uint64_t at):
        if flags & WIRE_RAM_CONTINUE:
            if self.current is None:
                raise self.refuse("CONTINUE, but no record before it named a block", at, flags)
            return self.current
        name = buffer.read_exact(buffer.read_u8())
        block = self.by_name.get(name)
        if block is None:
            raise self.refuse(f"a record names the block {name[:IDSTR_MAX_BYTES]!r}, which was not announced", at, name)
        if block is not self.current:
            self.has_before = False
        self.current = block
        return block

    cdef object refuse(self, str text, uint64_t at, object value):
        return StreamError(f"{text} (pages of {self.page_bytes} bytes)", where="ram record", offset=at, value=value)


cdef str flag_text(uint64_t flags):
    if not flags:
        return "a record without a type flag"
    named = ", ".join(flag.name for flag in RamFlag if flags & flag)
    return f"flags {named} ({flags:#x}) do not go together in one record"
