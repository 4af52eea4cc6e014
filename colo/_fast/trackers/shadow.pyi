"""Dirty pages by comparing memory with a shadow copy of it."""

from typing import ClassVar

from typing_extensions import Buffer

from colo._fast.trackers.base import BlockTracker

class ShadowTracker(BlockTracker):
    """Dirty pages of one block by comparison with a shadow copy: works everywhere, costs as much memory
    again.

    ``shadow`` is the caller's own buffer of the block's size (a page cache that is kept anyway), or None to
    allocate one at the start. With ``refresh=True`` a harvest copies each dirty page into the shadow in the
    same pass; with False it only compares, and whoever encodes the page brings the shadow up to date (the
    fused XBZRLE step, or :meth:`refresh`); until then each harvest reports the page again.

    The decision is by content: send pages from the shadow, or keep the VM paused from the harvest until the
    pages are copied; a page changed and changed back in between would otherwise be sent as what it no
    longer is. BufferError, ValueError for buffers that do not fit; Unsupported for another process's
    memory.
    """

    name: ClassVar[str]
    atomic: ClassVar[bool]
    by_content: ClassVar[bool]
    @property
    def refreshes(self) -> bool: ...
    @property
    def shadow(self) -> memoryview | None:
        """The shadow copy, format ``B``, while the tracker is started; otherwise None."""
    def __init__(
        self,
        memory: Buffer,
        *,
        block: str = "ram",
        page_bytes: int = 4096,
        shadow: Buffer | None = None,
        refresh: bool = True,
    ) -> None: ...
    def refresh(self, bitmap: Buffer) -> None:
        """Copy the pages whose bits are set in ``bitmap`` from memory into the shadow. TrackerError when
        not started, or the memory is gone."""
