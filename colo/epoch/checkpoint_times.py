"""When the parts of a primary's checkpoint happened, what it came to, and which records were made for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from colo._fast.send.pageencoder import PageEncoder
from colo.figures.primary_report import PrimaryReport
from colo.trace import Phase


@dataclass(slots=True)
class CheckpointTimes:
    """One checkpoint: its times in monotonic nanoseconds, 0: not yet; its counts."""

    begin: int = 0
    ahead: int = 0
    """The copy before the pause began."""
    paused: int = 0
    stopped: int = 0
    saved: int = 0
    harvested: int = 0
    copied: int = 0
    resumed: int = 0
    sending: int = 0
    sent: int = 0
    stream_start: int = 0
    """Bytes sent over the connection before it."""
    pause_ms: float = 0.0
    """All that the VM stood still."""
    dirty_pages: int = 0
    """Each counted once."""
    paused_pages: int = 0
    """Found dirty in the pause."""

    def parts_ms(self, now_ns: int) -> dict[str, float]:
        """By the names of :class:`~colo.figures.primary_report.PrimaryReport`."""
        sending = self.sending or self.begin
        parts = {
            Phase.AHEAD.ms: self.paused - (self.ahead or self.paused),
            Phase.STOP.ms: self.stopped - self.paused,
            Phase.SAVE.ms: self.saved - self.stopped,
            Phase.HARVEST.ms: self.harvested - self.saved,
            Phase.COPY.ms: self.copied - self.harvested,
            Phase.SEND.ms: self.sent - sending,
            Phase.ACKNOWLEDGED.ms: now_ns - self.sent,
            "transfer_ms": now_ns - sending,
        }
        return {name: ns / 1e6 for name, ns in parts.items()}


    def report(
        self, connection: int, number: int, *, full_copy: bool, ahead_pages: int, stream_bytes: int, device_bytes: int,
        pages: dict[str, int], record_bytes: dict[str, int],
    ) -> PrimaryReport:
        """It was acknowledged just now."""
        return PrimaryReport(
            connection=connection, number=number, full_copy=full_copy, pause_ms=self.pause_ms,
            dirty_pages=self.dirty_pages, ahead_pages=ahead_pages, paused_pages=self.paused_pages,
            stream_bytes=stream_bytes, device_bytes=device_bytes, pages=pages, record_bytes=record_bytes,
            **self.parts_ms(time.monotonic_ns()))


class RecordCounts:
    """What encoders, which count from their begin on, have made since they were last asked."""

    def __init__(self) -> None:
        self._known: dict[PageEncoder, tuple[dict[str, int], dict[str, int]]] = {}

    def since(self, encoders: Iterable[PageEncoder]) -> tuple[dict[str, int], dict[str, int]]:
        """Pages and bytes of their records, by kind."""
        pages: Counter[str] = Counter()
        record_bytes: Counter[str] = Counter()
        for encoder in encoders:
            stats = encoder.stats
            old_pages, old_bytes = self._known.get(encoder, ({}, {}))
            self._known[encoder] = stats.pages, stats.bytes
            for kind in stats.pages:
                pages[kind] += stats.pages[kind] - old_pages.get(kind, 0)
                record_bytes[kind] += stats.bytes[kind] - old_bytes.get(kind, 0)
        return dict(pages), dict(record_bytes)
