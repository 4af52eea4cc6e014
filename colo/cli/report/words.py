"""What a report says in words: how it ended, its figures, and how they are read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from colo.text import size
from colo.wire import TARGET_PAGE_BYTES

PART_ORDER = ("stop", "save", "harvest", "copy", "receive RAM", "receive devices", "validate", "rest")
OUTLIER = 4.0
"""Pauses so many times their 99th percentile are drawn at the chart's edge, or the others could not be told apart."""

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


def high(figures: Mapping[str, Any]) -> float:
    """What is high, but not wild: where charts are scaled by."""
    return float(figures["p99"] if figures["p99"] is not None else figures["p90"] or 0.0)


def top(figures: Mapping[str, Any]) -> float:
    """The end of a chart's axis: the greatest value, unless it would flatten all the others."""
    return float(figures["max"] if figures["max"] <= OUTLIER * max(high(figures), 1e-9) else OUTLIER / 2 * high(figures))


# -- words

LOST, HALF = "lost", "warn"


def fate(run: Mapping[str, Any]) -> tuple[str, str]:
    """What must be seen first: :data:`LOST` (the VM is lost, or not what it should be), :data:`HALF` (it runs, unprotected,
    or on the other side), and words for it; empty when nothing must be."""
    how = run["ending"] or {}
    words, verdict = ending(run) if how else "", str(run["verdict"] or "")
    if verdict.startswith("FAILED"):
        return LOST, f"The VM is not what it should be. {verdict}"
    if run["takeover"]:
        return "", ""
    kind = how.get("ending")
    if kind == "primary_gone":
        return LOST, f"The VM is gone from here: {words}"
    if kind is not None:
        return ("", "") if kind == "detached" else (HALF, f"Not protected any more: {words}")
    if how.get("text") == "ArbitrationLost":
        return HALF, f"The VM does not run here: {words}"
    if run["kill_s"] is not None:
        return LOST, f"The VM is lost: its primary was killed, and nothing took it over. {words}"
    if run["lost_s"] is not None and run["full_copies"]:
        return LOST, f"The VM is lost, as far as this side knows: it lost the primary, and did not take over. {words}"
    return (HALF, f"It failed: {words}") if how and how.get("text") != "Interrupted" else ("", "")


def lead(run: Mapping[str, Any]) -> str:
    """The run in a sentence or three."""
    name, side = paused(run)
    count = max(side["checkpoints"], told(run)["checkpoints"])
    if not count:
        first = "beyond the first copy " if run["full_copies"] else ""
        words = [f"In {run['duration_s']:.1f} s no checkpoint {first}was committed."]
    else:
        still = "stood still" if name == "Pause" else "was held"
        pauses = side["pause_ms"]
        most = (f"for all but one in a hundred for less than {ms(pauses['p99'])}" if pauses["p99"] is not None
                else f"never for longer than {ms(pauses['max'])}")
        words = [
            f"{count:,} checkpoints in {protected_s(run):.1f} s; for half of them the VM {still} for less than "
            f"{ms(pauses['p50'])}, {most}."]
    if run["takeover"]:
        words.append(f"It was taken over in {ms(run['takeover']['total_ms'])}.")
    if run["outage"]:
        words.append(f"The world was without it for {ms(run['outage']['ms'])}.")
    if fate(run)[1]:
        return " ".join(words)
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
    if figures["p99"] is None:
        return f"p50 {ms(figures['p50'])}, at most {ms(figures['max'])} ({figures['count']} values are too few for a p99)"
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
        f", one every so long: {spread(interval)}" if interval["count"] else "")))
    if side["checkpoints"]:
        meaning = "" if name == "Pause" else " (what of the pause passes between the two ends)"
        rows.append((name, spread(side["pause_ms"]) + meaning))
        if means := part_means(side):
            rows.append(("made of", ", ".join(f"{part} {ms(value)}" for part, value in means.items()) + " (means)"))
    if name == "Pause" and run["secondary"]["checkpoints"]:
        rows.append(("held by secondary", spread(run["secondary"]["pause_ms"])))
    if (running := running_share(run)) is not None:
        rows.append(("The VM ran", f"{share(running, 1.0)} of the time between the first checkpoint and the last" + (
            ": the interval is too short for it" if running < 0.5 else "")))
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
    if run["outage"]:
        rows.append(("Outage", f"{ms(run['outage']['ms'])} {run['outage']['what']}"))
    if run["ending"]:
        rows.append(("Ending", ending(run)))
    if run["verdict"]:
        rows.append(("Proof", str(run["verdict"])))
    return rows


def running_share(run: Mapping[str, Any]) -> float | None:
    """Which part of the time the VM ran, where its pauses are known."""
    name, side = paused(run)
    whole_ms = 1000 * protected_s(run)
    if name != "Pause" or whole_ms < 1000:
        return None
    paused_ms: float = sum(p["pause_ms"]["mean"] * p["checkpoints"] for p in side["points"])
    return max(0.0, 1.0 - paused_ms / whole_ms)


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
