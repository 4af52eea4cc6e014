"""What is reported of each checkpoint by its secondary, and the figures of a session."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from colo.figures.series import Series


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """One checkpoint as its secondary saw it. Times in milliseconds, sizes in bytes."""

    number: int
    interval_ms: float
    """Since the checkpoint before was committed."""
    held_ms: float
    """From VMSTATE_SEND to RECEIVED and LOADED sent: what of the primary's pause passes between the two ends."""
    ram_ms: float
    device_ms: float
    validate_ms: float
    stream_bytes: int
    device_bytes: int
    zero_pages: int
    normal_pages: int
    xbzrle_pages: int
    xbzrle_bytes: int
    compressed_pages: int
    compressed_bytes: int

    @property
    def dirty_pages(self) -> int:
        """Pages of all kinds."""
        return self.zero_pages + self.normal_pages + self.xbzrle_pages + self.compressed_pages

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class CheckpointStatistics:
    """What the checkpoints of a session came to."""

    def __init__(self) -> None:
        self.last: CheckpointReport | None = None
        self.checkpoints = 0
        self.stream_bytes = 0
        self.pages = {"zero": 0, "normal": 0, "xbzrle": 0, "compressed": 0}
        self.interval_ms = Series()
        self.held_ms = Series()

    def add(self, report: CheckpointReport) -> None:
        """Take the report of one committed checkpoint."""
        self.last = report
        self.checkpoints += 1
        self.stream_bytes += report.stream_bytes
        for kind in self.pages:
            self.pages[kind] += getattr(report, f"{kind}_pages")
        if report.number:
            self.interval_ms.add(report.interval_ms)
            self.held_ms.add(report.held_ms)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "checkpoints": self.checkpoints,
            "stream_bytes": self.stream_bytes,
            "pages": dict(self.pages),
            "interval_ms": self.interval_ms.as_dict(),
            "held_ms": self.held_ms.as_dict(),
            "last": self.last.as_dict() if self.last else None,
        }
