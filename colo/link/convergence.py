"""When a migration may switch over, and when the VM has to be slowed down for it."""

from __future__ import annotations

from dataclasses import dataclass

from colo.wire import TARGET_PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Round:
    """One round over RAM: what it sent, how long that took until the destination had it, and what is dirty after it."""

    number: int
    """1 is the one over all of RAM."""
    pages: int
    wire_bytes: int
    seconds: float
    dirty_pages: int
    dirty_seconds: float
    """In which the dirty pages came up: from the harvest before to the one after."""

    @property
    def bandwidth_bytes_per_s(self) -> float:
        return self.wire_bytes / self.seconds if self.seconds > 0 else float("inf")

    @property
    def pages_per_s(self) -> float:
        return self.pages / self.seconds if self.seconds > 0 else float("inf")

    @property
    def dirty_pages_per_s(self) -> float:
        return self.dirty_pages / self.dirty_seconds if self.dirty_seconds > 0 else 0.0

    @property
    def expected_downtime_ms(self) -> float:
        """How long the dirty pages would take with the VM standing still.

        After the first round: whole pages at the bandwidth that was measured (QEMU: migration_update_counters), as that
        round's mix of pages, zero pages among them, says little of the dirty ones. After a later one: at its own rate of
        pages, which knows what zero pages and deltas save.
        """
        if self.dirty_pages == 0:
            return 0.0
        if self.pages == 0 or self.wire_bytes == 0:
            return float("inf")
        whole = self.dirty_pages * TARGET_PAGE_BYTES / self.bandwidth_bytes_per_s
        return 1000 * (whole if self.number == 1 else min(whole, self.dirty_pages / self.pages_per_s))

    @property
    def eta_s(self) -> float | None:
        """Until all is sent, when neither rate changes; None: never."""
        bandwidth = self.bandwidth_bytes_per_s
        left = bandwidth - self.dirty_pages_per_s * TARGET_PAGE_BYTES
        return self.dirty_pages * TARGET_PAGE_BYTES / left if left > 0 else None


class AutoConverge:
    """Slows the VM down step by step while it dirties too much of what is sent.

    As QEMU's migration/ram.c (migration_trigger_throttle): in two rounds more than ``trigger_percent`` of the bytes sent
    were dirtied again, then one step. Raises ValueError for figures that cannot be.
    """

    def __init__(
        self, *, initial_percent: int = 20, increment_percent: int = 10, max_percent: int = 99, trigger_percent: int = 50
    ) -> None:
        if not (1 <= initial_percent <= max_percent <= 99 and 1 <= increment_percent <= 99 and 1 <= trigger_percent <= 100):
            raise ValueError("throttling is by 1 to 99 %, the first step is at most the last, the trigger 1 to 100 %")
        self._initial = initial_percent
        self._increment = increment_percent
        self._max = max_percent
        self._trigger = trigger_percent
        self._high = 0
        self.percent = 0

    def after(self, done: Round) -> bool:
        """A round was not the last one; returns whether :attr:`percent` has changed."""
        if done.dirty_pages * TARGET_PAGE_BYTES * 100 <= done.wire_bytes * self._trigger:
            return False
        self._high += 1
        if self._high < 2:
            return False
        self._high = 0
        before = self.percent
        self.percent = min(self._max, before + self._increment) if before else self._initial
        return self.percent != before
