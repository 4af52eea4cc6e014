"""The last committed checkpoint as a stream that any QEMU of the same machine type loads."""

from __future__ import annotations

import mmap
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.send.pageencoder import PageEncoder
from colo.epoch.committed import Committed
from colo.stream import RamBlockInfo
from colo.stream.configuration import configuration
from colo.stream.ram import end_of_section
from colo.stream.writer import file_header, ram_start_section, section_end, section_footer

IGNORE_SHARED = "x-ignore-shared"


@dataclass(frozen=True, slots=True)
class Composed:
    """A loadable stream: bytes, then the pages of ``sent_blocks``, then bytes."""

    head: bytes
    sent_blocks: tuple[RamBlock, ...]
    tail: bytes = field(repr=False)

    def write(self, fd: int, *, timeout_s: float) -> int:
        """Write the stream to ``fd``; returns the bytes written. Raises ChannelLost or DeadlineExceeded."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        encoder = PageEncoder(fd)
        try:
            encoder.write(self.head, deadline_ns)
            for block in self.sent_blocks:
                _send_block(encoder, block, deadline_ns)
            encoder.write(self.tail, deadline_ns, flush=True)
            return encoder.stats.sent_bytes
        finally:
            encoder.close()


def _send_block(encoder: PageEncoder, block: RamBlock, deadline_ns: int) -> None:
    """All pages. Those known to be zero are not read: in a file on tmpfs that would give each its storage, and end in
    SIGBUS when there is none."""
    assert block.memory_buffer is not None
    zero, other = DirtyBitmap(block.pages), DirtyBitmap(block.pages)
    block.copy_zero_bits(zero)
    other.set(0, block.pages)
    other.subtract(zero)
    encoder.begin_block(block.idstr, memoryview(block.memory_buffer)[: block.used_length], other)
    encoder.encode(deadline_ns=deadline_ns)
    if zero.any():
        # Private memory that is only read is one shared page of zeros.
        zeros = mmap.mmap(-1, block.used_length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        encoder.begin_block(block.idstr, zeros, zero)
        encoder.encode(deadline_ns=deadline_ns)


def compose(committed: Committed, *, shared: Collection[str] = (), addresses: Mapping[str, int] = {}) -> Composed:
    """The stream that resumes ``committed``.

    The blocks named in ``shared`` are left out: the receiver maps their files (capability x-ignore-shared, which is then
    announced and needs each block's guest-physical ``addresses``). Without any, all pages are sent.
    """
    section_id = committed.ram_section_id
    infos = [
        RamBlockInfo(b.idstr, b.used_length, address=addresses.get(b.idstr, 0) if shared else None)
        for b in committed.blocks
    ]
    capabilities = (IGNORE_SHARED,) if shared else ()
    head = b"".join((
        file_header(),
        configuration(committed.configuration.machine, capabilities=capabilities),
        ram_start_section(section_id, infos),
        section_end(section_id),
    ))
    tail = end_of_section() + section_footer(section_id) + committed.device_state
    return Composed(head, tuple(b for b in committed.blocks if b.idstr not in shared), tail)

