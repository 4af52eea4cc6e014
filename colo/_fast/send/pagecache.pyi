"""What the sender remembers of the receiver's pages, to send only what changed in them."""

from typing import NamedTuple

from typing_extensions import Buffer

from colo._fast.kernels.bitmap import DirtyBitmap

class CacheStats(NamedTuple):
    """Counts since the cache was made. ``hits``: pages encoded against a copy, of which ``unchanged`` had no
    change, ``overflows`` went raw, the others took ``encoded_bytes``. ``misses``: pages sent whole, of which
    ``refused`` found their slot taken."""

    hits: int
    misses: int
    unchanged: int
    overflows: int
    refused: int
    evicted: int
    encoded_bytes: int

class RememberedPages:
    """The common part of :class:`PageCache` and :class:`ShadowCache`."""

    @property
    def page_bytes(self) -> int: ...
    @property
    def stats(self) -> CacheStats: ...

class PageCache(RememberedPages):
    """At most ``capacity_bytes`` of pages, direct-mapped by page address, as QEMU's XBZRLE cache
    (migration/page_cache.c)."""

    def __init__(self, capacity_bytes: int, page_bytes: int = 4096) -> None: ...
    @property
    def capacity_bytes(self) -> int:
        """Bytes of pages it can hold: a power of two."""
    @property
    def used_pages(self) -> int: ...
    def resize(self, capacity_bytes: int) -> None:
        """Change the capacity, also while an encoder uses the cache. ValueError, MemoryError, BufferError:
        unchanged."""
    def invalidate(self, pages: DirtyBitmap, address: int = 0) -> None:
        """Forget the dirty pages of a RAM block at ``address``: those of a checkpoint that was not
        committed."""
    def invalidate_all(self) -> None: ...
    def get(self, address: int) -> bytes | None:
        """The remembered copy of the page at ``address``. It does not count as a use."""

class ShadowCache(RememberedPages):
    """A copy of every page of one RAM block, none valid at first; in ``memory`` (writable, ``pages *
    page_bytes`` bytes) if given."""

    def __init__(self, pages: int, page_bytes: int = 4096, memory: Buffer | None = None) -> None: ...
    @property
    def pages(self) -> int: ...
    @property
    def valid(self) -> DirtyBitmap:
        """The pages that hold what the receiver holds."""
    @property
    def used_pages(self) -> int: ...
    def invalidate(self, pages: DirtyBitmap) -> None:
        """Forget the dirty pages: those of a checkpoint that was not committed. ValueError: another number of
        pages."""
    def invalidate_all(self) -> None: ...
    def validate_all(self) -> None:
        """Promise that every byte of the copy is what the receiver holds."""
    def __buffer__(self, flags: int, /) -> memoryview: ...
