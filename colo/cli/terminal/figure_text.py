"""Figures as one line of text: bars, shades by place, and the names of those places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from colo.text import printable

BARS = "▁▂▃▄▅▆▇█"
SHADES = " ·░▒▓█"


def sparkline(values: Iterable[float | None], width: int) -> str:
    """The last ``width`` values as bars from 0 to their greatest; blank where there is none."""
    last = list(values)[-width:]
    top = max((value for value in last if value is not None), default=0.0)
    return "".join(
        " " if value is None else BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] if top > 0 else BARS[0]
        for value in last)


def resampled(values: Sequence[int], width: int) -> list[float]:
    """Sums over ``width`` equal parts; a value that lies in several is shared among them."""
    if not values:
        return [0.0] * width
    found = []
    for n in range(width):
        begin, end = n * len(values) / width, (n + 1) * len(values) / width
        found.append(sum(
            values[k] * (min(end, k + 1) - max(begin, k)) for k in range(int(begin), min(len(values), int(end) + 1))))
    return found


def heat_strip(places: Sequence[int], width: int) -> str:
    """Counts by place as one line of shades; each shade is about as many times more as the one before."""
    cells = resampled(places, width)
    top = max(cells, default=0.0)
    if top <= 0:
        return " " * width
    most = len(SHADES) - 1
    line = ""
    for cell in cells:
        # Four shades over a factor of a thousand: what is written at all is seen.
        level = 0 if cell <= 0 else most
        share = cell / top
        while level > 1 and share < 0.18:
            level -= 1
            share *= 5.6
        line += SHADES[level]
    return line


def block_line(blocks: Sequence[Mapping[str, Any]], total_pages: int, width: int) -> str:
    """Names of blocks where they begin on a strip of ``width``, as far as they fit."""
    line = [" "] * width
    free = 0
    for block in blocks:
        at = int(block["begin"] * width / max(1, total_pages))
        room = max(1, int(block["pages"] * width / max(1, total_pages)))
        name = "|" + printable(str(block["idstr"]))
        if at < free or len(name) > room:
            continue
        line[at : at + len(name)] = name
        free = at + len(name)
    return "".join(line[:width])
