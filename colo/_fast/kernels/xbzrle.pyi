"""XBZRLE: what changed in a page, as runs of unchanged and changed bytes.

Encodings, and what the decoder accepts, are those of QEMU's generic code (migration/xbzrle.c:xbzrle_encode_buffer and
xbzrle_decode_buffer). A length on the wire has 14 bits: where QEMU's encoder would assert on a longer run (pages of
16 KiB and more), this one reports an overflow, and the page goes raw.

Buffers are C-contiguous bytes of any alignment; page sizes are powers of two from 1 KiB to 64 KiB. Everything is checked,
and the GIL released, before the first byte is touched: ValueError for sizes, overlaps, read-only outputs or wrong item
types, BufferError for objects without such a buffer. Buffers cannot be resized while a call uses them.
"""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Bytes = Buffer | NDArray[np.uint8]
_Int32 = Buffer | NDArray[np.int32]

SLACK_BYTES: int
"""Encoders may scribble over this many bytes behind what they produce: keep them free in an arena."""
ENCODED_BYTES_MAX: int
"""The most an encoded page may have on the wire."""

def encode_pages(
    old: _Bytes,
    new: _Bytes,
    page_bytes: int,
    arena: _Bytes,
    lengths: _Int32,
    *,
    dlen: int | None = None,
    first: int = 0,
    level: str | None = None,
) -> tuple[int, int]:
    """Encode pages ``first`` and on of ``new`` against the same pages of ``old``.

    ``arena`` (writable bytes) receives the encodings one behind the other, ``lengths`` (writable int32, an entry per
    page) their sizes: 0 for an unchanged page, -1 for one whose encoding does not fit ``dlen`` bytes (the page size
    unless given). Stops early when the arena has no room left for a whole page (``dlen + SLACK_BYTES``).

    Returns ``(next, arena_bytes)``: the page to go on with, and the bytes of the arena in use.
    """

def step_pages(
    shadow: _Bytes,
    live: _Bytes,
    page_bytes: int,
    arena: _Bytes,
    lengths: _Int32,
    *,
    dlen: int | None = None,
    first: int = 0,
    level: str | None = None,
) -> tuple[int, int]:
    """Like :func:`encode_pages` for memory that may be changing: each live page is read once, and ``shadow`` brought up
    to exactly what was encoded. For a page with length -1 the shadow holds the bytes to send raw."""

def decode_pages(
    arena: _Bytes, lengths: _Int32, pages: _Bytes, page_bytes: int, *, level: str | None = None
) -> int:
    """Apply encodings, one behind the other in ``arena``, to ``pages`` (the old ones, writable), by ``lengths`` (int32, one
    per page; nothing is applied where it is 0 or less). Returns the bytes of the arena consumed.

    All encodings are checked before any page is touched. Raises :class:`colo.errors.StreamError` (page, offset in the
    arena, length) for one that is not valid.
    """

def encode(old: _Bytes, new: _Bytes, dlen: int | None = None, *, level: str | None = None) -> bytes | None:
    """Encode one page: ``b""`` when nothing changed, None when it does not fit ``dlen`` bytes."""

def decode(encoded: _Bytes, page: _Bytes, *, level: str | None = None) -> int:
    """Apply one encoding to ``page`` in place. Returns how many bytes of the page it covers. Raises
    :class:`colo.errors.StreamError` on one that is not valid, with the page untouched."""

def check(encoded: _Bytes, page_bytes: int, *, level: str | None = None) -> int:
    """Bytes of a page that ``encoded`` covers, or -1 when it is not a valid encoding."""
