"""Pages and bytes of a session by kind, whichever side counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
