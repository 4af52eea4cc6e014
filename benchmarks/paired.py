"""Paired rounds: on a machine that others use too, ratios of neighbours hold where rates do not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """How long ``work`` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def paired(
    works: Mapping[str, Work], rounds: int, *, before: Mapping[str, Work] | None = None, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each work, in ``rounds`` that run them one after another, in turning order.

    ``before`` has, by the same names, what puts things back as they must be before that work (not timed).
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for round_ in range(-warm_up, rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            if before and name in before:
                before[name]()
            duration = seconds(works[name])
            if round_ >= 0:
                taken[name].append(duration)
    return taken


def rate_ratio(limit: Sequence[float], measured: Sequence[float]) -> float:
    """Median over the pairs of how much of the limit's rate was reached, from the seconds of both."""
    return statistics.median(a / b for a, b in zip(limit, measured, strict=True))
