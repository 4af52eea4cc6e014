"""The promises that parts of colo, and programs that use it, make to each other.

A program becomes a protectable VM by giving three things (:class:`VirtualMachine`): its memory, the power
to stand still, and its device state as bytes::

    class Emulator(VirtualMachine):
        def __init__(self):
            self.memory = BlockMemory.allocate({"ram": 64 << 20})
        def pause(self): ...
        def resume(self): ...
        def save_state(self): ...
        def load_state(self, state): ...

The classes here are protocols: subclassing them is welcome but not needed. :class:`BlockMemory` and
:class:`SteppedMachine` are the convenient way for a VM that lives in this process. This module imports no
other part of colo but wire numbers and :mod:`colo.connection`, where :class:`Transport` and :class:`Listener` stand.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from colo.connection import Listener, Peer, Transport
from colo.wire import IDSTR_MAX_BYTES, TARGET_PAGE_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "BlockMemory", "DirtyTracker", "GuestBlock", "GuestMemory", "Listener", "Peer", "SteppedMachine", "Throttled",
    "Transport", "VirtualMachine",
]


@dataclass(frozen=True, slots=True)
class GuestBlock:
    """One RAM block of a VM: a name, and any writable, contiguous buffer of whole target pages (4096 bytes).

    NumPy arrays, ``mmap`` (anonymous, of a memfd, of a file), bytearrays, ctypes arrays: what gives its
    bytes by the buffer protocol. A buffer that begins on a page of the host (``mmap`` does, NumPy and
    bytearray do not) is tracked exactly; in others one write may count as two dirty pages. While a session
    runs, the buffer must not move or be resized; Python's own buffers refuse that while they are held.
    Raises ValueError for the name or the length, BufferError for the buffer.
    """

    idstr: str
    buffer: Buffer

    def __post_init__(self) -> None:
        length = len(self.idstr.encode())
        if not 0 < length <= IDSTR_MAX_BYTES or "\0" in self.idstr:
            raise ValueError(f"RAM block name {self.idstr!r}: 1 to {IDSTR_MAX_BYTES} bytes, none NUL")
        with memoryview(self.buffer) as view:
            if view.readonly:
                raise BufferError(f"RAM block {self.idstr!r}: the buffer is read-only")
            if not view.c_contiguous:
                raise BufferError(f"RAM block {self.idstr!r}: the buffer is not contiguous")
            if view.nbytes == 0 or view.nbytes % TARGET_PAGE_BYTES:
                raise ValueError(
                    f"RAM block {self.idstr!r}: {view.nbytes} bytes are no whole number of pages of "
                    f"{TARGET_PAGE_BYTES}"
                )

    @classmethod
    def allocate(cls, idstr: str, length_bytes: int, *, shared: bool = False) -> Self:
        """A block of zeros that begins on a host page; ``shared``: forked children see the same memory."""
        if length_bytes <= 0:
            raise ValueError(f"RAM block {idstr!r}: {length_bytes} bytes")
        kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        return cls(idstr, mmap.mmap(-1, length_bytes, flags=kind | mmap.MAP_ANONYMOUS))

    @property
    def length_bytes(self) -> int:
        with memoryview(self.buffer) as view:
            return view.nbytes

    def view(self) -> memoryview:
        """The block's bytes, writable, format ``B``."""
        return memoryview(self.buffer).cast("B")


@runtime_checkable
class GuestMemory(Protocol):
    """All RAM blocks of a VM, always in the same order. Names are unique, and the same on both sides."""

    @property
    def blocks(self) -> Sequence[GuestBlock]: ...


class BlockMemory:
    """:class:`GuestMemory` out of buffers by name: ``BlockMemory({"ram": numpy.zeros(1 << 30, "u1")})``."""

    def __init__(self, buffers: Mapping[str, Buffer]) -> None:
        if not buffers:
            raise ValueError("a VM's memory needs at least one RAM block")
        self.blocks: Sequence[GuestBlock] = tuple(GuestBlock(*item) for item in buffers.items())

    @classmethod
    def allocate(cls, lengths: Mapping[str, int], *, shared: bool = False) -> Self:
        """Blocks of zeros, ``{name: length in bytes}``."""
        return cls({name: GuestBlock.allocate(name, n, shared=shared).buffer for name, n in lengths.items()})

    def __getitem__(self, idstr: str) -> memoryview:
        """The bytes of the block of this name, writable. KeyError when there is none."""
        for block in self.blocks:
            if block.idstr == idstr:
                return block.view()
        raise KeyError(idstr)

    @property
    def total_bytes(self) -> int:
        return sum(block.length_bytes for block in self.blocks)


@runtime_checkable
class DirtyTracker(Protocol):
    """Says which pages of a VM's memory were written since it was asked last.

    Bitmaps come one per block, in the blocks' order: buffers of ``ceil(pages / 64)`` 64-bit words, page n
    being bit ``n % 64`` of word ``n // 64`` (:class:`colo._fast.kernels.bitmap.DirtyBitmap` is one). A page may be
    reported once too often, never not at all.
    """

    @property
    def name(self) -> str: ...

    @property
    def atomic(self) -> bool:
        """Whether writes made *during* a harvest are in this one or the next. If not, the VM must be paused
        for it."""

    @property
    def by_content(self) -> bool:
        """Whether pages are found by comparing contents. If so, they must be copied before the VM runs on
        (or be taken from the tracker's shadow): a page changed and changed back meanwhile is not reported
        again."""

    def start(self) -> None:
        """Track from now on, with no page dirty. TrackerError or Unsupported, with the reason; nothing is
        then tracked."""

    def harvest(self, bitmaps: Sequence[Buffer]) -> int:
        """Move the dirty pages out: sets their bits (clears none) and returns how many there were. From now
        on they are the caller's, who either delivers them or gives them back. TrackerError when sight of
        the memory was lost: it must then be stopped, started, and all memory copied."""

    def give_back(self, bitmaps: Sequence[Buffer]) -> None:
        """Report these pages again at the next harvest: their delivery failed."""

    def stop(self) -> None:
        """Track no more. Harmless when not started."""


@runtime_checkable
class VirtualMachine(Protocol):
    """What a program must give to be protected. Its methods are called from a session's thread, never two
    at once."""

    memory: GuestMemory
    """The RAM blocks; fixed while a session runs."""

    @abstractmethod
    def pause(self) -> None:
        """Return once nothing writes to memory or device state any more: no CPU, no device, no thread.
        Pausing a paused VM does nothing. A writer that runs on makes checkpoints that mix two moments; no
        tracker can undo that."""

    @abstractmethod
    def resume(self) -> None:
        """Run on. Resuming a running VM does nothing."""

    @abstractmethod
    def save_state(self) -> bytes | bytearray | memoryview:
        """Everything beside memory that the VM needs to run on; called while paused. It may not change
        memory or state. If it raises, the checkpoint is given up and the VM is resumed."""

    @abstractmethod
    def load_state(self, state: memoryview) -> None:
        """Take over what ``save_state`` returned, once memory is in place; called while paused. It should
        check ``state`` before it changes anything, and raise ValueError when it does not fit."""


@runtime_checkable
class Throttled(Protocol):
    """A VM that can be slowed down, so that a migration whose memory is written faster than it is sent
    still ends."""

    def throttle(self, percent: int) -> None:
        """Stand still for ``percent`` of the time, 0 to 99."""


@runtime_checkable
class EpochSink(Protocol):
    """A part of what a secondary keeps of each checkpoint: RAM, a disk's writes, a store.

    Only boundaries come here: how the part itself arrives, in pages or in blocks, is the sink's own matter. One decision
    commits a checkpoint for all sinks at once (:class:`colo.epoch.last_committed.LastCommitted`); each is told of it then.
    """

    def prepare(self, number: int) -> None:
        """All of checkpoint ``number`` is here: check it, and see to the storage that committing it takes. Refuses by
        raising; the checkpoint is then dropped, and what is committed is as it was."""

    def commit(self, number: int) -> None:
        """Checkpoint ``number`` is the committed one. It may not be refused; told twice, it is the same."""

    def drop(self, number: int) -> None:
        """Forget what there is of checkpoint ``number``, unless it is committed. Any number of times."""

    def recover(self) -> None:
        """The committed checkpoint is one that an earlier process decided on: have what outlived it where it belongs."""


class SteppedMachine(VirtualMachine):
    """A VM in this process that runs by calling :meth:`step` over and over on a thread of its own.

    A subclass gives ``step``, ``save_state`` and ``load_state``. The machine is made paused; the first
    :meth:`resume` starts it.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.failure: BaseException | None = None
        """What a step raised; the machine stands still since then, and :meth:`resume` raises it on."""
        self._turn = threading.Condition()
        self._wanted = False
        self._stepping = False
        self._closed = False
        self._throttle_percent = 0
        self._thread: threading.Thread | None = None

    @abstractmethod
    def step(self) -> bool | None:
        """Run a little, at most a few milliseconds (it bounds how soon a pause is reached). Return False to
        halt."""

    def pause(self) -> None:
        with self._turn:
            self._wanted = False
            if threading.current_thread() is not self._thread:
                self._turn.wait_for(lambda: not self._stepping)

    def resume(self) -> None:
        with self._turn:
            if self.failure is not None:
                raise RuntimeError("the machine stopped: a step raised") from self.failure
            if self._closed:
                raise RuntimeError("the machine is closed")
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
                self._thread.start()
            self._turn.notify_all()

    @property
    def running(self) -> bool:
        """Whether it is to step on: resumed, not halted, not failed."""
        return self._wanted

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Paused inside, as it was before outside."""
        was_running = self._wanted
        self.pause()
        try:
            yield
        finally:
            if was_running:
                self.resume()

    def throttle(self, percent: int) -> None:
        if not 0 <= percent <= 99:
            raise ValueError(f"throttle by {percent} %: 0 to 99")
        self._throttle_percent = percent

    def close(self) -> None:
        """Stop for good, and end the thread."""
        with self._turn:
            self._closed = True
            self._wanted = False
            self._turn.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._turn:
                self._stepping = False
                self._turn.notify_all()
                self._turn.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                self._stepping = True
            began = time.monotonic()
            try:
                goes_on = self.step() is not False
            except BaseException as error:
                self.failure = error
                goes_on = False
            with self._turn:
                if not goes_on:
                    self._wanted = False
                percent = self._throttle_percent
                if percent and self._wanted:
                    # Standing still is not stepping: a pause need not wait for it, and ends it.
                    self._stepping = False
                    self._turn.notify_all()
                    idle_s = (time.monotonic() - began) * percent / (100 - percent)
                    self._turn.wait_for(lambda: not self._wanted or self._closed, timeout=idle_s)
