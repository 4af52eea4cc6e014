"""XBZRLE of one page, by every SIMD level and a slow model: the same verdict, and the same page. The first byte picks
the page's size and what is in it."""

from __future__ import annotations

from collections.abc import Iterator

from _models import xbzrle as model

from colo._fast.kernels import xbzrle
from colo._fast.kernels.kernels import levels
from colo.errors import StreamError

LEVELS = tuple(levels())


def seeds() -> Iterator[bytes]:
    old = bytes(range(256)) * 16
    for step in (1, 7, 64, 129, 1000):
        new = bytearray(old)
        new[5::step] = bytes(b ^ 0x55 for b in new[5::step])
        yield b"\0" + (xbzrle.encode(old, bytes(new), 8192) or b"")
    yield b"\1\xff\x7f\1z"
    yield b"\0\x80\x00\x01a"


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    size = 1024 << (data[0] & 7) if data[0] & 7 <= 6 else 4096
    old = bytes(size) if data[0] & 8 else (bytes(range(251)) * (size // 251 + 1))[:size]
    encoded = data[1:]
    expected = model(encoded, old)
    for level in LEVELS:
        page = bytearray(old)
        try:
            covered = xbzrle.decode(encoded, page, level=level)
        except StreamError:
            assert expected is None, level
            assert page == old, level
            assert xbzrle.check(encoded, size, level=level) == -1
            continue
        assert expected == (bytes(page), covered), level
        assert xbzrle.check(encoded, size, level=level) == covered
        again = xbzrle.encode(old, page, min(2 * size, 65535), level=level)
        assert again is not None or size > 8192, level
        if again is not None:
            twice = bytearray(old)
            xbzrle.decode(again, twice, level=level)
            assert twice == page, level
