"""Slow, plain Python for what the kernels do, written from the rules alone.

XBZRLE: (zero run, changed run, changed bytes)*; lengths are ULEB128 of at most 14 bits. A trailing zero run is not written.
The page does not fit when dlen < 2, when its encoding takes more than dlen bytes, or when it ends unchanged and the
encoding takes more than dlen - 2.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

RUN_MAX = 0x3FFF
UNCHANGED = 0
OVERFLOW = -1


@lru_cache(maxsize=16)
def runs(old: bytes, new: bytes) -> tuple[tuple[bool, int], ...]:
    """(changed, length) of each run, in order."""
    differ = (a != b for a, b in zip(old, new, strict=True))
    return tuple((changed, sum(1 for _ in group)) for changed, group in groupby(differ))


def length(n: int) -> bytes:
    return bytes([n]) if n < 0x80 else bytes([n & 0x7F | 0x80, n >> 7])


def encode(old: bytes, new: bytes, dlen: int) -> tuple[int, bytes]:
    """What an encoder returns, and the bytes it wrote if that is positive."""
    if dlen < 2:
        return OVERFLOW, b""
    out, at, zeros = bytearray(), 0, 0
    for changed, n in runs(old, new):
        if not changed:
            zeros = n
        else:
            if zeros > RUN_MAX or n > RUN_MAX:
                return OVERFLOW, b""
            out += length(zeros) + length(n) + new[at : at + n]
            zeros = 0
        at += n
    if not out:
        return UNCHANGED, b""
    if len(out) + (2 if zeros else 0) > dlen:
        return OVERFLOW, b""
    return len(out), bytes(out)


def read_length(encoded: bytes, at: int) -> tuple[int, int] | None:
    """The length at ``at`` and where it ends; None when there is none."""
    if at >= len(encoded):
        return None
    first = encoded[at]
    if first < 0x80:
        return first, at + 1
    if at + 1 >= len(encoded) or encoded[at + 1] >= 0x80:
        return None
    return first & 0x7F | encoded[at + 1] << 7, at + 2


def decode(encoded: bytes, page: bytes) -> tuple[int, bytes]:
    """Bytes covered and the new page, or (-1, the page as it was)."""
    out, at, done = bytearray(page), 0, 0
    while at < len(encoded):
        zeros = read_length(encoded, at)
        if zeros is None or (at > 0 and zeros[0] == 0):
            return -1, page
        done += zeros[0]
        changed = read_length(encoded, zeros[1])
        if changed is None or changed[0] == 0:
            return -1, page
        n, at = changed
        if done + n > len(page) or at + n > len(encoded):
            return -1, page
        out[done : done + n] = encoded[at : at + n]
        done, at = done + n, at + n
    return done, bytes(out)


def page_hash(page: bytes, key: bytes) -> tuple[int, int]:
    """NH of a page: pairs of 32-bit words, each plus its word of the key, multiplied and summed; twice."""
    sums = []
    for shift in (0, 64):
        total = 0
        for at in range(0, len(page), 8):
            a, b, key_a, key_b = (
                int.from_bytes(source[start : start + 4], "little")
                for source, start in ((page, at), (page, at + 4), (key, at + shift), (key, at + shift + 4))
            )
            total += ((a + key_a) & 0xFFFFFFFF) * ((b + key_b) & 0xFFFFFFFF)
        sums.append(total & 0xFFFFFFFFFFFFFFFF)
    return sums[0], sums[1]
