"""Sends dirty pages as records of the ``ram`` section."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.kernels.digest import StreamDigest
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import PageCache, ShadowCache
from colo._fast.send.recordarena import RecordArena

KINDS: tuple[str, ...]

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

class EncoderStats(NamedTuple):
    """Counts since the encoder was made; ``pages`` and ``bytes`` (whole records) by kind of record, see
    ``KINDS``."""

    pages: dict[str, int]
    bytes: dict[str, int]
    sent_bytes: int
    sends: int

class PageEncoder:
    """Encodes and sends pages through ``fd`` (a socket, pipe or file, not owned), or collects them for
    :meth:`take` (None)."""

    @property
    def page_bytes(self) -> int: ...
    def __init__(
        self,
        fd: int | _HasFileno | None = None,
        *,
        page_bytes: int = 4096,
        wake_fd: int = -1,
        simd: str | None = None,
        codec: AdaptiveCodec | None = None,
        threads: int = 1,
        arena: RecordArena | None = None,
    ) -> None: ...
    def set_digest(self, digest: StreamDigest | None) -> None:
        """Add the bytes of all pages' records from now on, and of nothing between them, to ``digest``; None: to
        none any more."""
    def begin_block(
        self,
        idstr: str,
        memory: Buffer | NDArray[np.uint8],
        bitmap: DirtyBitmap | None = None,
        cache: PageCache | ShadowCache | None = None,
        *,
        address: int = 0,
        age: int = 0,
        detect_zero: bool = True,
    ) -> None:
        """Open a RAM block. ``bitmap`` None: all of its pages. Raises ValueError or BufferError, nothing
        changed."""
    def encode(
        self, budget_bytes: int | None = None, deadline_ns: int | None = None, flush: bool = True
    ) -> tuple[int, int, bool]:
        """Send dirty pages of the open block: (pages looked at, bytes made, whether pages are left). Raises
        ChannelLost, DeadlineExceeded, Interrupted, StorageError or another ChannelError; the encoder is then
        of no more use."""
    def write(self, data: Buffer, deadline_ns: int | None = None, flush: bool = False) -> None:
        """Put other bytes of the stream between the records."""
    def end_section(self, deadline_ns: int | None = None, flush: bool = True) -> None:
        """Write the EOS record; the next record names its block again."""
    def flush(self, deadline_ns: int | None = None) -> None: ...
    def close(self) -> None:
        """Let go of the block's memory."""
    def take(self) -> bytes:
        """The bytes collected so far, when there is no file descriptor."""
    @property
    def pending_bytes(self) -> int: ...
    @property
    def stats(self) -> EncoderStats: ...
