"""A measured figure, the limit measured beside it, and the bar it is held against; runs of them in files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

FORMAT = 1


@dataclass(frozen=True)
class Figure:
    """One figure of one question.

    ``limit`` is what ``limit_name`` reached in the same run, in the same unit, and ``ratio`` is value over limit (by
    medians of paired rounds where there were pairs). The bar, if there is one, is for the ``ratio`` or the ``value``.
    """

    question: str
    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"] = "lower"
    limit: float | None = None
    limit_name: str = ""
    ratio: float | None = None
    bar: float | None = None
    bar_on: Literal["value", "ratio"] = "value"
    samples: Sequence[float] = ()
    limit_samples: Sequence[float] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the value is made of, in its unit."""

    @property
    def judged(self) -> float | None:
        """What the bar is held against."""
        return self.value if self.bar_on == "value" else self.ratio

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None without one."""
        if self.bar is None or self.judged is None:
            return None
        return self.judged <= self.bar if self.better == "lower" else self.judged >= self.bar

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        samples = {name: tuple(data.get(name, ())) for name in ("samples", "limit_samples")}
        return cls(**{**data, **samples})


@dataclass
class Run:
    """All figures of one run of the benchmarks, and what was not measured and why."""

    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Question -> the machine's condition after it."""
    quick: bool = False

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ValueError for a file that is not a run."""
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a saved run of these benchmarks (format {FORMAT})")
        figures = [Figure.from_dict(figure) for figure in data.pop("figures")]
        return cls(figures=figures, **data)


def number(value: float | None) -> str:
    """Three figures that matter."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def bar_text(figure: Figure) -> str:
    """``ratio ≤ 0.6``; empty without a bar."""
    if figure.bar is None:
        return ""
    sign = "≤" if figure.better == "lower" else "≥"
    return f"{'ratio ' if figure.bar_on == 'ratio' else ''}{sign} {number(figure.bar)}"


def verdict(figure: Figure) -> str:
    """``holds``, ``MISSED`` or nothing."""
    return {True: "holds", False: "MISSED", None: ""}[figure.holds]


def show(figures: Iterable[Figure], console: Console | None = None) -> None:
    """Print figures as a table."""
    console = console or Console(highlight=False, width=None if Console().is_terminal else 150)
    table = Table(box=None, pad_edge=False)
    for heading, justify in (
        ("question", "left"), ("figure", "left"), ("measured", "right"), ("limit in the same run", "left"),
        ("ratio", "right"), ("bar", "left"), ("", "left"),
    ):
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    before = ""
    for figure in figures:
        limit = f"{number(figure.limit)} {figure.unit} ({escape(figure.limit_name)})" if figure.limit is not None else ""
        style = {True: "green", False: "bold red", None: ""}[figure.holds]
        table.add_row(
            figure.question if figure.question != before else "", escape(figure.name),
            f"{number(figure.value)} {figure.unit}", limit,
            number(figure.ratio) if figure.ratio is not None else "", bar_text(figure), verdict(figure), style=style,
        )
        before = figure.question
    console.print(table)
