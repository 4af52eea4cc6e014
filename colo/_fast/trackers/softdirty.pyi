"""Dirty pages by Linux's soft-dirty bits: bit 55 of /proc/PID/pagemap, cleared through
/proc/PID/clear_refs."""

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import Buffer

from colo._fast.trackers.base import BlockTracker, ProcessMemory

def probe(pid: int = 0) -> str | None:
    """None when the kernel keeps soft-dirty bits and process ``pid`` (0: this one) may be watched;
    otherwise why not."""

def changed_entries(entries: Sequence[int], states: bytearray) -> list[bool]:
    """The rule of a harvest, for ``entries`` of /proc/PID/pagemap and the ``states`` of their pages (0 at
    first), which are brought up to date. ValueError when they are not as many."""

class SoftDirtyTracker(BlockTracker):
    """Dirty pages of one block by soft-dirty bits, in this process or, for a :class:`ProcessMemory`,
    another one that may be traced. **The VM must stand still during a harvest**: reading and clearing are
    two steps. Clearing is for the whole process; all trackers of one process share it and lose nothing to
    each other. Unsupported where the kernel has no such bits. Memory that others can change is refused
    (TrackerError), unless ``sole_writer`` says that nobody does, or that each such change is told by
    :meth:`mark`.
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
        sole_writer: bool = False,
    ) -> None: ...
