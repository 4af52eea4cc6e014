"""The MEM_SIZE record: first byte of the input picks what each block carries, the next eight are the
total."""

from __future__ import annotations

from collections.abc import Iterator

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import StreamError
from colo.stream import RamBlockInfo, StreamLimits, mem_size, parse_mem_size

LIMITS = StreamLimits(ram_blocks=64)


def seeds() -> Iterator[bytes]:
    for page_size, address in ((None, None), (1 << 21, None), (None, 0xFFFC0000), (4096, 0)):
        blocks = [
            RamBlockInfo("pc.ram", 1 << 21, page_size, address),
            RamBlockInfo("pc.bios", 4096, page_size, address),
        ]
        yield bytes(((page_size is not None) | (address is not None) << 1,)) + mem_size(blocks)


def fuzz_one(data: bytes) -> None:
    if len(data) < 9:
        return
    total = int.from_bytes(data[1:9], "big") & ~0xFFF
    buf = ReadBuffer.from_bytes(data[9:])
    try:
        blocks = parse_mem_size(
            buf, total, with_page_size=bool(data[0] & 1), with_address=bool(data[0] & 2), limits=LIMITS
        )
    except StreamError:
        return
    assert sum(block.used_length for block in blocks) == total
    assert len({block.idstr for block in blocks}) == len(blocks) <= 64
    assert mem_size(blocks)[8:] == data[9 : 9 + buf.position]
