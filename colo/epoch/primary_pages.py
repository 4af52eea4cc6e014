"""The primary's dirty pages: who owns their bits, and from which bytes they are sent.

A harvest moves the bits out of the tracker. From then on they are this object's until the checkpoint is committed; every
failure in between gives them back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import PageCache, ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo.abc import DirtyTracker, GuestMemory
from colo.epoch.stable_copy import StableCopy
from colo.errors import TrackerError
from colo.memory.trackers import open_tracker
from colo.stream import RamBlockInfo
from colo.wire import TARGET_PAGE_BYTES


class PrimaryPages:
    """Dirty tracking, stable copies and what is remembered of the receiver's pages, for all blocks of a VM.

    ``tracker``: a kind by name, ``auto``, or a tracker over the same blocks (started here, and stopped). ``xbzrle``: None;
    ``"shadow"``, a copy of all memory; or the bytes of a cache as QEMU's. Raises Unsupported or ValueError.
    """

    def __init__(
        self, memory: GuestMemory, *, tracker: str | DirtyTracker = "auto", xbzrle: str | int | None = None
    ) -> None:
        self.blocks = tuple(memory.blocks)
        self.infos = [RamBlockInfo(block.idstr, block.length_bytes) for block in self.blocks]
        self.tracker: DirtyTracker = open_tracker(tracker, memory) if isinstance(tracker, str) else tracker
        self.total_bytes = sum(info.used_length for info in self.infos)
        self._counts = [info.used_length // TARGET_PAGE_BYTES for info in self.infos]
        self._bitmaps = [DirtyBitmap(pages) for pages in self._counts]
        """Harvested and not committed."""
        self.fresh = [DirtyBitmap(pages) for pages in self._counts]
        """Found by the last harvest, and not owned before it."""
        self.again = [DirtyBitmap(pages) for pages in self._counts]
        """Found by the last harvest, and owned before it: written after they were taken."""
        self.found = 0
        """How many pages the last harvest found."""
        self._owed = False
        self._started = False
        self._addresses: list[int] = []
        address = 0
        for info in self.infos:
            self._addresses.append(address)
            address += info.used_length
        self._caches: list[PageCache | ShadowCache | None] = [None] * len(self.blocks)
        if xbzrle == "shadow":
            self._caches = [ShadowCache(pages) for pages in self._counts]
        elif isinstance(xbzrle, int):
            cache = PageCache(xbzrle)
            self._caches = [cache] * len(self.blocks)
        elif xbzrle is not None:
            raise ValueError(f"xbzrle is None, 'shadow' or a number of bytes, not {xbzrle!r}")
        self._copy: StableCopy | None = None
        self.codec: AdaptiveCodec | None = None
        """For copies made from now on."""

    # -- tracking

    @property
    def needs_pause(self) -> bool:
        """Whether pages can only be collected and copied while the VM stands still."""
        return self.tracker.by_content or not self.tracker.atomic

    def start(self) -> None:
        """Begin to track, with everything dirty from the receiver's view. Raises TrackerError or Unsupported."""
        self.stop()
        self.tracker.start()
        self._started = True

    def stop(self) -> None:
        """Track no more, let go of the memory."""
        self._owed = False
        self.tracker.stop()
        self._started = False
        self._copy = None

    def harvest(self) -> int:
        """Move the dirty bits out; they are owned here until :meth:`commit` or :meth:`give_back`."""
        if self._owed:
            raise RuntimeError("the harvest before this one was neither committed nor given back")
        return self.harvest_more()

    def harvest_more(self) -> int:
        """Move the dirty bits out, beside those owned already; returns how many were found this time."""
        if not self._owed:
            for bitmap in self._bitmaps:
                bitmap.clear()
        for again in self.again:
            again.clear()
        found = self.tracker.harvest(self.again)
        for owned, fresh, again in zip(self._bitmaps, self.fresh, self.again, strict=True):
            fresh.clear()
            fresh.union(again)
            fresh.subtract(owned)
            again.subtract(fresh)
            owned.union(fresh)
        self._owed = True
        self.found = found
        return found

    def take_all(self) -> None:
        """Own every page: those dirty in the tracker are part of them."""
        self.harvest()
        for bitmap, pages in zip(self._bitmaps, self._counts, strict=True):
            bitmap.set(0, pages)

    def next_round(self) -> int:
        """Harvest anew in a first copy: what was sent is the receiver's, but not committed. A cut means a copy of everything,
        so nothing is forgotten by that."""
        self.commit()
        return self.harvest()

    def commit(self) -> None:
        """The receiver has the pages."""
        self._owed = False

    def give_back(self) -> None:
        """The receiver may not have the pages: they are dirty still, and nothing is known of its memory any more."""
        for cache in self._caches:
            if cache is not None:
                cache.invalidate_all()
        if self._owed:
            self._owed = False
            with contextlib.suppress(TrackerError):  # lost: it is started anew, with a full copy
                self.tracker.give_back(self._bitmaps)

    # -- as a participant of checkpoints

    name = "RAM"

    def seal(self, number: int) -> None:
        """Harvest: what is owned from before the pause, and what was written since, belong together. Raises TrackerError."""
        self.harvest_more()

    def release(self, number: int) -> None:
        """The receiver has committed the pages."""
        self.commit()

    def take_back(self, number: int) -> None:
        """As :meth:`give_back`; what was copied for the connection, and agreed on over it, is of no use any more."""
        self.give_back()
        self._copy = None
        self.codec = None

    def end(self, won: bool) -> None:
        """Nothing waits here: dirty bits outlive the session's end only in the tracker."""

    def owned_pages(self) -> int:
        """How many pages are harvested and not committed."""
        return sum(bitmap.count() for bitmap in self._bitmaps) if self._owed else 0

    # -- sending

    def encode(
        self, encoder: PageEncoder, bitmaps: Sequence[DirtyBitmap] | None = None, *, epoch: int, deadline_ns: int | None
    ) -> None:
        """Write pages of all blocks as records, from memory as it is now: those in ``bitmaps``, or all that are owned."""
        for n, bitmap in enumerate(self._bitmaps if bitmaps is None else bitmaps):
            if not bitmap.any():
                continue
            block = self.blocks[n]
            encoder.begin_block(
                block.idstr, block.view(), bitmap, self._caches[n], address=self._addresses[n], age=epoch)
            encoder.encode(deadline_ns=deadline_ns, flush=False)

    @property
    def stable(self) -> StableCopy:
        """The pages' records, apart from memory."""
        if self._copy is None:
            self._copy = StableCopy(self.codec)
            self._copy.make_ready(self.total_bytes)
        return self._copy

    def copy(self, epoch: int) -> int:
        """Make the records of what was harvested last, behind those in the copy; returns the length of all in bytes."""
        for again, bitmaps in ((False, self.fresh), (True, self.again)):
            encoder = self.stable.encoder(again=again)
            self.encode(encoder, bitmaps, epoch=epoch, deadline_ns=None)
            encoder.flush()
            encoder.close()
        return len(self.stable)
