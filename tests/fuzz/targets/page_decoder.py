"""RAM records through the core's decoder, staged and applied or at once, from memory and from a pipe, against a slow
model: the same verdict, the same bytes used, the same memory. The first byte of the input picks the way."""


from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

from _models import PAGE, Ram, Refused

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo.errors import LimitExceeded, StreamError

BLOCKS = {b"a": 4, b"pc.ram": 70}
EOS_RECORD = struct.pack(">Q", 0x10)


def head(offset: int, flags: int, name: bytes = b"") -> bytes:
    return struct.pack(">Q", offset | flags) + (bytes((len(name),)) + name if name else b"")


def seeds() -> Iterator[bytes]:
    small = (
        head(0, 2, b"a") + b"\0" + head(PAGE, 0x22) + b"\0" + head(PAGE, 0x60) + b"\1\0\4\1\2xy"
        + head(0, 2, b"pc.ram") + b"\0" + head(0, 0x60) + b"\1\0\3\x81\x01\1" + EOS_RECORD
    )
    packed = zlib.compress(bytes(range(256)) * 16)
    inflated = head(2 * PAGE, 0x100, b"pc.ram") + struct.pack(">I", len(packed)) + packed
    page = head(3 * PAGE, 8, b"a") + bytes(range(256)) * 16
    delta = head(3 * PAGE, 0x60) + struct.pack(">BH", 1, 5) + b"\x81\x02\2zz"
    for way in range(16):
        yield bytes((way,)) + small + small
        yield bytes((way,)) + inflated + inflated[:8] + inflated[8:] + EOS_RECORD + page + delta + EOS_RECORD
    yield b"\1" + b"".join(head(i * PAGE, 2, b"pc.ram") + b"\0" for i in range(70)) + EOS_RECORD


def check_offset(error: StreamError, data: bytes) -> None:
    assert error.offset is None or 0 <= error.offset <= len(data), error


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    way, data = data[0], data[1:]
    immediate, from_pipe, apart = bool(way & 1), bool(way & 2) and len(data) <= 60_000, bool(way & 4)
    model = Ram({name: bytearray(pages * PAGE) for name, pages in BLOCKS.items()})
    blocks = [RamBlock(name.decode(), pages * PAGE, memory=bytearray(pages * PAGE)) for name, pages in BLOCKS.items()]
    memories = {block.idstr.encode(): memoryview(block.memory_buffer) for block in blocks}  # type: ignore[arg-type]
    staging = Staging()
    decoder = PageDecoder(staging, immediate=immediate)
    decoder.set_blocks(blocks)
    ends: list[int] = []
    if from_pipe:
        ends = list(os.pipe())
        os.write(ends[1], data)
        os.close(ends[1])
        buffer = ReadBuffer(ends[0], capacity_bytes=4096)
    else:
        buffer = ReadBuffer.from_bytes(data)
    try:
        follow(data, model, memories, blocks, decoder, staging, buffer, apart)
    finally:
        for fd in ends[:1]:
            os.close(fd)


def follow(
    data: bytes,
    model: Ram,
    memories: dict[bytes, memoryview],
    blocks: list[RamBlock],
    decoder: PageDecoder,
    staging: Staging,
    buffer: ReadBuffer,
    apart: bool,
) -> None:
    """Body after body through both; ``apart``: each is a checkpoint of its own."""
    at = 0
    applied = {name: bytes(memory) for name, memory in model.blocks.items()}
    while at < len(data):
        try:
            end: int | None = at + model.body(data[at:])
        except Refused:
            end = None
        try:
            ended = decoder.decode(buffer)
        except LimitExceeded as error:
            check_offset(error, data)
            return  # the model knows no limits
        except StreamError as error:
            check_offset(error, data)
            assert end is None, f"refused what the model takes: {error}"
            staging.drop()
            if not decoder.immediate:
                assert {name: bytes(memory) for name, memory in memories.items()} == applied
            return
        if ended != EOS:  # MEM_SIZE, the caller's
            assert end is None
            return
        assert end == buffer.position, (end, buffer.position)
        at = end
        if apart or at == len(data):
            staging.reserve()
            staging.apply()
            decoder.set_blocks(blocks)
        if apart or decoder.immediate or at == len(data):
            applied = {name: bytes(memory) for name, memory in model.blocks.items()}
            assert {name: bytes(memory) for name, memory in memories.items()} == applied
