"""Dirty pages by Linux's PAGEMAP_SCAN over memory write-protected through userfaultfd in asynchronous mode
(Linux 6.7)."""

from typing import ClassVar

from typing_extensions import Buffer

from colo._fast.trackers.base import BlockTracker, ProcessMemory

FEATURES: dict[str, int]

def open_userfaultfd() -> int:
    """A userfaultfd of this process, ready for :class:`PagemapTracker`; also for another process to be
    given (over a unix socket), which then tracks this one's memory. Unsupported says what is missing."""

def probe() -> str | None:
    """None when the tracker works on this machine, in this process; otherwise why not."""

class PagemapTracker(BlockTracker):
    """Dirty pages of one block by PAGEMAP_SCAN.

    Harvesting is atomic towards writing threads. The memory is refused (TrackerError) when another
    userfaultfd watches it, a second tracker of this kind included. For a :class:`ProcessMemory`,
    ``userfaultfd`` is a descriptor of :func:`open_userfaultfd` made *in that process*; it stays the
    caller's to close.

    Seen: writes through this mapping, also by system calls and KVM guests. Memory that others can change
    (shared mappings, mappings of files) is refused too (TrackerError), unless ``sole_writer`` says that nobody
    does, or that each such change is told by :meth:`mark`. Not seen: DMA into pinned pages that ends after a
    harvest; :meth:`mark` it.
    """

    name: ClassVar[str]
    atomic: ClassVar[bool]
    by_content: ClassVar[bool]
    def __init__(
        self,
        memory: Buffer | ProcessMemory,
        *,
        block: str = "ram",
        page_bytes: int = 4096,
        userfaultfd: int | None = None,
        sole_writer: bool = False,
    ) -> None: ...
    def fits(self) -> str | None:
        """None when this block can be tracked, otherwise why not; registers it for a moment, protecting
        nothing."""
