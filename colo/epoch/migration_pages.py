"""RAM in rounds: which pages a round has, and their records in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from colo._fast.send.pageencoder import PageEncoder
from colo.epoch.primary_pages import PrimaryPages
from colo.epoch.stable_copy import StableCopy


class MigrationPages(PrimaryPages):
    """As :class:`PrimaryPages`, with the records of a round in batches instead of all at once."""

    @property
    def needs_copy(self) -> bool:
        """Whether a round's pages must be copied before the VM runs on after their harvest."""
        return self.tracker.by_content

    @property
    def remembers_all(self) -> bool:
        """Whether XBZRLE works against a copy of all memory, which the first round fills."""
        return any(cache is not None and not hasattr(cache, "capacity_bytes") for cache in self._caches)

    def cache_counts(self) -> dict[str, int] | None:
        """Figures of XBZRLE under QEMU's names (qapi: XBZRLECacheStats), None without it."""
        caches = list({id(cache): cache for cache in self._caches if cache is not None}.values())
        if not caches:
            return None
        stats = [cache.stats for cache in caches]
        return {
            "cache-size": getattr(caches[0], "capacity_bytes", self.total_bytes),
            "bytes": sum(each.encoded_bytes for each in stats),
            "pages": sum(each.hits - each.overflows for each in stats),
            "cache-miss": sum(each.misses for each in stats),
            "overflow": sum(each.overflows for each in stats),
        }

    def open_blocks(self, encoder: PageEncoder, *, round_number: int) -> Iterator[None]:
        """Open each block that has owned pages in ``encoder``, one after the other: its ``encode`` then sends them.

        In the first round nothing is to be had from a cache, which could hold a part only; a copy of all is filled.
        """
        remember = round_number > 1 or self.remembers_all
        for n, block in enumerate(self.blocks):
            if self._bitmaps[n].any():
                encoder.begin_block(
                    block.idstr, block.view(), self._bitmaps[n], self._caches[n] if remember else None,
                    address=self._addresses[n], age=round_number)
                yield


class RoundCopy(StableCopy):
    """The stream of a whole round, kept apart from memory so that the VM may run on while it is sent."""

    def fill_by(self, write: Callable[[PageEncoder], None]) -> None:
        """Let ``write`` put it there."""
        encoder = self.encoder()
        write(encoder)
        encoder.flush()
        encoder.close()

    @property
    def pages(self) -> dict[str, int]:
        """How many there are, by kind of record."""
        return self.encoder().stats.pages

    def records(self) -> memoryview:
        """Its bytes."""
        return memoryview(self._arena)
