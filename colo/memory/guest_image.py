"""A RAM image in the memory of a VM in this process."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable

from colo._fast.kernels.ramblock import RamBlock
from colo.abc import GuestBlock
from colo.errors import StreamError
from colo.memory.block_image import BlockImage
from colo.memory.description import block_differences


class GuestImage(BlockImage):
    """A RAM image in the given blocks instead of files. Their names and sizes are what a primary must announce.

    A first copy goes where no committed checkpoint is: into a second set of blocks, made when it is needed, while the given
    ones hold one; :meth:`bring_home` has the committed one in those.
    """

    def __init__(self, blocks: Iterable[GuestBlock]) -> None:
        self._own = {block.idstr: block for block in blocks}
        super().__init__(sum(block.length_bytes for block in self._own.values()))
        self._spare: dict[str, GuestBlock] = {}
        self._holding: dict[str, GuestBlock] | None = None
        """The set that the committed checkpoint is in."""
        self._filling: dict[str, GuestBlock] | None = None
        """The set that a first copy goes to."""

    def begin(self) -> None:
        """See :meth:`BlockImage.begin`."""
        if self._holding is not self._own:
            self._filling = self._own
            return
        if not self._spare:
            self._spare = {name: GuestBlock.allocate(name, block.length_bytes) for name, block in self._own.items()}
        self._filling = self._spare

    def forget(self) -> None:
        """See :meth:`BlockImage.forget`."""
        self._filling = None

    def announce(self, announced: Iterable[tuple[str, int]]) -> list[RamBlock]:
        """As :meth:`BlockImage.announce`. Raises StreamError when the blocks are not those of the VM here."""
        wanted = list(announced)
        here = {name: block.length_bytes for name, block in self._own.items()}
        if dict(wanted) != here:
            raise StreamError(
                "the RAM blocks are not those of the VM here: " + block_differences(dict(wanted), here),
                where="ram MEM_SIZE", value=wanted,
            )
        return super().announce(wanted)

    def _known(self) -> list[RamBlock]:
        return self.blocks if self._filling is None else []

    def _make(self, idstr: str, length: int) -> RamBlock:
        block = (self._own if self._filling is None else self._filling)[idstr]
        if isinstance(block.buffer, mmap.mmap):
            with contextlib.suppress(OSError, ValueError):  # a kernel without them; no whole pages of the host
                block.buffer.madvise(mmap.MADV_HUGEPAGE)  # the first copy fills it: far fewer page faults
        return RamBlock(idstr, length, memory=block.view())

    def commit(self, blocks: list[RamBlock], extent: tuple[int, int, int] = (0, 0, 0)) -> None:
        """See :meth:`BlockImage.commit`."""
        super().commit(blocks, extent)
        if self._filling is not None:
            self._holding, self._filling = self._filling, None

    def bring_home(self) -> None:
        """Have the committed checkpoint in the given blocks, if it is in the others."""
        if self._holding is not self._spare or not self._spare:
            return
        for name, block in self._own.items():
            block.view()[:] = self._spare[name].view()
