"""Figures over a session: kept small, whatever its length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from colo.session.checkpoint import CheckpointReport

WINDOW = 10_000
"""Percentiles are over the last so many values."""


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile; 0.0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered) + 0.5) - 1))]


class Series:
    """The last values of one figure."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=WINDOW)
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        self.values.append(value)
        self.count += 1
        self.total += value

    def as_dict(self) -> dict[str, float]:
        values = list(self.values)
        return {
            "count": self.count,
            "p50": round(percentile(values, 50), 3),
            "p99": round(percentile(values, 99), 3),
            "max": round(max(values, default=0.0), 3),
        }


class CheckpointStatistics:
    """What the checkpoints of a session came to."""

    def __init__(self) -> None:
        self.last: CheckpointReport | None = None
        self.checkpoints = 0
        self.stream_bytes = 0
        self.pages = {"zero": 0, "normal": 0, "xbzrle": 0, "compressed": 0}
        self.interval_ms = Series()
        self.held_ms = Series()

    def add(self, report: CheckpointReport) -> None:
        """Take the report of one committed checkpoint."""
        self.last = report
        self.checkpoints += 1
        self.stream_bytes += report.stream_bytes
        for kind in self.pages:
            self.pages[kind] += getattr(report, f"{kind}_pages")
        if report.number:
            self.interval_ms.add(report.interval_ms)
            self.held_ms.add(report.held_ms)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "checkpoints": self.checkpoints,
            "stream_bytes": self.stream_bytes,
            "pages": dict(self.pages),
            "interval_ms": self.interval_ms.as_dict(),
            "held_ms": self.held_ms.as_dict(),
            "last": self.last.as_dict() if self.last else None,
        }
