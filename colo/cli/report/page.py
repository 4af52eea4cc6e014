"""The report of a run: ``index.html``, which needs nothing but itself, and ``run.json`` with the figures behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from colo.cli.report import svg
from colo.cli.report.recording import Recording
from colo.cli.report.style import STYLE, STYLE_OF
from colo.cli.report.words import OUTLIER, fate, few, lead, ms, part_means, paused, share, summary, timed, told, top
from colo.errors import StorageError
from colo.figures.kinds import BYTE_KINDS, PAGE_KINDS
from colo.private import PrivateDirectory
from colo.text import UNITS, printable, size
from colo.trace import TAKEOVER_PHASES
from colo.wire import TARGET_PAGE_BYTES

SHADES = 6
SHOWN_NOTES = 60


def prepare(directory: str | os.PathLike[str]) -> PrivateDirectory:
    """Make and open the directory, before a long run is made for a report that has no place. Raises StorageError, also when
    another user could put something in its place (see :mod:`colo.private`)."""
    try:
        place = PrivateDirectory.open(directory, secret=False)
    except StorageError as error:
        raise StorageError(f"--report: {error}") from error
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=place.fd):
        place.close()
        raise StorageError(f"--report {place.path}: no permission to write there")
    return place


def write(directory: PrivateDirectory, recording: Recording) -> Path:
    """Write both files, each whole or not at all; returns the page's path. Raises StorageError."""
    run = recording.as_dict()
    try:
        for name, content in (("run.json", json.dumps(run, indent=1) + "\n"), ("index.html", page(run))):
            directory.write(name, content.encode(errors="backslashreplace"), mode=0o644)
    except StorageError as error:
        raise StorageError(f"the report could not be written: {error}") from error
    return directory.path / "index.html"


def page(run: Mapping[str, Any]) -> str:
    """The page about a run (:meth:`Recording.as_dict`), as HTML that is XML too."""
    title = svg.escape(str(run["title"]))
    level, words = fate(run)
    body = [f'<p id="fate" class="{level}">{svg.escape(words)}</p>'] if words else []
    body += [f"<h1>{title}</h1>", f'<p class="lead">{svg.escape(lead(run))}</p>', _summary(run)]
    body += [part for part in (
        _pauses(run), _parts(run), _stack(run, "pages", "Dirty pages by kind"), _stack(run, "bytes", "Bytes by kind"),
        _ratio(run), _interval(run), _heat(run), _takeover(run), _conditions(run), _notes(run),
    ) if part]
    body.append('<p class="foot">All figures are in <a href="run.json">run.json</a>, beside this page.</p>')
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/>'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _summary(run: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{svg.escape(name)}</th><td>{svg.escape(words)}</td></tr>" for name, words in summary(run))
    return f'<table id="summary">{rows}</table>'


# -- charts

def _figure(name: str, title: str, drawn: str, *, legend: Sequence[tuple[str, str]] = (), about: str = "") -> str:
    keys = "".join(f'<span><i class="{style}"></i>{svg.escape(words)}</span>' for style, words in legend)
    return (
        f'<figure id="{name}"><h2>{svg.escape(title)}</h2>' + (f'<p class="about">{svg.escape(about)}</p>' if about else "")
        + (f'<p class="legend">{keys}</p>' if keys else "") + drawn + "</figure>")


def _until(run: Mapping[str, Any]) -> float:
    """One axis of time for all charts."""
    ends = [side["points"][-1]["until_s"] for side in (run["primary"], run["secondary"], run["vm_pauses"]) if side["points"]]
    kill = run["kill_s"]
    return float(max([*ends, kill or 0.0, 0.001])) * 1.01


def _mark_moments(run: Mapping[str, Any], plot: svg.Plot) -> None:
    if run["full_copies"]:
        plot.moment(run["full_copies"][0]["t_s"], "first copy committed", "quiet")
    if run["kill_s"] is not None:
        plot.moment(run["kill_s"], "primary killed")
    elif run["lost_s"] is not None:
        plot.moment(run["lost_s"], "lost")


def _pauses(run: Mapping[str, Any]) -> str:
    name, side = paused(run)
    if not side["points"]:
        return '<p class="about" id="nothing">There is nothing to draw.</p>'
    figures, points = side["pause_ms"], side["points"]
    end, each = top(figures), side["checkpoints_per_point"]
    title = "Pause of the VM" if name == "Pause" else "Held: what of the VM's pause passes between the two ends"
    about = "Each dot is a checkpoint." if each == 1 else (
        f"Each bar is from the least to the greatest of {each} checkpoints, the line their mean.")
    if end < figures["max"]:
        about += f" Crosses lie beyond the chart; the greatest is {ms(figures['max'])}."

    def draw(layout: svg.Layout) -> str:
        plot = svg.Plot(layout, title, "ms", _until(run), end)
        if each == 1:
            plot.dots([(p["until_s"], p["pause_ms"]["mean"]) for p in points], "c1")
        else:
            plot.ranges([((p["t_s"] + p["until_s"]) / 2, p["pause_ms"]["min"], p["pause_ms"]["max"]) for p in points], "c1")
            plot.line([((p["t_s"] + p["until_s"]) / 2, p["pause_ms"]["mean"]) for p in points], "c2")
        if figures["p99"] is not None:
            plot.level(figures["p99"], f"p99 {ms(figures['p99'])}")
        else:
            plot.level(figures["max"], f"max {ms(figures['max'])}")
        plot.level(figures["p50"], f"p50 {ms(figures['p50'])}")
        _mark_moments(run, plot)
        return plot.render()

    return _figure("pause", title, svg.both(draw), about=about)


def _parts(run: Mapping[str, Any]) -> str:
    name, side = paused(run)
    means = part_means(side) if side["checkpoints"] else {}
    if not means:
        return ""
    points = side["points"]
    totals = sorted(p["pause_ms"]["mean"] for p in points)
    end = min(totals[-1], OUTLIER / 2 * totals[int(0.99 * (len(totals) - 1))])
    title = f"What a {name.lower()} is made of" if name == "Pause" else "What it is made of"

    def draw(layout: svg.Layout) -> str:
        plot = svg.Plot(layout, title, "ms", _until(run), end, height=190)
        plot.stack(
            [(p["t_s"], p["until_s"]) for p in points],
            [(part, STYLE_OF[part], [p["parts_ms"].get(part, 0.0) for p in points]) for part in means])
        _mark_moments(run, plot)
        return plot.render()

    return _figure("parts", title, svg.both(draw), legend=[
        (STYLE_OF[part], f"{part} {ms(value)}") for part, value in means.items()], about="The legend gives means.")


def _stack(run: Mapping[str, Any], what: str, title: str) -> str:
    side = told(run)
    points, totals = side["points"], side[what]
    whole = sum(totals.values())
    if not points or not whole:
        return ""
    kinds = [kind for kind in (PAGE_KINDS if what == "pages" else BYTE_KINDS) if totals[kind]]
    layers = {kind: [p[what].get(kind, 0) / p["checkpoints"] for p in points] for kind in kinds}
    end = max(map(sum, zip(*layers.values(), strict=True)))
    unit, divisor = ("pages", 1) if what == "pages" else _byte_unit(end)

    def draw(layout: svg.Layout) -> str:
        plot = svg.Plot(layout, title, unit, _until(run), end / divisor, height=210)
        plot.stack(
            [(p["t_s"], p["until_s"]) for p in points],
            [(kind, STYLE_OF[kind], [value / divisor for value in values]) for kind, values in layers.items()])
        _mark_moments(run, plot)
        return plot.render()

    amount = (lambda count: f"{count:,}") if what == "pages" else size
    return _figure(what, f"{title}, per checkpoint", svg.both(draw), legend=[
        (STYLE_OF[kind], f"{kind} {amount(totals[kind])} ({share(totals[kind], whole)})") for kind in kinds])


def _byte_unit(top: float) -> tuple[str, int]:
    return next(((name, unit) for unit, name in UNITS if top >= unit), ("bytes", 1))


def _ratio(run: Mapping[str, Any]) -> str:
    points = told(run)["points"]
    values = [p["compression_ratio"] for p in points]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    ordered = sorted(known)
    end = max(1.0, min(ordered[-1], 2 * ordered[int(0.99 * (len(ordered) - 1))]))
    whole = told(run)["compression_ratio"]

    def draw(layout: svg.Layout) -> str:
        plot = svg.Plot(layout, "Compression ratio", "ratio", _until(run), end, height=170)
        plot.line([((p["t_s"] + p["until_s"]) / 2, value) for p, value in zip(points, values, strict=True)], "c3")
        plot.level(whole, f"all in all {whole:.3f}")
        _mark_moments(run, plot)
        return plot.render()

    return _figure("ratio", "Compression ratio", svg.both(draw), about="Bytes of the stream per byte of dirty pages: 1 is no "
                   "gain; above 1, device state outweighs the few pages.")


def _interval(run: Mapping[str, Any]) -> str:
    side = timed(run)
    figures = side["interval_ms"]
    if not figures["count"]:
        return ""

    def draw(layout: svg.Layout) -> str:
        plot = svg.Plot(layout, "Interval between checkpoints", "ms", _until(run), top(figures), height=170)
        plot.line([(p["until_s"], p["interval_ms"] or None) for p in side["points"]], "c1")
        plot.level(figures["p50"], f"p50 {ms(figures['p50'])}")
        _mark_moments(run, plot)
        return plot.render()

    return _figure("interval", "Interval between checkpoints", svg.both(draw))


def _heat(run: Mapping[str, Any]) -> str:
    heat = run["heat"]
    if not heat or not heat["rows"] or not any(map(any, heat["rows"])):
        return ""
    per_row, times = heat["checkpoints_per_row"], heat["times_s"]
    each = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    ends = [*times[1:], times[-1] + each]
    counts = [per_row] * (len(times) - 1) + [max(1, heat["last_row_checkpoints"])]
    rows = [
        (begin, end, [value / count for value in row])
        for begin, end, count, row in zip(times, ends, counts, heat["rows"], strict=True)]
    thresholds = _thresholds([value for _, _, row in rows for value in row if value > 0])
    total_pages = sum(block["pages"] for block in heat["blocks"])
    places = total_pages / heat["bucket_pages"]
    shown_places = -(-total_pages // heat["bucket_pages"])
    blocks, at = [], 0
    for block in heat["blocks"]:
        blocks.append((f"{block['idstr']}", at / heat["bucket_pages"], (at + block["pages"]) / heat["bucket_pages"]))
        at += block["pages"]
    total_bytes = total_pages * TARGET_PAGE_BYTES
    unit, divisor = _byte_unit(total_bytes)
    bucket_bytes = heat["bucket_pages"] * TARGET_PAGE_BYTES
    marks = [
        (mark * divisor / bucket_bytes, f"{svg.shown(mark)} {unit}") for mark in svg.steps(total_bytes / divisor, 8)
        if mark * divisor <= total_bytes]
    drawn = svg.both(lambda layout: svg.heat(
        layout, "Dirty pages by place and time", [(b, e, row[:shown_places]) for b, e, row in rows], thresholds, blocks,
        places, marks))
    ordered = [*thresholds, max(value for _, _, row in rows for value in row)]
    legend = [(f"h{n}", f"{few(low)} to {few(high)}") for n, (low, high) in enumerate(pairwise(ordered))]
    names = ", ".join(f"{printable(b['idstr'])} {size(b['pages'] * TARGET_PAGE_BYTES)}" for b in heat["blocks"][:40])
    more = f" and {len(heat['blocks']) - 40} more" if len(heat["blocks"]) > 40 else ""
    return _figure(
        "heat", "Where memory is written", drawn, legend=legend, about=(
            f"Dirty pages per checkpoint in each {size(bucket_bytes)} of the address space (across) over time (downwards). "
            f"Blocks: {names}{more}."))


def _thresholds(values: Sequence[float]) -> list[float]:
    """Where shades begin: equal factors from the least value to the greatest."""
    least, most = min(values), max(values)
    if most / least < 1.01:
        return [least]
    factor = (most / least) ** (1 / SHADES)
    return [least * 0.9999, *(least * factor**n for n in range(1, SHADES))]


def _takeover(run: Mapping[str, Any]) -> str:
    takeover = run["takeover"]
    if not takeover:
        return ""
    parts = [(name, STYLE_OF[name], float(takeover[f"{name}_ms"])) for name in TAKEOVER_PHASES if f"{name}_ms" in takeover]
    return _figure(
        "takeover", f"Takeover: {ms(takeover['total_ms'])}", svg.both(lambda layout: svg.bar(layout, "Takeover", parts)),
        legend=[(style, f"{name} {ms(value)}") for name, style, value in parts],
        about="From the loss noticed to the VM running, in the order in which it happens.")


def _conditions(run: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{svg.escape(name)}</th><td>{svg.escape(str(words))}</td></tr>"
        for name, words in run["conditions"].items() if words)
    return f'<h2 class="apart">Conditions</h2><table id="conditions">{rows}</table>' if rows else ""


def _notes(run: Mapping[str, Any]) -> str:
    notes = run["notes"]
    if not notes:
        return ""
    left_out = run["notes_left_out"]
    if len(notes) > SHOWN_NOTES:
        left_out += len(notes) - SHOWN_NOTES
        notes = [*notes[: SHOWN_NOTES // 2], *notes[-SHOWN_NOTES // 2 :]]
    rows = "".join(f"<tr><th>{note['t_s']:.2f} s</th><td>{svg.escape(note['text'])}</td></tr>" for note in notes)
    opened = "" if paused(run)[1]["points"] else ' open="open"'
    about = f'<p class="about">{left_out} of the middle are left out.</p>' if left_out else ""
    return f'<details id="notes"{opened}><summary>What happened, in order</summary>{about}<table>{rows}</table></details>'
