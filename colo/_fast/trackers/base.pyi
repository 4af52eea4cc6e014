"""What every dirty tracker of one RAM block shares."""

from types import TracebackType
from typing import Final, Self

from typing_extensions import Buffer

PAGE_BYTES_MIN: Final = 1024
PAGE_BYTES_MAX: Final = 65536

class ProcessMemory:
    """``length_bytes`` of another process's memory, from ``address`` on, for trackers that can watch it.
    ValueError for a pid, address or length that cannot be."""

    pid: int
    address: int
    length_bytes: int
    def __init__(self, pid: int, address: int, length_bytes: int) -> None: ...

class BlockTracker:
    """The part of a dirty tracker that does not depend on how writes are found; of no use by itself.

    ``memory`` is any writable, contiguous buffer of whole pages, or a :class:`ProcessMemory` where the
    tracker can watch another process. It is held (it cannot be resized or closed) from :meth:`start` to
    :meth:`stop`. ``page_bytes`` is a power of two from 1024 to 65536. Bitmaps are buffers of ``ceil(pages /
    64)`` 64-bit words: page n is bit ``n % 64`` of word ``n // 64``. All methods may be called from any
    thread. BufferError or ValueError for memory that does not fit.
    """

    @property
    def block(self) -> str: ...
    @property
    def pages(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def length_bytes(self) -> int: ...
    @property
    def pid(self) -> int:
        """The process whose memory it is; 0 for this one."""
    @property
    def started(self) -> bool: ...
    @property
    def lost(self) -> str | None:
        """Why the tracker can go on no more, or None."""
    @property
    def memory(self) -> Buffer | ProcessMemory: ...
    def start(self) -> None:
        """Track writes from now on; no page is dirty yet (the first full copy is the caller's).
        TrackerError when it runs already or the memory cannot be tracked, Unsupported when this machine
        cannot."""
    def harvest(self, bitmap: Buffer) -> int:
        """Move the dirty pages out: their bits are set in ``bitmap`` (none is cleared). Returns how many
        were dirty.

        On an error nothing is moved out. TrackerError when the tracker is not started, or has lost sight of
        the memory (unmapped, remapped, made shorter, its descriptor closed): which pages were written is
        then unknown, and after :meth:`stop` and :meth:`start` all of it must be copied. ValueError for a
        bitmap of another size."""
    def harvest_pending(self, bitmap: Buffer) -> int:
        """As :meth:`harvest`, but only what is known already: marked, given back, or collected along with
        another block of the same process."""
    def give_back(self, bitmap: Buffer) -> None:
        """Report the pages of ``bitmap`` again at the next harvest: what was harvested from them was not
        delivered."""
    def mark(self, offset: int, length: int) -> None:
        """Report the pages of ``length`` bytes from ``offset`` on at the next harvest: they changed where
        no tracker sees it (a hole punched in the file below, a device's DMA, another mapping). Call it
        after the change. ValueError when the range leaves the block."""
    def unseen_writers(self) -> str | None:
        """While the memory is held: why page tables do not show all writes to it, and what to do, or None."""
    def stop(self) -> None:
        """Track no more and let go of the memory. Harmless when not started."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
