"""The block list of the ``ram`` section: the MEM_SIZE record. Pages are the core's
(``colo._fast.receive.pagedecoder``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colo.errors import LimitExceeded, StreamError
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.stream.names import encode_name, read_name
from colo.wire import TARGET_PAGE_BYTES, RamFlag

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer

_PAGE_SIZE_MAX = 1 << 34
"""The largest huge page of any Linux port (16 GiB)."""
WHERE = "ram MEM_SIZE"


@dataclass(frozen=True, slots=True)
class RamBlockInfo:
    """A RAM block as announced: its name, its length in bytes now in use, and what the capabilities add to
    that.

    ``page_size`` is sent with postcopy-ram for blocks of huge pages; ``address`` (guest-physical) with
    x-ignore-shared.
    """

    idstr: str
    used_length: int
    page_size: int | None = None
    address: int | None = None


def parse_mem_size(
    buf: ReadBuffer,
    total: int,
    *,
    with_page_size: bool | Collection[str] | None = False,
    with_address: bool = False,
    limits: StreamLimits = DEFAULT_LIMITS,
    page_bytes: int = TARGET_PAGE_BYTES,
    on_block: Callable[[RamBlockInfo], None] = lambda info: None,
) -> list[RamBlockInfo]:
    """Read the blocks that follow a MEM_SIZE record's u64, whose offset part is ``total`` bytes.

    ``with_page_size`` tells that each block (or those named) carries its page size, ``with_address`` that
    each carries its address: the stream itself does not say. With None, whatever looks like a page size is one.
    ``page_bytes`` is the target's; ``on_block`` is called behind each entry, where mapped-ram has its header.
    Raises StreamError for a block that is empty, unaligned or named twice, or lengths that pass the total;
    LimitExceeded for too many blocks. QEMU: migration/ram.c:parse_ramblocks.
    """
    offset = buf.position
    mask = page_bytes - 1
    if total & mask:
        raise StreamError(
            f"a total of {total:#x} is not whole pages of {page_bytes} bytes, which others are not served",
            where=WHERE,
            offset=offset,
            value=total,
        )
    blocks: list[RamBlockInfo] = []
    names: set[str] = set()
    left = total
    while left:
        offset = buf.position
        if len(blocks) == limits.ram_blocks:
            raise LimitExceeded(
                f"more than {limits.ram_blocks} RAM blocks", where=WHERE, offset=offset, value=len(blocks) + 1
            )
        name = read_name(buf, WHERE)
        where = f"{WHERE} block '{name}'"
        if name in names:
            raise StreamError("announced twice", where=where, offset=offset, value=name)
        names.add(name)
        offset = buf.position
        length = buf.read_u64()
        if length == 0 or length & mask:
            raise StreamError(
                f"used length {length:#x} is not a positive number of whole pages of {page_bytes} bytes",
                where=where,
                offset=offset,
                value=length,
            )
        if length > left:
            raise StreamError(
                f"used length {length:#x}, but only {left:#x} of the total {total:#x} are left: the lengths "
                "do not sum to the total",
                where=where,
                offset=offset,
                value=length,
            )
        left -= length
        if with_page_size is None:
            has_page_size = _is_page_size(int.from_bytes(buf.peek(8), "big"))
        else:
            has_page_size = with_page_size if isinstance(with_page_size, bool) else name in with_page_size
        page_size = _read_page_size(buf, where) if has_page_size else None
        blocks.append(RamBlockInfo(name, length, page_size, buf.read_u64() if with_address else None))
        on_block(blocks[-1])
    return blocks



def _is_page_size(size: int) -> bool:
    return TARGET_PAGE_BYTES <= size <= _PAGE_SIZE_MAX and not size & (size - 1)


def _read_page_size(buf: ReadBuffer, where: str) -> int:
    size = buf.read_u64()
    if not _is_page_size(size):
        raise StreamError(f"page size {size:#x}", where=where, offset=buf.position - 8, value=size)
    return size


def mem_size(blocks: Sequence[RamBlockInfo]) -> bytes:
    """The MEM_SIZE record: page size and address of each block are written where they are not None.

    Raises ValueError for what :func:`parse_mem_size` would refuse.
    """
    if len({block.idstr for block in blocks}) != len(blocks):
        raise ValueError(f"a RAM block's name occurs twice: {[block.idstr for block in blocks]}")
    parts = [(sum(block.used_length for block in blocks) | RamFlag.MEM_SIZE).to_bytes(8, "big")]
    for block in blocks:
        if block.used_length <= 0 or block.used_length % TARGET_PAGE_BYTES:
            raise ValueError(f"block {block.idstr!r}: used length {block.used_length:#x} is not whole pages")
        parts += [encode_name(block.idstr), block.used_length.to_bytes(8, "big")]
        parts += [value.to_bytes(8, "big") for value in (block.page_size, block.address) if value is not None]
    return b"".join(parts)


def end_of_section() -> bytes:
    """The record that ends a ``ram`` section's body."""
    return RamFlag.EOS.to_bytes(8, "big")
