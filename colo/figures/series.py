"""Figures over a session: kept small, whatever its length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

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
