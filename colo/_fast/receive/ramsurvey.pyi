"""The records of a ``ram`` section counted, for target pages of any size."""

from collections.abc import Iterable
from typing import Final

from colo._fast.receive.buffers import ReadBuffer

PAGE_BYTES_MIN: Final = 1024
PAGE_BYTES_MAX: Final = 65536
EOS: Final = -1

class BlockCounts:
    """What came of one block."""

    zero_pages: int
    normal_pages: int
    xbzrle_pages: int
    compressed_pages: int
    def __init__(self, idstr: str, used_length: int) -> None: ...
    @property
    def idstr(self) -> str: ...
    @property
    def used_length(self) -> int: ...
    @property
    def counts(self) -> dict[str, int]:
        """Pages by kind."""

class RamSurvey:
    """Follows the records of ``ram`` sections with target pages of ``page_bytes`` (a power of two from 1024 to
    65536, else ValueError), checks what can be checked without the pages, and counts."""

    def __init__(self, page_bytes: int) -> None: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def blocks(self) -> list[BlockCounts]: ...
    @property
    def flushes(self) -> int:
        """MULTIFD_FLUSH records: pages came on other channels."""
    @property
    def hooks(self) -> int:
        """RDMA's records: pages came by RDMA."""
    @property
    def min_stride(self) -> int:
        """Least distance in bytes of two pages of a block that came one after the other; 0: none did."""
    def set_blocks(self, blocks: Iterable[tuple[str, int]]) -> None:
        """Begin anew over ``blocks``, pairs of idstr and used length in bytes."""
    def decode(self, buffer: ReadBuffer) -> int:
        """Follow records up to the end of the body (returns :data:`EOS`) or to a MEM_SIZE record (returns its
        total in bytes, with the block list next in ``buffer``). Raises StreamError, with the record's offset,
        for what cannot be, and whatever the buffer raises."""
