"""What is reported of each checkpoint by its primary, and the figures of a session."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from colo.figures.running_share import RunningShare
from colo.figures.series import Series
from colo.wire import TARGET_PAGE_BYTES


@dataclass(frozen=True, slots=True)
class PrimaryReport:
    """One committed checkpoint as its primary saw it. Times in milliseconds, sizes in bytes.

    ``pause_ms`` is all that the VM stood still: ``stop_ms`` until it did, ``save_ms`` for its state, ``harvest_ms``,
    ``copy_ms`` (0 when sent directly), and, sent directly, everything until it was loaded.
    """

    connection: int
    """0 for the session's first, one more after each re-connection."""
    number: int
    """0 is the first full copy; counting goes on when the same secondary is found again."""
    full_copy: bool
    pause_ms: float
    stop_ms: float
    save_ms: float
    harvest_ms: float
    copy_ms: float
    send_ms: float
    acknowledged_ms: float
    """From all sent to acknowledged."""
    dirty_pages: int
    """Each counted once."""
    stream_bytes: int
    device_bytes: int
    ahead_ms: float = 0.0
    """Before the pause, while the VM ran: dirty pages were copied ahead."""
    ahead_pages: int = 0
    """Copied then; one that was copied twice counts twice."""
    paused_pages: int = 0
    """Found dirty in the pause."""
    transfer_ms: float = 0.0
    """From the first byte sent to the last acknowledgement."""
    pages: dict[str, int] = field(default_factory=dict)
    """Pages by kind of record: see :data:`colo._fast.send.pageencoder.KINDS`."""
    record_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of whole records by the same kinds."""

    @property
    def precopy_ms(self) -> float:
        """Former name of ``ahead_ms``; goes with the next release."""
        return self.ahead_ms

    @property
    def precopied_pages(self) -> int:
        """Former name of ``ahead_pages``; goes with the next release."""
        return self.ahead_pages

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class PrimaryStatistics:
    """What the checkpoints of a session came to."""

    def __init__(self) -> None:
        self.last: PrimaryReport | None = None
        self.checkpoints = 0
        self.full_copies = 0
        self.losses = 0
        self.dirty_pages = 0
        self.ahead_pages = 0
        self.paused_pages = 0
        self.stream_bytes = 0
        self.pages: Counter[str] = Counter()
        self.record_bytes: Counter[str] = Counter()
        self.pause_ms = Series()
        self.harvest_ms = Series()
        self.acknowledged_ms = Series()
        self._running = RunningShare("give it a longer interval_ms, or a target_pause_ms")

    def add(self, report: PrimaryReport) -> None:
        """Take the report of one checkpoint, committed just now."""
        self.last = report
        now_s = time.monotonic()
        self._running.pause(now_s - (report.pause_ms + report.acknowledged_ms) / 1000, now_s - report.acknowledged_ms / 1000)
        self.stream_bytes += report.stream_bytes
        if report.full_copy:
            self.full_copies += 1
            return
        self.checkpoints += 1
        self.dirty_pages += report.dirty_pages
        self.ahead_pages += report.ahead_pages
        self.paused_pages += report.paused_pages
        self.pages.update(report.pages)
        self.record_bytes.update(report.record_bytes)
        self.pause_ms.add(report.pause_ms)
        self.harvest_ms.add(report.harvest_ms)
        self.acknowledged_ms.add(report.acknowledged_ms)

    @property
    def running_share(self) -> float | None:
        """Which part of the last 5 s the VM ran; None of a session younger than a second."""
        return self._running.share(time.monotonic())

    def warning(self) -> str | None:
        """Something to tell about the last checkpoints, once: the VM hardly runs between them."""
        return self._running.warning(time.monotonic())

    @property
    def compression_ratio(self) -> float:
        """Bytes of records made per byte of the dirty pages' contents; 1.0 of nothing."""
        return sum(self.record_bytes.values()) / (TARGET_PAGE_BYTES * self.dirty_pages) if self.dirty_pages else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        share = self.running_share
        return {
            "running_share": None if share is None else round(share, 3),
            "checkpoints": self.checkpoints,
            "full_copies": self.full_copies,
            "losses": self.losses,
            "dirty_pages": self.dirty_pages,
            "ahead_pages": self.ahead_pages,
            "paused_pages": self.paused_pages,
            "stream_bytes": self.stream_bytes,
            "pages": dict(self.pages),
            "record_bytes": dict(self.record_bytes),
            "compression_ratio": round(self.compression_ratio, 4),
            "pause_ms": self.pause_ms.as_dict(),
            "harvest_ms": self.harvest_ms.as_dict(),
            "acknowledged_ms": self.acknowledged_ms.as_dict(),
            "last": self.last.as_dict() if self.last else None,
        }
