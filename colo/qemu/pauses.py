"""How long the VM of a QEMU stands still for its checkpoints, by that QEMU's own events."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable

from colo.figures.running_share import RunningShare
from colo.figures.series import percentile
from colo.qemu.qmp import QmpEvent

PAUSES_KEPT = 100_000


class PauseMeter:
    """Pauses of the VM from QEMU's STOP and RESUME events, in milliseconds of QEMU's own clock."""

    def __init__(
        self, on_pause: Callable[[float], None] | None = None, on_notice: Callable[[str], None] | None = None
    ) -> None:
        self.count = 0
        self.pauses_ms: collections.deque[float] = collections.deque(maxlen=PAUSES_KEPT)
        self.stopped_at_us: int | None = None
        """When the VM stopped, if it stands still now."""
        self._changed_ns = time.monotonic_ns()
        self._on_pause = on_pause
        self._on_notice = on_notice
        self._running = RunningShare("give it a longer checkpoint delay")
        self._running.begin(time.time())
        self._lock = threading.Lock()

    @property
    def running_share(self) -> float | None:
        """Which part of the last 5 s the VM ran; None until it was looked at for a second."""
        with self._lock:
            stopped_at_us = self.stopped_at_us
            return self._running.share(
                time.time(), still_since_s=None if stopped_at_us is None else stopped_at_us / 1e6)

    def summary(self) -> dict[str, float] | None:
        """Of the last thousand pauses, in ms; None: there was none."""
        recent = list(self.pauses_ms)[-1000:]
        if not recent:
            return None
        figures = {
            "last": recent[-1], "p50": percentile(recent, 50), "p99": percentile(recent, 99), "max": max(recent)}
        return {"count": self.count} | {name: round(value, 3) for name, value in figures.items()}

    @property
    def standing(self) -> tuple[bool, float]:
        """Whether the VM stands still, and since when it does or runs (``time.monotonic()``)."""
        with self._lock:
            return self.stopped_at_us is not None, self._changed_ns / 1e9

    def event(self, event: QmpEvent) -> None:
        """Take one event; others than STOP and RESUME are passed over."""
        if event.name == "STOP":
            with self._lock:
                self.stopped_at_us, self._changed_ns = event.timestamp_us, event.arrived_ns
        elif event.name == "RESUME" and self.stopped_at_us is not None:
            pause_ms = (event.timestamp_us - self.stopped_at_us) / 1e3
            with self._lock:
                self._running.pause(self.stopped_at_us / 1e6, event.timestamp_us / 1e6)
                self.stopped_at_us, self._changed_ns = None, event.arrived_ns
                warning = self._running.warning(event.timestamp_us / 1e6)
            self.count += 1
            self.pauses_ms.append(pause_ms)
            if self._on_pause is not None:
                self._on_pause(pause_ms)
            if warning is not None and self._on_notice is not None:
                self._on_notice(warning)
