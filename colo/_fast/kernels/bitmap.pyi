"""Dirty bitmaps: which pages of a RAM block were written."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class DirtyBitmap:
    """``pages`` pages, all clean at first. Page n is bit n % 64 of 64-bit word n // 64; the words are
    exported as a writable buffer of format ``Q``."""

    @property
    def pages(self) -> int: ...
    def __init__(self, pages: int) -> None: ...
    def set(self, first: int, count: int = 1) -> None:
        """Mark ``count`` pages from ``first`` on as dirty. ValueError when they lie outside."""
    def clear(self, first: int = 0, count: int | None = None) -> None:
        """Mark ``count`` pages from ``first`` on (default: to the end) as clean. ValueError when they lie
        outside."""
    def set_pages(self, numbers: NDArray[np.uint64] | Buffer) -> None:
        """Mark the pages with these numbers (uint64, shape (n,)). ValueError when one lies outside; none is
        marked then."""
    def test(self, page: int) -> bool: ...
    def count(self, first: int = 0, count: int | None = None) -> int:
        """How many of ``count`` pages from ``first`` on (default: all) are dirty."""
    def any(self) -> bool: ...
    def next_dirty(self, start: int = 0) -> int:
        """The first dirty page at or after ``start``, or ``pages``."""
    def union(self, other: DirtyBitmap) -> None:
        """Mark the pages that are dirty in ``other``. ValueError when it has another number of pages."""
    def subtract(self, other: DirtyBitmap) -> None:
        """Clear the pages that are dirty in ``other``. ValueError when it has another number of pages."""
    def copy(self) -> DirtyBitmap: ...
    def take(self) -> DirtyBitmap:
        """Move the dirty pages out into a new bitmap and leave this one clean."""
    def runs(self) -> list[tuple[int, int]]:
        """Runs of dirty pages, in order: (first page, pages)."""
    def runs_into(self, out: NDArray[np.uint64] | Buffer, start: int = 0) -> tuple[int, int]:
        """Write runs into ``out`` (uint64, shape (n, 2)); returns (rows written, page to go on from)."""
    def to_bytes(self) -> bytes:
        """Serialise: at most 9 + ceil(pages / 8) bytes."""
    @staticmethod
    def from_bytes(data: Buffer, max_pages: int) -> DirtyBitmap:
        """What :meth:`to_bytes` wrote. Raises Truncated, LimitExceeded or StreamError."""
    def __eq__(self, other: object) -> bool: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
