"""QEMU's events, and the queue of those that somebody waits for."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from colo.qemu.qmp.errors import QmpLost, QmpTimeout

EVENTS_KEPT = 4096
"""Events that wait to be taken from a subscription; of more, the oldest are dropped."""


@dataclass(frozen=True)
class QmpEvent:
    """One event. ``timestamp_us`` is QEMU's clock (since the epoch), ``arrived_ns`` our monotonic clock."""

    name: str
    data: Mapping[str, Any]
    timestamp_us: int
    arrived_ns: int = field(compare=False)

    @property
    def timestamp_ms(self) -> float:
        """QEMU's own timestamp in milliseconds since the epoch."""
        return self.timestamp_us / 1000


class EventSubscription:
    """A queue of events from the moment it was made. Iterating ends when the connection does."""

    def __init__(
        self, names: frozenset[str], *, lost_error: Callable[[str], QmpLost], end: Callable[[EventSubscription], None]
    ) -> None:
        self.names = names
        self._lost_error = lost_error
        self._end = end
        self._queue: queue.SimpleQueue[QmpEvent | None] = queue.SimpleQueue()

    def put(self, event: QmpEvent | None) -> None:
        """One more event, if it is of those; None: the connection has ended."""
        if event is None or not self.names or event.name in self.names:
            if self._queue.qsize() >= EVENTS_KEPT:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()
            self._queue.put(event)

    def get(self, timeout_s: float | None = None) -> QmpEvent:
        """The next event.

        Raises QmpTimeout when none came in ``timeout_s`` seconds (None: waits for ever).
        Raises QmpLost when the connection ended, and all events before that were taken.
        """
        try:
            event = self._queue.get(timeout=None if timeout_s is None else max(0.0, timeout_s))
        except queue.Empty:
            wanted = ", ".join(sorted(self.names)) or "any"
            raise QmpTimeout(f"no event ({wanted}) from QEMU within {timeout_s:.3f} s") from None
        if event is None:
            self._queue.put(None)
            raise self._lost_error("while waiting for an event")
        return event

    def drain(self) -> list[QmpEvent]:
        """All events that have arrived and were not taken yet; never waits."""
        events: list[QmpEvent] = []
        while True:
            try:
                event = self._queue.get_nowait()
            except queue.Empty:
                return events
            if event is None:
                self._queue.put(None)
                return events
            events.append(event)

    def __iter__(self) -> Iterator[QmpEvent]:
        while True:
            try:
                yield self.get()
            except QmpLost:
                return

    def close(self) -> None:
        """Take no more events. Idempotent."""
        self._end(self)

    def __enter__(self) -> EventSubscription:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
