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
    """A RAM image in the given blocks instead of files. Their names and sizes are what a primary must announce."""

    def __init__(self, blocks: Iterable[GuestBlock]) -> None:
        self.guest_blocks = {block.idstr: block for block in blocks}
        self.max_ram_bytes = sum(block.length_bytes for block in self.guest_blocks.values())
        self.blocks = []

    def announce(self, announced: Iterable[tuple[str, int]]) -> list[RamBlock]:
        """As :meth:`BlockImage.announce`. Raises StreamError when the blocks are not those of the VM here."""
        wanted = list(announced)
        here = {name: block.length_bytes for name, block in self.guest_blocks.items()}
        if dict(wanted) != here:
            raise StreamError(
                "the RAM blocks are not those of the VM here: " + block_differences(dict(wanted), here),
                where="ram MEM_SIZE", value=wanted,
            )
        return super().announce(wanted)

    def _make(self, idstr: str, length: int) -> RamBlock:
        block = self.guest_blocks[idstr]
        if isinstance(block.buffer, mmap.mmap):
            with contextlib.suppress(OSError, ValueError):  # a kernel without them; no whole pages of the host
                block.buffer.madvise(mmap.MADV_HUGEPAGE)  # the first copy fills it: far fewer page faults
        return RamBlock(idstr, length, memory=block.view())

    def load_into(self, blocks: Iterable[GuestBlock]) -> None:
        """Copy all bytes to the blocks of the same names."""
        for block in blocks:
            block.view()[:] = self.guest_blocks[block.idstr].view()
