"""A checkpoint with compressed pages through the core's decoder: refused with nothing changed, or applied to what the same
records give one after the other."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from colo._fast.kernels.codec_libraries import usable_methods
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo.errors import LimitExceeded, StreamError

PAGE, PAGES = 4096, 6


def committed() -> bytearray:
    """Pages of words: each method finds something in them."""
    line = b"".join(struct.pack("<IH", n * 2654435761 % (1 << 32), n) for n in range(300))
    return bytearray((line * 20)[: PAGE * (PAGES - 1)] + bytes(PAGE))


def seeds() -> Iterator[bytes]:
    for method in usable_methods():
        for remember in (True, False):
            memory = committed()
            shadow = ShadowCache(PAGES) if remember else None
            encoder = PageEncoder(codec=AdaptiveCodec(1e5, methods=[method]))
            for step in range(3):
                encoder.begin_block("a", memory, None, shadow)
                encoder.encode()
                encoder.end_section()
                encoder.close()
                records = encoder.take()
                if step or not remember:
                    yield records
                for at in range(step, len(memory), 16 if method == "mask" else 11):
                    memory[at] = memory[at] * 5 + step & 0xFF


def fuzz_one(data: bytes) -> None:
    memory, before = committed(), bytes(committed())
    block = RamBlock("a", len(memory), memory=memory)
    staging = Staging()
    full = PageEncoder()
    full.begin_block("a", before)
    full.encode()
    full.end_section()
    first = PageDecoder(staging, immediate=True)
    first.set_blocks([block])
    first.decode(ReadBuffer.from_bytes(full.take()))  # every page has come once
    decoder = PageDecoder(staging)
    decoder.set_codec(AdaptiveDecoder())
    decoder.set_blocks([block])
    buffer = ReadBuffer.from_bytes(data)
    try:
        ended = decoder.decode(buffer)
    except (LimitExceeded, StreamError) as error:
        assert error.offset is None or 0 <= error.offset <= len(data), error
        staging.drop()
        assert memory == before
        return
    assert memory == before
    if ended != EOS:
        staging.drop()
        return
    staging.reserve()
    staging.apply()
    again = bytearray(before)
    used, _ = AdaptiveDecoder().apply(data, again)
    assert used == buffer.position
    assert memory == again
