"""Charts as SVG elements: well-formed XML, colours by CSS class, every text escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from colo.text import printable

TOP, BOTTOM = 26, 34
LABEL_GAP = 14
"""Between the base lines of two texts."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a chart has room for: one that is only made smaller has letters that nobody can read."""

    width: int
    left: int
    right: int
    ticks: int
    """About how many marks the axis of time has."""
    beside: bool
    """Names of levels lie beside the chart, and not within it."""


WIDE = Layout(960, 64, 108, 8, beside=True)
NARROW = Layout(400, 48, 12, 4, beside=False)


def both(draw: Callable[[Layout], str]) -> str:
    """A chart for a page of ordinary width, and for a narrow one: the style shows the one that fits."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def escape(text: str) -> str:
    """Text for XML, in elements and attributes."""
    return html.escape(printable(text), quote=True)


def shown(value: float) -> str:
    """A number on an axis."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000_000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.6g}"


def steps(top: float, count: int = 5) -> list[float]:
    """From 0 on, about ``count`` round numbers, the last at ``top`` or above it."""
    if not (top > 0 and math.isfinite(top)):
        top = 1.0
    rough = top / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(top / step - 1e-9) + 1)]


def text(x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> str:
    """One line of text."""
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def open_svg(width: float, height: float, title: str) -> str:
    """An element as wide as its place, with a title for who cannot see it."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
            f'aria-label="{escape(title)}">')


class Plot:
    """Values over time: x from 0 to ``until_s`` seconds, y from 0 to ``top`` or a round number above it."""

    def __init__(
        self, layout: Layout, title: str, unit: str, until_s: float, top: float, *, height: int = 220,
    ) -> None:
        self.layout = layout
        self.height = height
        self._title = title
        self._until_s = until_s if until_s > 0 else 1.0
        self._marks = steps(top)
        self._top = self._marks[-1]
        self._unit = unit
        self._parts: list[str] = []
        self._labels: list[tuple[float, str]] = []
        self._corner: list[str] = []

    def x(self, t_s: float) -> float:
        """Where a time lies."""
        at = self.layout
        return at.left + max(0.0, min(1.0, t_s / self._until_s)) * (at.width - at.left - at.right)

    @property
    def _end(self) -> int:
        """Where the chart ends on the right."""
        return self.layout.width - self.layout.right

    def y(self, value: float) -> float:
        """Where a value lies; greater ones than the axis has lie at its end."""
        return self.height - BOTTOM - min(1.0, max(0.0, value / self._top)) * (self.height - TOP - BOTTOM)

    def line(self, points: Sequence[tuple[float, float | None]], style: str) -> None:
        """Times and values, joined; None leaves a gap."""
        path, pen = [], "M"
        for t_s, value in points:
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{self.x(t_s):.1f} {self.y(value):.1f}")
            pen = "L"
        if path:
            self._parts.append(f'<path class="line {style}" d="{"".join(path)}"/>')

    def dots(self, points: Iterable[tuple[float, float]], style: str) -> None:
        """Times and values, each for itself; those beyond the axis at its end, as crosses."""
        inside, beyond = [], []
        for t_s, value in points:
            x, y = self.x(t_s), self.y(value)
            if value > self._top:
                beyond.append(f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6")
            else:
                inside.append(f"M{x:.1f} {y:.1f}h0")
        if inside:
            self._parts.append(f'<path class="dots {style}" d="{"".join(inside)}"/>')
        if beyond:
            self._parts.append(f'<path class="line warn" d="{"".join(beyond)}"/>')

    def ranges(self, points: Iterable[tuple[float, float, float]], style: str) -> None:
        """Times with least and greatest value."""
        path = [f"M{self.x(t_s):.1f} {self.y(low):.1f}V{self.y(high):.1f}" for t_s, low, high in points]
        if path:
            self._parts.append(f'<path class="range {style}" d="{"".join(path)}"/>')

    def stack(self, spans: Sequence[tuple[float, float]], layers: Sequence[tuple[str, str, Sequence[float]]]) -> None:
        """Layers (name, style, a value for each span of time), one on the other."""
        base = [0.0] * len(spans)
        for name, style, values in layers:
            above = [b + v for b, v in zip(base, values, strict=True)]
            if any(values):
                self._parts.append(
                    f'<path class="fill {style}" d="{self._band(spans, base, above)}"><title>{escape(name)}</title></path>')
            base = above

    def _band(self, spans: Sequence[tuple[float, float]], low: Sequence[float], high: Sequence[float]) -> str:
        there = [f"{self.x(b):.1f} {self.y(h):.1f}H{self.x(e):.1f}" for (b, e), h in zip(spans, high, strict=True)]
        back = [f"{self.x(e):.1f} {self.y(v):.1f}H{self.x(b):.1f}" for (b, e), v in zip(spans, low, strict=True)]
        return f"M{'L'.join([*there, *reversed(back)])}Z"

    def level(self, value: float, words: str, style: str = "") -> None:
        """A horizontal line with a name."""
        y = self.y(value)
        self._parts.append(f'<path class="level {style}" d="M{self.layout.left} {y:.1f}H{self._end}"/>')
        self._labels.append((y, words))

    def moment(self, t_s: float, words: str, style: str = "warn") -> None:
        """A vertical line with a name."""
        x = self.x(t_s)
        self._parts.append(f'<path class="level {style}" d="M{x:.1f} {TOP - 6}V{self.height - BOTTOM}"/>')
        anchor = "end" if x > self.layout.width / 2 else "start"
        self._corner.append(text(x, TOP - 10, words, anchor=anchor, style=style))

    def render(self) -> str:
        """The element."""
        left, beside = self.layout.left, self.layout.beside
        parts = [open_svg(self.layout.width, self.height, self._title)]
        for mark in self._marks:
            y = self.y(mark)
            parts.append(f'<path class="grid" d="M{left} {y:.1f}H{self._end}"/>')
            parts.append(text(left - 8, y + 4, shown(mark), anchor="end"))
        parts.append(text(left - 8, TOP - 12, self._unit, anchor="end", style="unit"))
        parts += time_axis(self.layout, self._until_s, self.x, self.height - BOTTOM)
        parts += self._parts
        at = math.inf
        for y, words in sorted(self._labels, reverse=True):
            at = min(y + 4 if beside else y - 4, at - LABEL_GAP)
            parts.append(text(
                self._end + 6 if beside else self._end - 2, at, words, anchor="start" if beside else "end", style="halo"))
        return "".join([*parts, *self._corner, "</svg>"])


def time_axis(layout: Layout, until_s: float, place: Callable[[float], float], y: float) -> list[str]:
    """The axis of seconds below a chart; ``place`` gives the x of a time."""
    end = layout.width - layout.right
    parts = [f'<path class="axis" d="M{layout.left} {y:.1f}H{end}"/>']
    for mark in steps(until_s, layout.ticks):
        if mark <= until_s * 1.0001:
            x = place(mark)
            parts.append(f'<path class="axis" d="M{x:.1f} {y:.1f}v4"/>')
            parts.append(text(x, y + 18, f"{shown(mark)} s", anchor="end" if x > end - 30 else "middle"))
    return parts


def bar(layout: Layout, title: str, parts: Sequence[tuple[str, str, float]]) -> str:
    """One bar of parts (name, style, milliseconds) that follow one another."""
    total = sum(value for _, _, value in parts) or 1.0
    scale = (layout.width - 40) / total
    drawn, at = [open_svg(layout.width, 58, title)], 0.0
    for name, style, value in parts:
        words = f"{name} {value:.2f} ms"
        drawn.append(f'<path class="fill {style}" d="M{at * scale:.1f} 4h{value * scale:.1f}v26h-{value * scale:.1f}z">'
                     f"<title>{escape(words)}</title></path>")
        at += value
    for mark in steps(total, layout.ticks - 2 if layout.beside else layout.ticks):
        if mark <= total * 1.0001:
            drawn.append(f'<path class="axis" d="M{mark * scale:.1f} 30v4"/>')
            drawn.append(text(mark * scale, 48, f"{shown(mark)} ms", anchor="middle" if mark else "start"))
    return "".join([*drawn, "</svg>"])


def heat(
    layout: Layout, title: str, rows: Sequence[tuple[float, float, Sequence[float]]], thresholds: Sequence[float],
    blocks: Sequence[tuple[str, float, float]], places: float, marks: Sequence[tuple[float, str]], *, height: int = 360,
) -> str:
    """A map: ``rows`` are (begin, end in seconds, a value for each place), ``thresholds`` where the next shade (class
    ``h0``, ``h1``, …) begins; ``blocks`` (name, first, end) and ``marks`` (at, name) are in places of ``places`` in all."""
    left, width = layout.left, layout.width - layout.left - layout.right
    top, bottom = 44, height - 30
    begin = rows[0][0] if rows else 0.0
    span = (rows[-1][1] - begin if rows else 0.0) or 1.0

    def x(place: float) -> float:
        return left + place / places * width

    def y(t_s: float) -> float:
        return top + (t_s - begin) / span * (bottom - top)

    parts = [open_svg(layout.width, height, title), f'<path class="ground" d="M{left} {top}h{width}V{bottom}h-{width}z"/>']
    paths: list[list[str]] = [[] for _ in thresholds]
    for begin_s, end_s, values in rows:
        y0, y1 = y(begin_s), y(end_s)
        at = 0
        while at < len(values):
            level = _shade(values[at], thresholds)
            end = at + 1
            while end < len(values) and _shade(values[end], thresholds) == level:
                end += 1
            if level >= 0:
                paths[level].append(f"M{x(at):.1f} {y0:.1f}H{x(end):.1f}V{y1:.1f}H{x(at):.1f}z")
            at = end
    parts += [f'<path class="h{n}" d="{"".join(path)}"/>' for n, path in enumerate(paths) if path]
    free, unnamed = 0.0, 0
    for name, first, end_place in blocks:
        x0, x1 = x(first), x(end_place)
        parts.append(f'<path class="border" d="M{x0:.1f} {top - 18}V{bottom}"><title>{escape(name)}</title></path>')
        room = x1 - x0 - 6
        if x0 >= free and room > 14:
            words = name if 7 * len(printable(name)) <= room else printable(name)[: max(1, int(room / 7) - 1)] + "…"
            parts.append(text(x0 + 4, top - 8, words, style="name"))
            free = x0 + 7 * len(words)
        else:
            unnamed += 1
    parts.append(f'<path class="border" d="M{x(places):.1f} {top - 18}V{bottom}"/>')
    if unnamed and layout.beside:
        parts.append(text(x(places) + 6, top - 8, f"and {unnamed} small"))
    for nth, (at_place, words) in enumerate(marks):
        parts.append(f'<path class="axis" d="M{x(at_place):.1f} {bottom}v4"/>')
        if layout.beside or nth % 2 == 0:  # half as wide, and the last not beyond the page
            last = not layout.beside and x(at_place) > left + width - 30
            parts.append(text(x(at_place), bottom + 18, words, anchor="end" if last else "middle"))
    for mark in steps(begin + span, 6):
        if begin <= mark <= begin + span:
            parts.append(f'<path class="axis" d="M{left - 4} {y(mark):.1f}h4"/>')
            parts.append(text(left - 8, y(mark) + 4, f"{shown(mark)} s", anchor="end"))
    return "".join([*parts, "</svg>"])


def _shade(value: float, thresholds: Sequence[float]) -> int:
    """-1: nothing."""
    level = -1
    for threshold in thresholds:
        if value < threshold or value <= 0:
            break
        level += 1
    return level
