"""Figures of a session in one form, whichever side they come from: pages and bytes by kind, ratios, and text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from colo.text import printable
from colo.wire import TARGET_PAGE_BYTES

PAGE_KINDS = ("raw", "xbzrle", "compressed", "zero", "unchanged")
"""``unchanged`` pages were marked dirty, but the other side has them already: only a primary knows."""
BYTE_KINDS = ("raw", "xbzrle", "compressed", "device state", "headers")
"""What the bytes of a stream are; ``headers`` is all that is none of the others, zero pages' records too."""
KIND_OF = {
    "page": "raw", "normal": "raw", "zero": "zero", "xbzrle": "xbzrle", "compressed": "compressed",
    "lz4_delta": "compressed", "zstd_delta": "compressed", "lz4_page": "compressed", "zstd_page": "compressed",
    "mask_delta": "compressed", "unchanged": "unchanged",
}
"""By the names that the core and both sides' statistics use; ``compressed`` is all that needs two colo ends."""
UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
BARS = "▁▂▃▄▅▆▇█"
SHADES = " ·░▒▓█"


def size(value: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit, name in UNITS:
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f} B"


def pages_by_kind(pages: Mapping[str, int]) -> dict[str, int]:
    """Counts of either side's statistics, by :data:`PAGE_KINDS`."""
    found = dict.fromkeys(PAGE_KINDS, 0)
    for name, count in pages.items():
        found[KIND_OF.get(name, "compressed")] += count
    return found


def report_pages(report: Mapping[str, Any]) -> dict[str, int]:
    """Pages of a checkpoint by kind, from either side's report of it."""
    if "pages" in report:
        return pages_by_kind(report["pages"])
    return pages_by_kind({kind: report[f"{kind}_pages"] for kind in ("zero", "normal", "xbzrle", "compressed")})


def report_bytes(report: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of a checkpoint by :data:`BYTE_KINDS`; their sum is its ``stream_bytes``."""
    found = dict.fromkeys(BYTE_KINDS, 0)
    if "record_bytes" in report:
        for name, count in report["record_bytes"].items():
            kind = KIND_OF.get(name, "compressed")
            if kind in found:
                found[kind] += count
    else:
        found["raw"] = report["normal_pages"] * TARGET_PAGE_BYTES
        found["xbzrle"] = report["xbzrle_bytes"]
        found["compressed"] = report["compressed_bytes"]
    found["device state"] = report["device_bytes"]
    found["headers"] = max(0, report["stream_bytes"] - sum(found.values()))
    return found


def compression_ratio(stream_bytes: float, dirty_pages: float) -> float | None:
    """Bytes of the stream per byte of dirty pages; None where there are none."""
    return stream_bytes / (dirty_pages * TARGET_PAGE_BYTES) if dirty_pages > 0 else None


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
