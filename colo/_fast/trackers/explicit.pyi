"""Dirty pages as the VM itself reports them."""

from typing import ClassVar

from typing_extensions import Buffer

from colo._fast.trackers.base import BlockTracker

class ExplicitTracker(BlockTracker):
    """Dirty pages of one block as the VM reports them: by ranges, by bitmap, or bit by bit from native code.

    Nothing is found that is not reported. Report a write *after* it was made (or after and before): a bit
    set before the write may be harvested, and the page copied, in between. Reports may come from any
    thread, also while the tracker is not started; :meth:`start` forgets them. Harvesting is atomic towards
    reporting threads.
    """

    name: ClassVar[str]
    atomic: ClassVar[bool]
    by_content: ClassVar[bool]
    def report(self, offset: int, length: int = 1) -> None:
        """``length`` bytes from ``offset`` on were written. ValueError when the range leaves the block."""
    def report_ranges(self, ranges: Buffer) -> None:
        """Many at once: uint64 of shape (n, 2), rows of (offset, length) in bytes. ValueError, and nothing
        reported, when one of them leaves the block or the buffer is not whole rows."""
    def report_pages(self, bitmap: Buffer) -> None:
        """The pages whose bits are set in a bitmap of ``8 * ceil(pages / 64)`` bytes were written."""
    @property
    def bits(self) -> memoryview:
        """The tracker's own bitmap (format ``Q``), for native code to set bits in with atomic OR. It never
        moves. From Cython, cimport ``BlockTracker`` from ``colo._fast.trackers.base`` and call
        ``mark_bytes``."""
