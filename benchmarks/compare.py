"""Two saved runs side by side."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.figures import Figure, Run, number, verdict

NOTABLE = 0.1


def key(figure: Figure) -> tuple[str, str]:
    return figure.question, figure.name


def change(old: Figure, new: Figure) -> float | None:
    """By how much ``new`` is better (> 0) or worse, as a share: by the ratios to the limits where both have one.

    Ratios were measured beside their limit, so they compare across a machine's moods; bare values do not.
    """
    before, after = (old.ratio, new.ratio) if old.ratio and new.ratio else (old.value, new.value)
    if not before or not after or before < 0 or after < 0:
        return None
    return before / after - 1 if new.better == "lower" else after / before - 1


def show_comparison(old: Run, new: Run, console: Console | None = None) -> list[Figure]:
    """Print both runs' figures; returns those that are notably worse in ``new`` or miss a bar that held."""
    console = console or Console(highlight=False, width=None if Console().is_terminal else 140)
    for name in sorted(old.machine.keys() | new.machine.keys()):
        before, after = old.machine.get(name), new.machine.get(name)
        if before != after and name not in ("load", "temperature_c"):
            console.print(f"[yellow]not the same {escape(name)}:[/] {escape(str(before))} / {escape(str(after))}")
    table = Table(box=None, pad_edge=False)
    for heading in ("question", "figure", "A", "B", "ratio A", "ratio B", "B is", ""):
        table.add_column(heading, justify="left" if heading in ("question", "figure", "") else "right", overflow="fold")
    earlier = {key(figure): figure for figure in old.figures}
    worse = []
    for figure in new.figures:
        before = earlier.pop(key(figure), None)
        if before is None:
            table.add_row(figure.question, escape(figure.name), "–", f"{number(figure.value)} {figure.unit}", "", number(figure.ratio), "new", "")
            continue
        better = change(before, figure)
        lost = before.holds is True and figure.holds is False
        if lost or (better is not None and better < -NOTABLE):
            worse.append(figure)
        word = "" if better is None else "the same" if abs(better) < 0.03 else f"{abs(better):.0%} {'better' if better > 0 else 'worse'}"
        style = "bold red" if lost else "red" if figure in worse else "green" if better and better > NOTABLE else ""
        table.add_row(
            figure.question, escape(figure.name), f"{number(before.value)} {before.unit}", f"{number(figure.value)} {figure.unit}",
            number(before.ratio), number(figure.ratio), word, verdict(figure), style=style)
    for gone in earlier.values():
        table.add_row(gone.question, escape(gone.name), f"{number(gone.value)} {gone.unit}", "–", number(gone.ratio), "", "gone", "")
    console.print(table)
    return worse
