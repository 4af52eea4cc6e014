"""Dirty pages by Linux's soft-dirty bits: bit 55 of /proc/PID/pagemap, cleared through
/proc/PID/clear_refs."""

from typing import ClassVar

from typing_extensions import Buffer

from colo._fast.tracker_base import BlockTracker, ProcessMemory

def probe(pid: int = 0) -> str | None:
    """None when the kernel keeps soft-dirty bits and process ``pid`` (0: this one) may be watched;
    otherwise why not."""

class SoftDirtyTracker(BlockTracker):
    """Dirty pages of one block by soft-dirty bits, in this process or, for a :class:`ProcessMemory`,
    another one that may be traced. **The VM must stand still during a harvest**: reading and clearing are
    two steps. Clearing is for the whole process; all trackers of one process share it and lose nothing to
    each other. Unsupported where the kernel has no such bits.
    """

    name: ClassVar[str]
    atomic: ClassVar[bool]
    by_content: ClassVar[bool]
    def __init__(
        self, memory: Buffer | ProcessMemory, *, block: str = "ram", page_bytes: int = 4096
    ) -> None: ...
