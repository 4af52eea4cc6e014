"""Dirty trackers by name, for all RAM blocks of a VM at once, with the reasons of those that cannot work
here.

========== ======================================== ====== ========== =================================
name       finds writes by                          atomic by content costs
========== ======================================== ====== ========== =================================
pagemap    PAGEMAP_SCAN (Linux 6.7)                 yes    no         a fault per page first written
shadow     comparing with a copy                    yes    yes        the memory again, reads both
hash       comparing a 128-bit keyed hash per page  yes    yes        reads all, 2^-64 to miss a change
softdirty  soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)  no     no         faults in the whole process
explicit   the VM's own reports                     yes    no         what reporting costs the VM
========== ======================================== ====== ========== =================================

``auto`` takes ``pagemap`` where this machine and all blocks allow it, otherwise ``shadow``. ``hash`` (it
may miss), ``softdirty`` (it clears a whole process) and ``explicit`` (the VM must do its part) are taken
only when asked for by name.

``pagemap`` and ``softdirty`` go by page tables: they see what is written through this process's mapping, and
nothing else. So they refuse memory that others can change, shared mappings and mappings of files; on such
memory ``auto`` takes ``shadow``. Who knows that nobody else writes, or marks each such write, says
``sole_writer=True``.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from mmap import PAGESIZE
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Self, TypeVar, overload

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.trackers import pagemap as tracker_pagemap
from colo._fast.trackers import softdirty as tracker_softdirty
from colo._fast.trackers.base import BlockTracker, ProcessMemory
from colo._fast.trackers.explicit import ExplicitTracker
from colo._fast.trackers.hash import HashTracker
from colo._fast.trackers.pagemap import PagemapTracker
from colo._fast.trackers.shadow import ShadowTracker
from colo._fast.trackers.softdirty import SoftDirtyTracker
from colo.abc import GuestBlock, GuestMemory
from colo.errors import Unsupported

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Blocks = GuestMemory | Sequence[GuestBlock] | Mapping[str, Buffer | ProcessMemory]

KINDS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (PagemapTracker, ShadowTracker, HashTracker, SoftDirtyTracker, ExplicitTracker)
}
"""The trackers by name, in the order of preference."""

Part = TypeVar("Part", bound=BlockTracker)


class ProbeResult(NamedTuple):
    """Whether one kind of tracker works on this machine; ``reason`` is empty when it does."""

    name: str
    available: bool
    reason: str


def probe() -> list[ProbeResult]:
    """Try every kind of tracker on this machine, in this process. Takes well under a millisecond and
    disturbs no tracker that runs."""
    results = []
    for name in KINDS:
        reason = None
        if name == PagemapTracker.name:
            reason = tracker_pagemap.probe()
        elif name == SoftDirtyTracker.name:
            reason = tracker_softdirty.probe()
        results.append(ProbeResult(name, reason is None, reason or ""))
    return results


class MemoryTracker(Generic[Part]):
    """One kind of tracker over all blocks of a VM: a :class:`colo.abc.DirtyTracker`.

    ``parts`` are the trackers of the blocks, in the blocks' order; ``tracker["pc.ram"]`` is one of them,
    for what only its kind can do. ``refused`` says which kinds ``auto`` passed over, and why.
    """

    def __init__(self, parts: Sequence[Part], *, refused: Sequence[ProbeResult] = ()) -> None:
        if not parts:
            raise ValueError("there is no RAM block to track")
        names = [part.block for part in parts]
        if len(set(names)) != len(names):
            raise ValueError(f"RAM blocks of the same name: {', '.join(names)}")
        self.parts = tuple(parts)
        self.refused = tuple(refused)
        kind: Any = type(parts[0])
        self.name: str = kind.name
        self.atomic: bool = kind.atomic
        self.by_content: bool = kind.by_content

    def __getitem__(self, idstr: str) -> Part:
        for part in self.parts:
            if part.block == idstr:
                return part
        raise KeyError(idstr)

    def new_bitmaps(self) -> list[DirtyBitmap]:
        """Clean bitmaps for :meth:`harvest`, one per block."""
        return [DirtyBitmap(part.pages) for part in self.parts]

    def start(self) -> None:
        """Track all blocks from now on, or, on an error, none. Raises TrackerError or Unsupported."""
        with ExitStack() as undo:
            for part in self.parts:
                part.start()
                undo.callback(part.stop)
            undo.pop_all()

    def harvest(self, bitmaps: Sequence[Buffer]) -> int:
        """Move the dirty pages of all blocks out; returns how many. When one block fails (TrackerError),
        what was harvested from the blocks before it is given back; bits set in ``bitmaps`` so far may stay
        set."""
        self._match(bitmaps)
        pages = 0
        with ExitStack() as undo:
            for n, (part, bitmap) in enumerate(zip(self.parts, bitmaps, strict=True)):
                # Soft-dirty bits are cleared for a whole process: the first harvest has collected those of
                # all blocks.
                known = n > 0 and isinstance(part, SoftDirtyTracker) and part.pid == self.parts[0].pid
                pages += part.harvest_pending(bitmap) if known else part.harvest(bitmap)
                undo.callback(part.give_back, bitmap)
            undo.pop_all()
        return pages

    def give_back(self, bitmaps: Sequence[Buffer]) -> None:
        """Report these pages again at the next harvest. TrackerError when not started."""
        self._match(bitmaps)
        for part, bitmap in zip(self.parts, bitmaps, strict=True):
            part.give_back(bitmap)

    def stop(self) -> None:
        """Track no more. Harmless when not started."""
        with ExitStack() as all_of_them:
            for part in self.parts:
                all_of_them.callback(part.stop)

    def _match(self, bitmaps: Sequence[Buffer]) -> None:
        if len(bitmaps) != len(self.parts):
            raise ValueError(f"{len(bitmaps)} bitmaps for {len(self.parts)} RAM blocks")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _named(blocks: Blocks) -> list[tuple[str, Buffer | ProcessMemory]]:
    if isinstance(blocks, Mapping):
        return list(blocks.items())
    listed = blocks.blocks if isinstance(blocks, GuestMemory) else blocks
    return [(block.idstr, block.buffer) for block in listed]


@overload
def open_tracker(
    name: Literal["pagemap"],
    blocks: Blocks,
    *,
    page_bytes: int = ...,
    userfaultfd: int | None = ...,
    sole_writer: bool = ...,
) -> MemoryTracker[PagemapTracker]: ...
@overload
def open_tracker(
    name: Literal["shadow"], blocks: Blocks, *, page_bytes: int = ..., refresh: bool = ...
) -> MemoryTracker[ShadowTracker]: ...
@overload
def open_tracker(
    name: Literal["hash"], blocks: Blocks, *, page_bytes: int = ...
) -> MemoryTracker[HashTracker]: ...
@overload
def open_tracker(
    name: Literal["softdirty"], blocks: Blocks, *, page_bytes: int = ..., sole_writer: bool = ...
) -> MemoryTracker[SoftDirtyTracker]: ...
@overload
def open_tracker(
    name: Literal["explicit"], blocks: Blocks, *, page_bytes: int = ...
) -> MemoryTracker[ExplicitTracker]: ...
@overload
def open_tracker(name: str, blocks: Blocks, *, page_bytes: int = ...) -> MemoryTracker[BlockTracker]: ...
def open_tracker(name: str, blocks: Blocks, *, page_bytes: int = 4096, **options: Any) -> MemoryTracker[Any]:
    """A tracker of this kind (or ``auto``) over ``blocks``, not started yet.

    ``blocks`` is a VM's memory, its blocks, or ``{name: buffer or ProcessMemory}``. Options: ``refresh`` of
    ``shadow`` (:class:`~colo._fast.trackers.shadow.ShadowTracker`), ``userfaultfd`` and ``sole_writer`` of
    ``pagemap`` (:class:`~colo._fast.trackers.pagemap.PagemapTracker`), ``sole_writer`` of ``softdirty``.
    ValueError for an unknown name, Unsupported, with the reason, when this machine cannot.
    """
    named = _named(blocks)
    if name == "auto":
        return _open_auto(named, page_bytes, options)
    if name not in KINDS:
        raise ValueError(f"no dirty tracker is called {name!r}: there are auto, {', '.join(KINDS)}")
    for result in probe():
        if result.name == name and not result.available:
            raise Unsupported(f"dirty tracker {name}: {result.reason}")
    kind = KINDS[name]
    parts = [kind(memory, block=idstr, page_bytes=page_bytes, **options) for idstr, memory in named]
    if name == PagemapTracker.name and (reason := _share_a_page(named)) is not None:
        raise Unsupported(f"dirty tracker {name}: {reason}")
    return MemoryTracker(parts)


def _share_a_page(named: list[tuple[str, Buffer | ProcessMemory]]) -> str | None:
    """Why whole pages of the host cannot be watched for each block by itself: two have parts of one. None: they can."""
    ranges = []
    for idstr, memory in named:
        pid = memory.pid if isinstance(memory, ProcessMemory) else 0
        address = memory.address if isinstance(memory, ProcessMemory) else _address(memory)
        length = memory.length_bytes if isinstance(memory, ProcessMemory) else memoryview(memory).nbytes
        ranges.append((pid, address // PAGESIZE, (address + length - 1) // PAGESIZE, idstr))
    ranges.sort()
    for before, after in itertools.pairwise(ranges):
        if before[0] == after[0] and before[2] >= after[1]:
            return (f"{before[3]} and {after[3]} have parts of one page of the host: give them buffers that begin at whole "
                    "pages (BlockMemory.allocate does)")
    return None


def _address(memory: Buffer) -> int:
    view = memoryview(memory).cast("B") if memoryview(memory).c_contiguous else memoryview(memory)
    if view.readonly or not view.nbytes:
        return 0  # the tracker itself refuses it
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _open_auto(
    named: list[tuple[str, Buffer | ProcessMemory]], page_bytes: int, options: dict[str, Any]
) -> MemoryTracker[Any]:
    if options:
        raise ValueError(f"options belong to one kind of tracker, not to auto: {', '.join(options)}")
    reason = tracker_pagemap.probe()
    if reason is None:
        parts = [PagemapTracker(memory, block=idstr, page_bytes=page_bytes) for idstr, memory in named]
        reason = _share_a_page(named) or next((why for part in parts if (why := part.fits()) is not None), None)
        if reason is None:
            return MemoryTracker(parts)
    refused = ProbeResult(PagemapTracker.name, False, reason)
    try:
        return open_shadow(named, page_bytes, refused)
    except Unsupported as also:
        raise Unsupported(f"no dirty tracker fits: pagemap: {reason}; shadow: {also}") from also


def open_shadow(
    named: list[tuple[str, Buffer | ProcessMemory]], page_bytes: int, refused: ProbeResult
) -> MemoryTracker[ShadowTracker]:
    """The fallback of ``auto``."""
    parts = []
    for idstr, memory in named:
        if isinstance(memory, ProcessMemory):
            raise Unsupported(f"{idstr} is memory of process {memory.pid}")
        parts.append(ShadowTracker(memory, block=idstr, page_bytes=page_bytes))
    return MemoryTracker(parts, refused=[refused])
