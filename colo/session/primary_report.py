"""What is reported of each checkpoint by its primary, and the figures of a session."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from colo.session.statistics import Series


@dataclass(frozen=True, slots=True)
class PrimaryReport:
    """One committed checkpoint as its primary saw it. Times in milliseconds, sizes in bytes.

    ``pause_ms`` is all that the VM stood still: ``stop_ms`` until it did, ``save_ms`` for its state, ``harvest_ms``,
    ``copy_ms`` (0 when sent directly), and, sent directly, everything until it was loaded.
    """

    connection: int
    """0 for the session's first, one more after each re-connection."""
    number: int
    """0 is the first full copy; counting goes on when the same secondary is found again."""
    full_copy: bool
    pause_ms: float
    stop_ms: float
    save_ms: float
    harvest_ms: float
    copy_ms: float
    send_ms: float
    acknowledged_ms: float
    """From all sent to acknowledged."""
    dirty_pages: int
    stream_bytes: int
    device_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class PrimaryStatistics:
    """What the checkpoints of a session came to."""

    def __init__(self) -> None:
        self.last: PrimaryReport | None = None
        self.checkpoints = 0
        self.full_copies = 0
        self.losses = 0
        self.dirty_pages = 0
        self.stream_bytes = 0
        self.pause_ms = Series()
        self.harvest_ms = Series()
        self.acknowledged_ms = Series()

    def add(self, report: PrimaryReport) -> None:
        """Take the report of one committed checkpoint."""
        self.last = report
        self.stream_bytes += report.stream_bytes
        if report.full_copy:
            self.full_copies += 1
            return
        self.checkpoints += 1
        self.dirty_pages += report.dirty_pages
        self.pause_ms.add(report.pause_ms)
        self.harvest_ms.add(report.harvest_ms)
        self.acknowledged_ms.add(report.acknowledged_ms)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "checkpoints": self.checkpoints,
            "full_copies": self.full_copies,
            "losses": self.losses,
            "dirty_pages": self.dirty_pages,
            "stream_bytes": self.stream_bytes,
            "pause_ms": self.pause_ms.as_dict(),
            "harvest_ms": self.harvest_ms.as_dict(),
            "acknowledged_ms": self.acknowledged_ms.as_dict(),
            "last": self.last.as_dict() if self.last else None,
        }


class Pace:
    """When the next checkpoint is due.

    With ``target_pause_ms`` the interval follows the pauses: shorter, as fewer pages are then dirty, when one was longer
    than that, longer when they are well below; between ``interval_min_ms`` and ``interval_ms``.
    """

    def __init__(self, interval_ms: float, *, target_pause_ms: float | None = None, interval_min_ms: float = 1.0) -> None:
        if interval_ms < 0 or interval_min_ms <= 0 or (target_pause_ms is not None and target_pause_ms <= 0):
            raise ValueError("an interval is at least 0 ms, a target pause and a least interval more than 0 ms")
        self._most_ms = interval_ms
        self._least_ms = min(interval_min_ms, interval_ms)
        self._target_ms = target_pause_ms
        self.interval_ms = interval_ms

    def took(self, pause_ms: float) -> None:
        """A checkpoint paused the VM for so long."""
        if self._target_ms is None:
            return
        if pause_ms > self._target_ms:
            factor = max(0.5, self._target_ms / pause_ms)
        else:
            factor = 1.1 if pause_ms < 0.8 * self._target_ms else 1.0
        self.interval_ms = min(self._most_ms, max(self._least_ms, self.interval_ms * factor))
