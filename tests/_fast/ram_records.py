"""RAM-section records written the slow and obvious way, to test the decoder with."""

from __future__ import annotations

import struct

from colo.wire import RamFlag

PAGE = 4096
EOS = struct.pack(">Q", RamFlag.EOS)


def head(offset: int, flags: int, name: str | None) -> bytes:
    """The u64 and, unless ``name`` is None (then CONTINUE is set), the block's name."""
    if name is None:
        return struct.pack(">Q", offset | flags | RamFlag.CONTINUE)
    return struct.pack(">Q", offset | flags) + bytes((len(name),)) + name.encode()


def page(offset: int, data: bytes, name: str | None = None) -> bytes:
    return head(offset, RamFlag.PAGE, name) + data


def zero(offset: int, name: str | None = None, fill: int = 0) -> bytes:
    return head(offset, RamFlag.ZERO, name) + bytes((fill,))


def xbzrle(offset: int, encoded: bytes, name: str | None = None, *, encoding: int = 1) -> bytes:
    return head(offset, RamFlag.XBZRLE, name) + bytes((encoding,)) + struct.pack(">H", len(encoded)) + encoded


def compressed(offset: int, data: bytes, name: str | None = None) -> bytes:
    return head(offset, RamFlag.COMPRESS_PAGE, name) + struct.pack(">I", len(data)) + data


def encode_xbzrle(old: bytes, new: bytes) -> bytes:
    """XBZRLE of two pages, byte by byte."""

    def uleb(n: int) -> bytes:
        return bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7))

    out, at = b"", 0
    while True:
        start = next((i for i in range(at, len(new)) if old[i] != new[i]), None)
        if start is None:
            return out
        end = next((i for i in range(start, len(new)) if old[i] == new[i]), len(new))
        out += uleb(start - at) + uleb(end - start) + new[start:end]
        at = end
