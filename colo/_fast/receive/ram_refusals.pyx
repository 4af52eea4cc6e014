"""What is said of a record of a ``ram`` section that is refused: the codes of the loops that run without the GIL
(``ram_refusals.pxd``) become the errors of :mod:`colo.errors`, with the place, the byte offset and the value."""
from libc.stdint cimport uint64_t

from colo.errors import LimitExceeded, StreamError
from colo.wire import RamFlag

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_PAGE_BYTES
    const int WIRE_XBZRLE_ENCODING


SMALLEST_PAGE = 1024
"""Bytes of the smallest target page whose offsets leave room for the flags."""


cdef object refusal(int code, uint64_t value, str where, uint64_t offset, size_t staged_records):
    if code == BAD_FLAGS:
        flags = value & (WIRE_PAGE_BYTES - 1)
        return StreamError(flag_text(flags), where=where, offset=offset, value=flags)
    if code in (OUT_OF_RECORDS, OUT_OF_MEMORY):
        return LimitExceeded(
            "more RAM records in one checkpoint than its blocks have pages" if code == OUT_OF_RECORDS
            else "no memory for the staged records", where=where, offset=offset, value=staged_records)
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
    }[code]
    return StreamError(text, where=where, offset=offset, value=value)


OTHER_PAGES = f"or the target's pages are not of {WIRE_PAGE_BYTES} bytes, which is not served (colo inspect reads them)"


cdef str flag_text(flags):
    if flags == RamFlag.HOOK:
        return f"flag HOOK ({flags:#x}) is RDMA's, which this channel is not"
    named = [f.name for f in RamFlag if flags & f]
    unknown = flags & ~sum(RamFlag)
    if unknown and not unknown & (SMALLEST_PAGE - 1):
        return (f"unknown flag {unknown:#x} in {flags:#x}: a page smaller than {WIRE_PAGE_BYTES} bytes, which is not served "
                "(colo inspect reads it)")
    if unknown:
        beside = f" beside {', '.join(named)}" if named else ""
        return f"unknown flag {unknown:#x} in {flags:#x}{beside}, {OTHER_PAGES}"
    if not flags:
        return f"a record without a type flag, {OTHER_PAGES}"
    return f"flags {', '.join(named)} ({flags:#x}) do not go together in one record, {OTHER_PAGES}"
