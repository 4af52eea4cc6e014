"""Output commit: what a protected VM says to the world waits until the checkpoint that covers it is safe."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from colo.errors import LimitExceeded

LIMIT_BYTES = 64 << 20


class Outbox:
    """Holds back a VM's output: packets, lines, replies. ::

        outbox = Outbox(lambda packet: sock.sendto(packet, address))
        outbox.put(packet)              # in the VM, from any thread

    What was put before the VM stood still for checkpoint n is delivered, in order, when n is known to be committed, or
    when this side has won the right to run alone; it is dropped when the other side took over (which sends it again:
    it runs on from a checkpoint before it). Delivery happens on the session's thread; when ``deliver`` raises, the item
    and those behind it stay, and are tried again at the next release.

    Without a session (before the first, after the last) items wait: :attr:`bypass` delivers them at once.
    """

    def __init__(self, deliver: Callable[[Any], None], *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.released = 0
        """Items delivered so far."""
        self.dropped = 0
        self.on_pressure: Callable[[], None] = lambda: None
        """Called when half of the limit is held: a checkpoint is wanted soon."""
        self._deliver = deliver
        self._lock = threading.Lock()
        self._delivery = threading.RLock()
        self._items: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._sealed = 0
        self._bypass = False
        self._closed = False

    def put(self, item: Any, length_bytes: int | None = None) -> None:
        """Hold ``item`` back. ``length_bytes`` defaults to its ``len``, or 1. Raises LimitExceeded over the limit."""
        size = length_bytes if length_bytes is not None else len(item) if hasattr(item, "__len__") else 1
        with self._lock:
            if self._closed:
                self.dropped += 1
                return
            if self._bytes + size > self.limit_bytes:
                raise LimitExceeded(
                    f"the outbox holds {self._bytes} bytes, and {size} more pass its limit of {self.limit_bytes}: "
                    "no checkpoint was committed for too long, or the interval is too long for this output",
                    where="outbox", value=self._bytes + size,
                )
            pressed = self._bytes <= self.limit_bytes // 2 < self._bytes + size
            self._items.append((item, size))
            self._bytes += size
            bypass = self._bypass
        if bypass:
            self._deliver_all()
        elif pressed:
            self.on_pressure()

    @property
    def held(self) -> int:
        """Items that wait."""
        return len(self._items)

    # -- as a participant of checkpoints

    name = "the outbox"

    def seal(self, number: int) -> None:
        """What waits now is covered by the checkpoint that is being made. From the first one on there is one who could take
        over: nothing leaves at once any more."""
        with self._lock:
            self._bypass = False
            self._sealed = len(self._items)

    def release(self, number: int) -> None:
        """The checkpoint is committed: deliver what it covers. Raises what ``deliver`` raises; what was not delivered then
        leaves with the next checkpoint."""
        with self._delivery:
            while self._sealed:
                self._deliver_first()

    def take_back(self, number: int) -> None:
        """That checkpoint did not come to be: its items wait for the next."""
        with self._lock:
            self._sealed = 0

    def end(self, won: bool) -> None:
        """``won``: deliver everything, and what comes from now on at once. Else the other side took over: nothing leaves from
        here any more."""
        if won:
            self.bypass(True)
            return
        with self._lock:
            self.dropped += len(self._items)
            self._items.clear()
            self._bytes = self._sealed = 0
            self._closed = True

    def bypass(self, on: bool) -> None:
        """While on, items are delivered as they come: nobody could take over from a checkpoint before them."""
        self._bypass = on
        if on:
            self._deliver_all()

    def _deliver_all(self) -> None:
        with self._delivery:
            while self._items:
                self._deliver_first()

    def _deliver_first(self) -> None:
        item, size = self._items[0]
        self._deliver(item)
        with self._lock:
            if self._items:  # the end may have come between
                self._items.popleft()
                self._bytes -= size
            self._sealed = max(0, self._sealed - 1)
            self.released += 1
