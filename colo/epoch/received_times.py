"""How long the parts of a received checkpoint took."""

from __future__ import annotations

import time

from colo.epoch.committed import Committed
from colo.figures.secondary_report import CheckpointReport

COUNTS = ("zero_pages", "normal_pages", "xbzrle_pages", "xbzrle_bytes", "compressed_pages", "compressed_bytes")


class ReceivedTimes:
    """Moments of the checkpoint under way, in nanoseconds of CLOCK_MONOTONIC, by the part that ended then."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._committed_ns = 0

    def begin(self) -> None:
        """VMSTATE_SEND was read."""
        self._at = {"begin": time.monotonic_ns()}

    def mark(self, name: str) -> None:
        """``ram`` and ``device`` are received, ``acknowledged`` is sent."""
        self._at[name] = time.monotonic_ns()

    def report(self, committed: Committed, stream_bytes: int) -> CheckpointReport:
        """Of the checkpoint that was just committed and acknowledged."""
        at, marks = committed.at_ns, self._at
        begin = marks.get("begin", at)
        ram, device = marks.get("ram", begin), marks.get("device", begin)
        totals = {name: sum(block.counts[name] for block in committed.blocks) for name in COUNTS}
        before, self._committed_ns = self._committed_ns, at
        return CheckpointReport(
            number=committed.number,
            interval_ms=(at - before) / 1e6 if before else 0.0,
            held_ms=(marks["acknowledged"] - begin) / 1e6,
            ram_ms=(ram - begin) / 1e6,
            device_ms=(device - ram) / 1e6,
            validate_ms=(at - device) / 1e6,
            stream_bytes=stream_bytes,
            device_bytes=len(committed.device_state),
            **totals,
        )
