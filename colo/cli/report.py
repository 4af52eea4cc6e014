"""The report of a run: ``index.html``, which needs nothing but itself, and ``run.json`` with the figures behind it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from colo.cli import svg
from colo.cli.figures import BYTE_KINDS, PAGE_KINDS, UNITS, size
from colo.cli.recording import TAKEOVER_PARTS, Recording
from colo.cli.report_style import STYLE, STYLE_OF
from colo.errors import StorageError
from colo.private import PrivateDirectory
from colo.text import printable
from colo.wire import TARGET_PAGE_BYTES

PART_ORDER = ("stop", "save", "harvest", "copy", "receive RAM", "receive devices", "validate", "rest")
SHADES = 6
OUTLIER = 4.0
"""Pauses so many times their 99th percentile are drawn at the chart's edge, or the others could not be told apart."""
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
    body = [f"<h1>{title}</h1>", f'<p class="lead">{svg.escape(lead(run))}</p>', _summary(run)]
    body += [part for part in (
        _pauses(run), _parts(run), _stack(run, "pages", "Dirty pages by kind"), _stack(run, "bytes", "Bytes by kind"),
        _ratio(run), _interval(run), _heat(run), _takeover(run), _notes(run),
    ) if part]
    body.append('<p class="foot">All figures are in <a href="run.json">run.json</a>, beside this page.</p>')
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/>'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


# -- which side knows what

def paused(run: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """What is known best of the VM's pauses: its name, and whose timeline."""
    if run["primary"]["checkpoints"]:
        return "Pause", run["primary"]
    if run["vm_pauses"]["checkpoints"]:
        return "Pause", run["vm_pauses"]
    return "Held", run["secondary"]


def told(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who tells of pages and bytes: the primary knows what it did not send, too."""
    found: Mapping[str, Any] = run["primary"] if run["primary"]["checkpoints"] else run["secondary"]
    return found


def timed(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Who tells of intervals."""
    sides = (run["secondary"], run["primary"], run["vm_pauses"])
    found: Mapping[str, Any] = next((side for side in sides if side["interval_ms"]["count"]), run["secondary"])
    return found


# -- words

def lead(run: Mapping[str, Any]) -> str:
    """The run in a sentence or three."""
    name, side = paused(run)
    count = max(side["checkpoints"], told(run)["checkpoints"])
    if not count:
        first = "beyond the first copy " if run["full_copies"] else ""
        words = [f"In {run['duration_s']:.1f} s no checkpoint {first}was committed."]
    else:
        still = "stood still" if name == "Pause" else "was held"
        words = [
            f"{count:,} checkpoints in {protected_s(run):.1f} s; for half of them the VM {still} for less than "
            f"{ms(side['pause_ms']['p50'])}, for all but one in a hundred for less than {ms(side['pause_ms']['p99'])}."]
    if run["takeover"]:
        words.append(f"It was taken over in {ms(run['takeover']['total_ms'])}.")
    if run["verdict"]:
        words.append(str(run["verdict"]))
    elif run["ending"] and not run["takeover"]:
        words.append(f"It ended: {ending(run)}.")
    return " ".join(words)


def protected_s(run: Mapping[str, Any]) -> float:
    """From the first checkpoint that is drawn to the last."""
    _, side = paused(run)
    return float(side["points"][-1]["until_s"] - side["points"][0]["t_s"]) if side["points"] else 0.0


def ms(value: float | None) -> str:
    """Milliseconds for people."""
    if value is None:
        return "–"
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 1000 else f"{value / 1000:.2f} s"


def share(part: float, whole: float) -> str:
    """A part for people."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 0.95 or not part else f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def few(value: float) -> str:
    """A count, or a mean of counts, in few digits."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def spread(figures: Mapping[str, Any]) -> str:
    """Percentiles in words."""
    return f"p50 {ms(figures['p50'])}, p99 {ms(figures['p99'])}, at most {ms(figures['max'])}"


def summary(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The table's rows."""
    rows = [("Began", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run["began"])) + f", ran {run['duration_s']:.1f} s")]
    name, side = paused(run)
    tells = told(run)
    count = max(side["checkpoints"], tells["checkpoints"])
    copies = [copy for copy in run["full_copies"] if copy["side"] == run["full_copies"][0]["side"]]
    if copies:
        more = f"; {len(copies) - 1} more later" if len(copies) > 1 else ""
        rows.append(("First copy", f"{size(copies[0]['stream_bytes'])}, committed at {copies[0]['t_s']:.2f} s{more}"))
    interval = timed(run)["interval_ms"]
    rows.append(("Checkpoints", f"{count:,}" + (
        f", one every {ms(interval['p50'])} (p50; p99 {ms(interval['p99'])})" if interval["count"] else "")))
    if side["checkpoints"]:
        meaning = "" if name == "Pause" else " (what of the pause passes between the two ends)"
        rows.append((name, spread(side["pause_ms"]) + meaning))
        if means := part_means(side):
            rows.append(("made of", ", ".join(f"{part} {ms(value)}" for part, value in means.items()) + " (means)"))
    if name == "Pause" and run["secondary"]["checkpoints"]:
        rows.append(("held by secondary", spread(run["secondary"]["pause_ms"])))
    n, dirty, stream = tells["checkpoints"], tells["dirty_pages"], tells["stream_bytes"]
    if n:
        kinds = ", ".join(f"{share(c, dirty)} {kind}" for kind, c in tells["pages"].items() if c)
        rows.append(("Dirty pages", f"{dirty:,} ({dirty / n:,.0f} a checkpoint{': ' if kinds else ''}{kinds})"))
        ratio = tells["compression_ratio"]
        gain = f"; {ratio:.3f} bytes per byte of dirty pages" if ratio is not None else ""
        rows.append(("Sent", f"{size(stream)} ({size(stream / n)} a checkpoint){gain}"))
    if run["heat"] and (hot := hottest(run["heat"])):
        rows.append(("Hottest place", hot))
    if run["takeover"]:
        t = run["takeover"]
        rows.append(("Takeover", f"{ms(t['total_ms'])} from the loss noticed to the VM running, from checkpoint "
                     f"{t['checkpoint']}, {ms(t['checkpoint_age_ms'])} old then; because: {t['reason']}"))
    if run["ending"]:
        rows.append(("Ending", ending(run)))
    if run["verdict"]:
        rows.append(("Proof", str(run["verdict"])))
    return rows


def ending(run: Mapping[str, Any]) -> str:
    """How it ended, in words."""
    told = (str(run["ending"].get(key) or "") for key in ("text", "reason"))
    return "; ".join(words for words in told if words)


def part_means(side: Mapping[str, Any]) -> dict[str, float]:
    """Mean of each part of a pause, over all checkpoints."""
    found = dict.fromkeys(PART_ORDER, 0.0)
    for point in side["points"]:
        for name, value in point["parts_ms"].items():
            found[name] += value * point["checkpoints"]
    return {name: value / side["checkpoints"] for name, value in found.items() if value}


def hottest(heat: Mapping[str, Any]) -> str:
    """The place with the most pages, in words; empty when nothing was written."""
    if not heat["rows"]:
        return ""
    totals = [sum(column) for column in zip(*heat["rows"], strict=True)]
    most = max(totals)
    if not most:
        return ""
    at = totals.index(most) * heat["bucket_pages"]
    begin = 0
    for block in heat["blocks"]:
        if at < begin + block["pages"]:
            place = f"{block['idstr']} at {size((at - begin) * TARGET_PAGE_BYTES)}"
            return (f"{place}: {most:,} of {sum(totals):,} dirty pages ({share(most, sum(totals))}) in "
                    f"{size(heat['bucket_pages'] * TARGET_PAGE_BYTES)}")
        begin += block["pages"]
    return ""


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


def _pauses(run: Mapping[str, Any]) -> str:
    name, side = paused(run)
    if not side["points"]:
        return '<p class="about" id="nothing">There is nothing to draw.</p>'
    p50, p99, greatest = (side["pause_ms"][key] for key in ("p50", "p99", "max"))
    top = greatest if greatest <= OUTLIER * max(p99, 1e-9) else OUTLIER / 2 * p99
    title = "Pause of the VM" if name == "Pause" else "Held: what of the VM's pause passes between the two ends"
    plot = svg.Plot(title, "ms", _until(run), top)
    points = side["points"]
    if side["checkpoints_per_point"] == 1:
        about = "Each dot is a checkpoint."
        plot.dots([(p["until_s"], p["pause_ms"]["mean"]) for p in points], "c1")
    else:
        about = (f"Each bar is from the least to the greatest of {side['checkpoints_per_point']} checkpoints, "
                 "the line their mean.")
        plot.ranges([((p["t_s"] + p["until_s"]) / 2, p["pause_ms"]["min"], p["pause_ms"]["max"]) for p in points], "c1")
        plot.line([((p["t_s"] + p["until_s"]) / 2, p["pause_ms"]["mean"]) for p in points], "c2")
    if top < greatest:
        about += f" Crosses lie beyond the chart; the greatest is {ms(greatest)}."
    plot.level(p99, f"p99 {ms(p99)}")
    plot.level(p50, f"p50 {ms(p50)}")
    _mark_moments(run, plot)
    return _figure("pause", title, plot.render(), about=about)


def _parts(run: Mapping[str, Any]) -> str:
    name, side = paused(run)
    means = part_means(side) if side["checkpoints"] else {}
    if not means:
        return ""
    points = side["points"]
    totals = sorted(p["pause_ms"]["mean"] for p in points)
    top = min(totals[-1], OUTLIER / 2 * totals[int(0.99 * (len(totals) - 1))])
    title = f"What a {name.lower()} is made of" if name == "Pause" else "What it is made of"
    plot = svg.Plot(title, "ms", _until(run), top, height=190)
    plot.stack(
        [(p["t_s"], p["until_s"]) for p in points],
        [(part, STYLE_OF[part], [p["parts_ms"].get(part, 0.0) for p in points]) for part in means])
    _mark_moments(run, plot)
    return _figure("parts", title, plot.render(), legend=[
        (STYLE_OF[part], f"{part} {ms(value)}") for part, value in means.items()], about="The legend gives means.")


def _stack(run: Mapping[str, Any], what: str, title: str) -> str:
    side = told(run)
    points, totals = side["points"], side[what]
    whole = sum(totals.values())
    if not points or not whole:
        return ""
    kinds = [kind for kind in (PAGE_KINDS if what == "pages" else BYTE_KINDS) if totals[kind]]
    layers = {kind: [p[what].get(kind, 0) / p["checkpoints"] for p in points] for kind in kinds}
    top = max(map(sum, zip(*layers.values(), strict=True)))
    unit, divisor = ("pages", 1) if what == "pages" else _byte_unit(top)
    plot = svg.Plot(title, unit, _until(run), top / divisor, height=210)
    plot.stack(
        [(p["t_s"], p["until_s"]) for p in points],
        [(kind, STYLE_OF[kind], [value / divisor for value in values]) for kind, values in layers.items()])
    _mark_moments(run, plot)
    amount = (lambda count: f"{count:,}") if what == "pages" else size
    return _figure(what, f"{title}, per checkpoint", plot.render(), legend=[
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
    top = max(1.0, min(ordered[-1], 2 * ordered[int(0.99 * (len(ordered) - 1))]))
    plot = svg.Plot("Compression ratio", "ratio", _until(run), top, height=170)
    plot.line([((p["t_s"] + p["until_s"]) / 2, value) for p, value in zip(points, values, strict=True)], "c3")
    whole = told(run)["compression_ratio"]
    plot.level(whole, f"all in all {whole:.3f}")
    _mark_moments(run, plot)
    return _figure("ratio", "Compression ratio", plot.render(), about="Bytes of the stream per byte of dirty pages: 1 is no "
                   "gain; above 1, device state outweighs the few pages.")


def _interval(run: Mapping[str, Any]) -> str:
    side = timed(run)
    figures = side["interval_ms"]
    if not figures["count"]:
        return ""
    top = figures["max"] if figures["max"] <= OUTLIER * figures["p99"] else OUTLIER / 2 * figures["p99"]
    plot = svg.Plot("Interval between checkpoints", "ms", _until(run), top, height=170)
    plot.line([(p["until_s"], p["interval_ms"] or None) for p in side["points"]], "c1")
    plot.level(figures["p50"], f"p50 {ms(figures['p50'])}")
    _mark_moments(run, plot)
    return _figure("interval", "Interval between checkpoints", plot.render())


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
    drawn = svg.heat(
        "Dirty pages by place and time", [(b, e, row[:shown_places]) for b, e, row in rows], thresholds, blocks,
        places, marks)
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
    parts = [(name, STYLE_OF[name], float(takeover[f"{name}_ms"])) for name in TAKEOVER_PARTS if f"{name}_ms" in takeover]
    return _figure(
        "takeover", f"Takeover: {ms(takeover['total_ms'])}", svg.bar("Takeover", parts),
        legend=[(style, f"{name} {ms(value)}") for name, style, value in parts],
        about="From the loss noticed to the VM running, in the order in which it happens.")


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
