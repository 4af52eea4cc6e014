"""What the core's decoders must do, byte by byte in Python: slow, obvious, and instrumented by the fuzzer, so that the
inputs it finds interesting for these are tried on the core too."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

PAGE = 4096
ZERO, MEM_SIZE, RAW, EOS, CONTINUE, XBZRLE, COMPRESS, FLUSH = 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x100, 0x200
COMPRESSED_MAX = PAGE + 14
"""zlib's bound for one page."""


class Refused(Exception):
    """The decoder must refuse this."""


class Short(Refused):
    """The input ends within a record."""


def length(data: bytes, at: int) -> tuple[int, int] | None:
    """A ULEB128 of one or two bytes at ``at``: (value, bytes used)."""
    if at >= len(data):
        return None
    if data[at] < 128:
        return data[at], 1
    if at + 1 >= len(data) or data[at + 1] >= 128:
        return None
    return data[at] & 127 | data[at + 1] << 7, 2


def xbzrle(encoded: bytes, page: bytes) -> tuple[bytes, int] | None:
    """The new page and how far the encoding reaches; None for an encoding that is not valid."""
    new, read, at = bytearray(page), 0, 0
    while read < len(encoded):
        found = length(encoded, read)
        if found is None or (found[0] == 0 and read > 0):
            return None
        read += found[1]
        at += found[0]
        if at > len(page):
            return None
        found = length(encoded, read)
        if found is None or found[0] == 0:
            return None
        read += found[1]
        if at + found[0] > len(page) or read + found[0] > len(encoded):
            return None
        new[at : at + found[0]] = encoded[read : read + found[0]]
        read += found[0]
        at += found[0]
    return bytes(new), at


@dataclass
class Ram:
    """The RAM section's receiver: memory by block, and which pages ever came."""

    blocks: dict[bytes, bytearray]
    received: set[tuple[bytes, int]] = field(default_factory=set)
    current: bytes | None = None

    def body(self, data: bytes) -> int:
        """Take the records up to and with EOS; returns the bytes used. Refused (before EOS) as they come."""
        at = 0
        while True:
            used = self.record(data, at)
            if used < 0:
                return at + 8
            at += used

    def record(self, data: bytes, at: int) -> int:
        """One record at ``at``; its length, -1 for EOS."""
        if len(data) - at < 8:
            raise Short
        word = int.from_bytes(data[at : at + 8], "big")
        offset, flags = word & ~0xFFF, word & 0xFFF
        kind = flags & ~CONTINUE
        if kind not in (ZERO, RAW, XBZRLE, COMPRESS):
            if flags & CONTINUE or kind not in (EOS, FLUSH, MEM_SIZE):
                raise Refused("flags")
            if kind == MEM_SIZE or offset:
                raise Refused("MEM_SIZE, or a mark with an offset")
            return -1 if kind == EOS else 8
        p = at + 8
        if flags & CONTINUE:
            if self.current is None:
                raise Refused("no block")
            name = self.current
        else:
            if len(data) - p < 1:
                raise Short
            if data[p] == 0:
                raise Refused("empty name")
            if len(data) - p < 1 + data[p]:
                raise Short
            name = data[p + 1 : p + 1 + data[p]]
            p += 1 + data[p]
            if name not in self.blocks:
                raise Refused("unknown block")
        memory = self.blocks[name]
        if offset + PAGE > len(memory):
            raise Refused("offset")
        p, page = self.payload(data, p, kind, name, bytes(memory[offset : offset + PAGE]), offset)
        memory[offset : offset + PAGE] = page
        self.received.add((name, offset))
        self.current = name
        return p - at

    def payload(self, data: bytes, p: int, kind: int, name: bytes, old: bytes, offset: int) -> tuple[int, bytes]:
        """What follows the name: where it ends, and the page that it makes."""

        def need(count: int) -> None:
            if len(data) - p < count:
                raise Short

        if kind == RAW:
            need(PAGE)
            return p + PAGE, data[p : p + PAGE]
        if kind == ZERO:
            need(1)
            if data[p]:
                raise Refused("fill")
            return p + 1, bytes(PAGE)
        if kind == XBZRLE:
            need(3)
            size = int.from_bytes(data[p + 1 : p + 3], "big")
            if data[p] != 1 or size > PAGE:
                raise Refused("XBZRLE header")
            need(3 + size)
            made = xbzrle(data[p + 3 : p + 3 + size], old)
            if made is None or (name, offset) not in self.received:
                raise Refused("XBZRLE")
            return p + 3 + size, made[0]
        need(4)
        size = int.from_bytes(data[p : p + 4], "big")
        if not 0 < size <= COMPRESSED_MAX:
            raise Refused("compressed length")
        need(4 + size)
        inflater = zlib.decompressobj()
        try:
            page = inflater.decompress(data[p + 4 : p + 4 + size], PAGE + 1)
        except zlib.error:
            raise Refused("zlib") from None
        if len(page) != PAGE or not inflater.eof:
            raise Refused("not one page")
        return p + 4 + size, page
