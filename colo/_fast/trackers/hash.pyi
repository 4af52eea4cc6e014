"""Dirty pages by a keyed 128-bit hash of each page: no shadow copy, and a chance of 2^-64 per change to
miss it."""

from typing import ClassVar

from typing_extensions import Buffer

from colo._fast.trackers.base import BlockTracker

class HashTracker(BlockTracker):
    """Dirty pages of one block by a keyed hash per page (16 bytes each), the key drawn at each start.

    For two contents of a page chosen without knowledge of the key the hash is equal with probability at
    most 2^-64. Never chosen by itself. The decision is by content: keep the VM paused from the harvest
    until the pages are copied. Unsupported for another process's memory.
    """

    name: ClassVar[str]
    atomic: ClassVar[bool]
    by_content: ClassVar[bool]
    def __init__(self, memory: Buffer, *, block: str = "ram", page_bytes: int = 4096) -> None: ...
