"""How fast a migration may send: batches, and how long to wait after each."""

from __future__ import annotations

import time
from collections.abc import Callable

BATCH_MAX_BYTES = 1 << 20
BATCH_MIN_BYTES = 4 << 10
BATCH_S = 0.05
"""A batch is what the limit lets out in this time: a round is an even flow, not a burst and a long sleep."""


class Pacer:
    """Holds a flow of batches to ``limit_bytes_per_s`` (0: no limit), which may be changed at any time, from any thread.

    Time that was not used is not saved up: after a slow stretch no burst follows.
    """

    def __init__(self, limit_bytes_per_s: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = 0
        self._due_s = 0.0
        self._sent = (0, 0.0)
        """Bytes of the last batch, and when it began."""
        self.limit_bytes_per_s = limit_bytes_per_s or 0

    @property
    def limit_bytes_per_s(self) -> int:
        return self._limit

    @limit_bytes_per_s.setter
    def limit_bytes_per_s(self, value: int | None) -> None:
        if value is not None and value < 0:
            raise ValueError(f"a bandwidth of {value} bytes/s: at least 0, which is no limit")
        self._limit = value or 0

    @property
    def batch_bytes(self) -> int:
        """How much to send before :meth:`wait_s` is asked again."""
        if not self._limit:
            return BATCH_MAX_BYTES
        return max(BATCH_MIN_BYTES, min(BATCH_MAX_BYTES, int(self._limit * BATCH_S)))

    def begin(self) -> None:
        """A batch begins now."""
        self._sent = (0, max(self._due_s, self._clock()))

    def sent(self, size_bytes: int) -> None:
        """The batch had so many bytes."""
        self._sent = (size_bytes, self._sent[1])

    def wait_s(self) -> float:
        """How long the next batch has to wait, at the limit as it is now; 0: not at all."""
        size_bytes, began_s = self._sent
        limit = self._limit
        self._due_s = began_s + size_bytes / limit if limit else began_s
        return max(0.0, self._due_s - self._clock())
