"""mapped-ram: a stream in a file, whose pages lie at fixed places behind each block's entry in the block list.

An entry is followed by ``u32 version 1, u64 page size, u64 bitmap offset, u64 pages offset``; the offsets are of the
file. At the bitmap: 64-bit words in the host's order, bit i set where page i is in the file, and clear where it is
zero. At the pages: page i at its number times the page size. Behind the last page the list goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from colo.errors import StreamError
from colo.stream.ram import RamBlockInfo

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer

CAPABILITY = "mapped-ram"
VERSION = 1
PAGE_BYTES_MAX = 65536
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MappedBlock:
    """Where a block's pages are in the file, and how many there are."""

    page_bytes: int
    bitmap_offset: int
    pages_offset: int
    normal_pages: int
    zero_pages: int


def read_mapped_block(buf: ReadBuffer, info: RamBlockInfo) -> MappedBlock:
    """Read what follows the entry of block ``info``, up to the next entry: the header, the bitmap, past the pages.

    ``buf`` must count from the file's first byte. Only a part of the bitmap is held at a time, and pages are not
    read at all. Raises StreamError for a version, a page size or offsets that cannot be, or pages beyond the end.
    """
    where = f"mapped-ram header of block '{info.idstr}'"
    offset = buf.position
    version = buf.read_u32()
    if version != VERSION:
        raise StreamError(f"version {version}, only {VERSION} is known", where=where, offset=offset, value=version)
    page_bytes, bitmap, pages_at = buf.read_u64(), buf.read_u64(), buf.read_u64()
    if not 1024 <= page_bytes <= PAGE_BYTES_MAX or page_bytes & (page_bytes - 1) or info.used_length % page_bytes:
        raise StreamError(
            f"pages of {page_bytes} bytes, in a block of {info.used_length}", where=where, offset=offset + 4, value=page_bytes
        )
    pages = info.used_length // page_bytes
    bitmap_bytes = (pages + 63) // 64 * 8
    if bitmap != buf.position:
        raise StreamError(
            f"the bitmap is at {bitmap:#x} of the file, and should be at {buf.position:#x}: give the whole file, from its "
            "first byte",
            where=where,
            offset=offset + 12,
            value=bitmap,
        )
    if not bitmap + bitmap_bytes <= pages_at < 1 << 62 or pages_at % page_bytes:
        raise StreamError(
            f"the pages are at {pages_at:#x}, which is no whole page behind the bitmap ({bitmap:#x}, {bitmap_bytes} bytes)",
            where=where,
            offset=offset + 20,
            value=pages_at,
        )
    normal = 0
    left = bitmap_bytes
    while left:
        chunk = buf.read_exact(min(left, CHUNK_BYTES))
        left -= len(chunk)
        if not left and pages % 64:  # bits past the last page say nothing; words are little-endian
            last = int.from_bytes(chunk[-8:], "little") & ((1 << pages % 64) - 1)
            chunk = chunk[:-8] + last.to_bytes(8, "little")
        normal += int.from_bytes(chunk, "little").bit_count()
    buf.skip(pages_at - buf.position)
    buf.skip(info.used_length)
    return MappedBlock(page_bytes, bitmap, pages_at, normal, pages - normal)
