"""The report of a run: plots that are readable at a glance, and all figures in a table."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.figures import Figure, Run, bar_text, number, verdict

OURS, LIMIT, MISSED = "#2266aa", "#bbbbbb", "#cc3311"
PARTS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")


def write_report(run: Run, folder: Path) -> Path:
    """Write ``index.html`` and its plots (SVG) into ``folder``; returns the page."""
    pyplot.rcParams.update({
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "colo",
        "figure.constrained_layout.use": True,
    })
    plots = [
        ("bars.svg", "How the figures stand to their bars", plot_bars(run.figures)),
        ("limits.svg", "How near to the limit measured in the same run", plot_limits(run.figures)),
        ("pauses.svg", "Pauses of the primary's VM: all of them", plot_pauses(run.figures)),
        ("parts.svg", "What takeovers and checkpoints are made of", plot_parts(run.figures)),
        ("memory.svg", "The secondary's memory", plot_memory(run.figures)),
    ]
    shown = []
    for name, title, canvas in plots:
        if canvas is not None:
            canvas.savefig(folder / name, metadata={"Date": None})
            pyplot.close(canvas)
            shown.append((name, title))
    page = folder / "index.html"
    page.write_text(_page(run, shown))
    return page


def plot_bars(figures: Iterable[Figure]) -> Canvas | None:
    """One line a bar, on a scale where 1 is the bar and less is better."""
    barred = [f for f in figures if f.holds is not None and f.judged is not None and f.bar]
    if not barred:
        return None
    canvas, axes = _canvas(len(barred))
    used = [_used(f) for f in barred]
    axes.barh([_label(f) for f in barred], [min(u, 2.0) for u in used], color=[OURS if f.holds else MISSED for f in barred])
    for row, (figure, share) in enumerate(zip(barred, used, strict=True)):
        axes.text(min(share, 2.0) + 0.02, row, f"{number(figure.judged)}  (bar {bar_text(figure)})", va="center")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0, 2.9)
    axes.set_xticks([0, 0.5, 1, 1.5, 2])
    axes.set_xlabel("1 = the bar; shorter is better")
    axes.invert_yaxis()
    return canvas


def _used(figure: Figure) -> float:
    assert figure.judged is not None
    assert figure.bar
    share = figure.judged / figure.bar
    if figure.better == "lower":
        return max(share, 0.0)
    return 1 / share if share > 0 else 2.0


def plot_limits(figures: Iterable[Figure]) -> Canvas | None:
    """Rates against the limit of the same run."""
    limited = [f for f in figures if f.ratio is not None and f.better == "higher"]
    if not limited:
        return None
    canvas, axes = _canvas(len(limited))
    axes.barh([_label(f) for f in limited], [min(f.ratio or 0, 2) for f in limited], color=OURS)
    for row, figure in enumerate(limited):
        axes.text(
            min(figure.ratio or 0, 2) + 0.02, row,
            f"{number(figure.ratio)} × {figure.limit_name} ({number(figure.value)} of {number(figure.limit)} {figure.unit})", va="center")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0, 4)
    axes.set_xticks([0, 0.5, 1, 1.5, 2])
    axes.set_xlabel("1 = the limit; longer is better")
    axes.invert_yaxis()
    return canvas


def plot_pauses(figures: Iterable[Figure]) -> Canvas | None:
    """Share of the pauses that were no longer than so many milliseconds."""
    pauses = [f for f in figures if f.question == "pause" and f.limit_samples]
    if not pauses:
        return None
    canvas, panels = pyplot.subplots(1, len(pauses), figsize=(5.5 * len(pauses), 3.6), squeeze=False)
    for axes, figure in zip(panels[0], pauses, strict=True):
        for samples, color, label in ((figure.samples, OURS, "colo"), (figure.limit_samples, "#777777", "QEMU's own secondary")):
            axes.ecdf(samples, color=color, linewidth=2.5, label=f"{label}, p50 {number(sorted(samples)[len(samples) // 2])} ms")
        if figure.bar and figure.bar_on == "value":
            axes.axvline(figure.bar, color=MISSED, linestyle=":", label=f"bar {number(figure.bar)} ms")
        axes.set_xscale("log")
        axes.set_title(figure.name.partition(", ")[2])
        axes.set_xlabel("pause, ms (log scale)")
        axes.set_ylabel("share of the pauses")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    return canvas


def plot_parts(figures: Iterable[Figure]) -> Canvas | None:
    """Stacked milliseconds."""
    made = [f for f in figures if f.parts and f.unit == "ms"]
    if not made:
        return None
    groups = [g for g in ([f for f in made if f.question == q] for q in ("takeover", "pause", "checkpoint", "primary")) if g]
    if not groups:
        return None
    canvas, panels = pyplot.subplots(
        len(groups), 1, figsize=(11, sum(1.1 + 0.42 * len(g) for g in groups)), squeeze=False,
        height_ratios=[1.1 + 0.42 * len(g) for g in groups])
    for axes, group in zip(panels[:, 0], groups, strict=True):
        names = list(group[0].parts)
        for row, figure in enumerate(group):
            total = sum(figure.parts.values()) or 1.0
            left = 0.0
            for nth, name in enumerate(names):
                share = figure.parts.get(name, 0.0) / total
                axes.barh(row, share, left=left, color=PARTS[nth % len(PARTS)], label=name if row == 0 else None)
                if share > 0.06:
                    axes.text(left + share / 2, row, number(figure.parts[name]), ha="center", va="center", fontsize=8)
                left += share
            axes.text(1.01, row, f"{number(figure.value)} ms", va="center")
        axes.set_yticks(range(len(group)), [_label(f) for f in group])
        axes.set_xlim(0, 1.12)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.invert_yaxis()
        axes.legend(ncols=len(names), frameon=False, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8)
    return canvas


def plot_memory(figures: Iterable[Figure]) -> Canvas | None:
    """What was taken over the checkpoints, and what is allowed."""
    figure = next((f for f in figures if f.question == "memory" and f.samples), None)
    if figure is None:
        return None
    canvas, axes = pyplot.subplots(figsize=(8, 3.2))
    axes.plot(figure.samples, color=OURS, linewidth=2.5, label="anonymous memory + image storage (or RSS, if more)")
    image, staged = figure.parts["RAM image"], figure.parts["largest checkpoint"]
    axes.axhline(image, color="#777777", label="RAM image")
    axes.axhline(image + staged + 100, color=MISSED, linestyle=":", label="allowed: + largest checkpoint + 100 MiB")
    axes.set_ylim(0, (image + staged + 100) * 1.1)
    axes.set_ylabel("MiB")
    axes.set_xlabel("time")
    axes.set_xticks([])
    axes.legend(frameon=False, fontsize=8)
    return canvas


def _label(figure: Figure) -> str:
    return f"{figure.question}: {figure.name}"


def _canvas(rows: int) -> tuple[Canvas, Axes]:
    return pyplot.subplots(figsize=(13, 0.9 + 0.34 * rows))


def _page(run: Run, plots: list[tuple[str, str]]) -> str:
    barred = [f for f in run.figures if f.holds is not None]
    held = sum(1 for f in barred if f.holds)
    machine = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in run.machine.items())
    rows = "".join(
        f'<tr class="{verdict(f)}"><td>{html.escape(f.question)}</td><td>{html.escape(f.name)}</td>'
        f"<td class=n>{number(f.value)} {html.escape(f.unit)}</td>"
        f"<td>{f'{number(f.limit)} {html.escape(f.unit)} ({html.escape(f.limit_name)})' if f.limit is not None else ''}</td>"
        f"<td class=n>{number(f.ratio) if f.ratio is not None else ''}</td><td>{bar_text(f)}</td><td>{verdict(f)}</td></tr>"
        for f in run.figures
    )
    skipped = "".join(f"<li>{html.escape(q)}: {html.escape(why)}</li>" for q, why in run.skipped.items())
    images = "".join(f'<h2>{html.escape(title)}</h2><img src="{name}" alt="{html.escape(title)}">' for name, title in plots)
    return f"""<!doctype html><meta charset="utf-8"><title>colo benchmarks</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }}
img {{ max-width: 100% }} td, th {{ padding: .15em .7em .15em 0; text-align: left; vertical-align: top }}
.n {{ text-align: right }} .MISSED td {{ color: #c31; font-weight: bold }} .holds td:last-child {{ color: #171 }}
</style>
<h1>colo benchmarks{" (quick)" if run.quick else ""}</h1>
<p><b>{held} of {len(barred)} bars hold.</b> Medians of paired rounds; every limit was measured in the same run.</p>
{f"<p>Not measured:</p><ul>{skipped}</ul>" if skipped else ""}
{images}
<h2>All figures</h2><table><tr><th>question<th>figure<th>measured<th>limit in the same run<th>ratio<th>bar<th></tr>{rows}</table>
<h2>Machine</h2><table>{machine}</table>
"""
