"""A checkpoint's pages apart from memory: made in the pause, sent while the VM runs on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from colo._fast.send.pageencoder import PageEncoder
from colo._fast.send.recordarena import RecordArena

if TYPE_CHECKING:
    from colo._fast.kernels.digest import StreamDigest
    from colo._fast.send.adaptive import AdaptiveCodec
    from colo.abc import Transport

KEPT_BYTES = 256 << 20
"""Storage above this is given back after the checkpoint."""
FIRST_BYTES = 16 << 20
"""Storage made ready before the first checkpoint, or all that memory could need if that is less."""


class StableCopy:
    """The dirty pages' records, in memory that is kept, and kept ready, from one checkpoint to the next."""

    def __init__(self, codec: AdaptiveCodec | None = None) -> None:
        self._arena = RecordArena()
        self._encoder = PageEncoder(arena=self._arena, codec=codec)
        # A compressed delta is made against the receiver's committed page: not for a page's second record.
        self._again = PageEncoder(arena=self._arena) if codec is not None else self._encoder

    def __len__(self) -> int:
        return len(self._arena)

    def encoder(self, *, again: bool = False) -> PageEncoder:
        """What makes records behind those that are here: of pages for the first time in this checkpoint, or again."""
        return self._again if again else self._encoder

    @property
    def encoders(self) -> set[PageEncoder]:
        """What made the records, for their figures."""
        return {self._encoder, self._again}

    def make_ready(self, total_bytes: int) -> None:
        """While nobody waits: forget this checkpoint's records, and have memory at hand for a somewhat larger one, of at most
        ``total_bytes``."""
        wanted = max(FIRST_BYTES, 2 * len(self._arena))
        self._arena.clear(KEPT_BYTES)
        self._arena.prepare(min(wanted, KEPT_BYTES, total_bytes))

    def digest(self, digest: StreamDigest) -> None:
        """Add the records to ``digest``."""
        digest.update(self._arena)

    def send(self, transport: Transport, *, deadline_ns: int, wake_fd: int) -> None:
        """Send it all. Raises ChannelLost, DeadlineExceeded or Interrupted."""
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        with memoryview(self._arena) as records:
            transport.send(records, timeout_s=left_s, wake_fd=wake_fd, phase="send pages")
