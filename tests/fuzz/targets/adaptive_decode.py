"""Records of adaptive compression: whatever comes, only the memory given is written, and what XBZRLE's and plain records
make is what a slow model makes."""


from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from _models import xbzrle as model

from colo._fast.kernels.codec_libraries import usable_methods
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo.errors import StreamError, Unsupported

PAGE, PAGES = 4096, 4


def seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(1)
    for method in usable_methods():
        memory = np.zeros(PAGE * PAGES, np.uint8)
        memory[:PAGE] = rng.integers(0, 4, PAGE)
        codec = AdaptiveCodec(1e6, methods=[method])
        encoder = PageEncoder(None, codec=codec)
        shadow = ShadowCache(PAGES)
        for _ in range(3):
            memory[PAGE : 2 * PAGE] = np.tile(rng.integers(0, 256, 256, dtype=np.uint8), 16)
            memory[100:2000] = rng.integers(0, 3, 1900)
            encoder.begin_block("pc.ram", memory, None, shadow)
            encoder.encode()
            encoder.end_section()
            yield encoder.take()
    yield (0x2).to_bytes(8, "big") + b"\6pc.ram\0" + (0x60).to_bytes(8, "big") + b"\1\0\3\1\1z" + (16).to_bytes(8, "big")


def simple(data: bytes, memory: bytearray) -> tuple[int, int] | None:
    """What ZERO, PAGE and XBZRLE records do; None where another kind, or an error, comes."""
    at = pages = 0
    while at < len(data):
        word = int.from_bytes(data[at : at + 8], "big")
        offset, flags = word & ~0xFFF, word & 0xFFF
        if len(data) - at < 8:
            return None
        at += 8
        if flags == 0x10:
            return at, pages
        if flags & ~0x20 not in (2, 8, 0x40) or offset + PAGE > len(memory):
            return None
        if not flags & 0x20:
            if at >= len(data):
                return None
            at += 1 + data[at]
        rest = data[at:]
        kind = flags & ~0x20
        if kind == 2 and rest:
            memory[offset : offset + PAGE] = rest[:1] * PAGE
            at += 1
        elif kind == 8 and len(rest) >= PAGE:
            memory[offset : offset + PAGE] = rest[:PAGE]
            at += PAGE
        elif kind == 0x40 and len(rest) >= 3 and rest[0] == 1:
            size = int.from_bytes(rest[1:3], "big")
            made = model(rest[3 : 3 + size], bytes(memory[offset : offset + PAGE])) if len(rest) >= 3 + size else None
            if made is None:
                return None
            memory[offset : offset + PAGE] = made[0]
            at += 3 + size
        else:
            return None
        pages += 1
    return at, pages


def fuzz_one(data: bytes) -> None:
    expected = bytearray(PAGES * PAGE)
    outcome = simple(data, expected)
    room = bytearray(b"\xa5" * PAGE + bytes(PAGES * PAGE) + b"\xa5" * PAGE)
    inside = memoryview(room)[PAGE : PAGE + PAGES * PAGE]
    try:
        used, pages = AdaptiveDecoder().apply(data, inside)
    except StreamError as error:
        assert outcome is None, error
        assert error.offset is None or 0 <= error.offset <= len(data)
    except Unsupported:
        assert outcome is None
    else:
        assert used <= len(data)
        assert outcome is None or (outcome == (used, pages) and inside == expected)
    assert room[:PAGE] == room[-PAGE:] == b"\xa5" * PAGE
