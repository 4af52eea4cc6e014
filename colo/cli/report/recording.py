"""What a run came to, kept small whatever its length: the figures behind its report."""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colo.cli.report.conditions import machine
from colo.figures.kinds import BYTE_KINDS, PAGE_KINDS, compression_ratio, report_bytes, report_pages
from colo.figures.series import percentile
from colo.trace import PAUSE_PHASES

SAMPLES = 400
"""Points of time: when there would be more, each two become one."""
VALUES = 50_000
"""Percentiles are exact up to so many values; beyond, over a random sample of so many (every n-th would follow a rhythm of
the VM's)."""
P99_LEAST = 200
"""Of fewer values the 99th percentile is the greatest, or the one beside it: it says nothing of its own, and is not told."""
NOTES = 200
"""Events told in words; of more the first half and the last are kept."""


class Values:
    """One figure's values, for percentiles."""

    def __init__(self) -> None:
        self.count = 0
        self.greatest = 0.0
        self._values = array("d")
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        self.count += 1
        self.greatest = max(self.greatest, value)
        if len(self._values) < VALUES:
            self._values.append(value)
        elif (place := self._random.randrange(self.count)) < VALUES:
            self._values[place] = value

    def as_dict(self) -> dict[str, Any]:
        """For JSON; None where there are no values, or too few (:data:`P99_LEAST`)."""
        known = self.count > 0
        return {
            "count": self.count,
            "p50": round(percentile(self._values, 50), 3) if known else None,
            "p90": round(percentile(self._values, 90), 3) if known else None,
            "p99": round(percentile(self._values, 99), 3) if self.count >= P99_LEAST else None,
            "max": round(self.greatest, 3) if known else None,
        }


@dataclass(slots=True)
class Point:
    """One checkpoint, or some that follow one another. Sums, but the least and greatest of pause."""

    begin_s: float
    end_s: float
    checkpoints: int = 1
    pause_ms: float = 0.0
    pause_min_ms: float = 0.0
    pause_max_ms: float = 0.0
    parts_ms: dict[str, float] = field(default_factory=dict)
    interval_ms: float = 0.0
    pages: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)

    def join(self, later: Point) -> Point:
        """This and the one after it as one."""
        return Point(
            self.begin_s, later.end_s, self.checkpoints + later.checkpoints, self.pause_ms + later.pause_ms,
            min(self.pause_min_ms, later.pause_min_ms), max(self.pause_max_ms, later.pause_max_ms),
            _sums(self.parts_ms, later.parts_ms), self.interval_ms + later.interval_ms, _sums(self.pages, later.pages),
            _sums(self.bytes, later.bytes),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: pause, parts and interval are means per checkpoint, pages and bytes sums."""
        n = self.checkpoints
        dirty, stream = sum(self.pages.values()), sum(self.bytes.values())
        ratio = compression_ratio(stream, dirty)
        return {
            "t_s": round(self.begin_s, 4),
            "until_s": round(self.end_s, 4),
            "checkpoints": n,
            "pause_ms": {
                "mean": round(self.pause_ms / n, 4), "min": round(self.pause_min_ms, 4), "max": round(self.pause_max_ms, 4)},
            "parts_ms": {name: round(value / n, 4) for name, value in self.parts_ms.items()},
            "interval_ms": round(self.interval_ms / n, 3),
            "pages": self.pages,
            "bytes": self.bytes,
            "dirty_pages": dirty,
            "stream_bytes": stream,
            "compression_ratio": None if ratio is None else round(ratio, 5),
        }


def _sums(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {name: value + second.get(name, 0) for name, value in first.items()}


class Timeline:
    """The checkpoints of a run as one side saw them."""

    def __init__(self) -> None:
        self.pause = Values()
        self.interval = Values()
        self.pages = dict.fromkeys(PAGE_KINDS, 0)
        self.bytes = dict.fromkeys(BYTE_KINDS, 0)
        self.checkpoints = 0
        self.per_point = 1
        """Checkpoints that a point stands for."""
        self._points: list[Point] = []

    def add(self, point: Point) -> None:
        """Take in one checkpoint."""
        if self._points:
            point.begin_s = max(point.begin_s, self._points[-1].end_s)
            point.end_s = max(point.end_s, point.begin_s)
        self.checkpoints += 1
        self.pause.add(point.pause_ms)
        if point.interval_ms:
            self.interval.add(point.interval_ms)
        for totals, new in ((self.pages, point.pages), (self.bytes, point.bytes)):
            for kind, count in new.items():
                totals[kind] += count
        if self._points and self._points[-1].checkpoints < self.per_point:
            self._points[-1] = self._points[-1].join(point)
            return
        if len(self._points) >= SAMPLES:
            self._points = [a.join(b) for a, b in zip(self._points[::2], self._points[1::2], strict=True)]
            self.per_point *= 2
        self._points.append(point)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        stream, dirty = sum(self.bytes.values()), sum(self.pages.values())
        ratio = compression_ratio(stream, dirty)
        return {
            "checkpoints": self.checkpoints,
            "checkpoints_per_point": self.per_point,
            "pause_ms": self.pause.as_dict(),
            "interval_ms": self.interval.as_dict(),
            "pages": dict(self.pages),
            "bytes": dict(self.bytes),
            "dirty_pages": dirty,
            "stream_bytes": stream,
            "compression_ratio": None if ratio is None else round(ratio, 5),
            "points": [point.as_dict() for point in self._points],
        }


class Recording:
    """Hears a run's events, from any thread; :meth:`as_dict` has all that a report shows.

    Times are seconds since it was made. ``secondary`` and ``primary`` are what those sides told of each checkpoint,
    ``vm_pauses`` what was seen of the VM from outside (a QEMU's monitor).
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.began = time.time()
        self._began_s = time.monotonic()
        self.primary = Timeline()
        self.secondary = Timeline()
        self.vm_pauses = Timeline()
        self.full_copies: list[dict[str, Any]] = []
        self.full_copies_count = 0
        self.notes: list[dict[str, Any]] = []
        self.notes_left_out = 0
        self.takeover: dict[str, Any] | None = None
        self.ending: dict[str, Any] | None = None
        self.unwritten = False
        """The report could not be written."""
        self.heat: dict[str, Any] | None = None
        self.kill_s: float | None = None
        """When the run's own doing killed the primary."""
        self.lost_s: float | None = None
        """When the other side was last found to be lost."""
        self.running_s: float | None = None
        """When the VM ran here after that."""
        self.outage: dict[str, Any] | None = None
        """``ms`` and ``what``: how long the world went without the VM, where the run can tell that better than by these."""
        self.conditions: dict[str, str] = machine()
        """What the run was made on and with, in words; who knows more adds to it."""
        self.verdict: str | None = None
        self.end_s: float | None = None
        self._last_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def now_s(self) -> float:
        """Seconds since the recording began."""
        return time.monotonic() - self._began_s

    def secondary_checkpoint(self, report: Mapping[str, Any]) -> None:
        """A checkpoint as its secondary reports it (``CheckpointReport.as_dict()``)."""
        with self._lock:
            if report["number"] == 0:
                self._full_copy("secondary", report)
                return
            parts = {
                "receive RAM": report["ram_ms"], "receive devices": report["device_ms"], "validate": report["validate_ms"]}
            self._add("secondary", self.secondary, report, report["held_ms"], parts, report["interval_ms"])

    def primary_checkpoint(self, report: Mapping[str, Any]) -> None:
        """A checkpoint as its primary reports it (``PrimaryReport.as_dict()``)."""
        with self._lock:
            if report["full_copy"]:
                self._full_copy("primary", report)
                return
            parts = {str(phase): report[phase.ms] for phase in PAUSE_PHASES}
            self._add("primary", self.primary, report, report["pause_ms"], parts, None)

    def vm_pause(self, pause_ms: float) -> None:
        """The VM stood still for so long, as seen from outside."""
        with self._lock:
            now = self.now_s()
            interval = (now - self._last_s["vm"]) * 1000 if "vm" in self._last_s else 0.0
            self._last_s["vm"] = now
            self.vm_pauses.add(Point(now - interval / 1000, now, 1, pause_ms, pause_ms, pause_ms, {}, interval))

    def _add(
        self, side: str, timeline: Timeline, report: Mapping[str, Any], pause_ms: float, parts: dict[str, float],
        interval_ms: float | None,
    ) -> None:
        now = self.now_s()
        since = now - self._last_s.get(side, now)
        self._last_s[side] = now
        parts["rest"] = max(0.0, pause_ms - sum(parts.values()))
        timeline.add(Point(
            now - since, now, 1, pause_ms, pause_ms, pause_ms, parts, since * 1000 if interval_ms is None else interval_ms,
            report_pages(report), report_bytes(report)))

    def _full_copy(self, side: str, report: Mapping[str, Any]) -> None:
        self._last_s[side] = self.now_s()
        self.full_copies_count += 1
        self.full_copies = [*self.full_copies, {
            "side": side, "t_s": round(self.now_s(), 4), "pages": report_pages(report),
            "stream_bytes": report["stream_bytes"],
        }][:16]

    def note(self, text: str) -> None:
        """Something that happened, in words."""
        with self._lock:
            self.notes.append({"t_s": round(self.now_s(), 4), "text": text})
            if len(self.notes) > NOTES:
                del self.notes[NOTES // 2]
                self.notes_left_out += 1

    def killed(self) -> None:
        """The primary is killed now."""
        self.kill_s = round(self.now_s(), 4)

    def lost(self) -> None:
        """The other side is found to be lost now."""
        self.lost_s, self.running_s = round(self.now_s(), 4), None

    def found(self) -> None:
        """The other side is there, or there again."""
        self.lost_s = None

    def running(self, takeover: dict[str, Any]) -> None:
        """The VM runs here now: the report of its takeover."""
        self.takeover, self.running_s = takeover, round(self.now_s(), 4)

    def ended(self) -> None:
        """The run is over: what comes after is not of it."""
        if self.end_s is None:
            self.end_s = self.now_s()

    def _outage(self) -> dict[str, Any] | None:
        if self.running_s is None:
            return None
        if self.kill_s is not None and self.kill_s <= self.running_s:
            return {"ms": round(1000 * (self.running_s - self.kill_s), 3), "what": "from the kill to the VM running again"}
        if self.lost_s is None:
            return None
        return {
            "ms": round(1000 * (self.running_s - self.lost_s), 3),
            "what": "from the loss noticed to the VM running again; what passed before it was noticed is not in it"}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        with self._lock:
            heat = self.heat
            if heat is not None:
                heat = {**heat, "times_s": [round(at - self._began_s, 3) for at in heat["times_s"]]}
            return {
                "format": 1,
                "title": self.title,
                "began": round(self.began, 3),
                "duration_s": round(self.end_s if self.end_s is not None else self.now_s(), 3),
                "verdict": self.verdict,
                "conditions": dict(self.conditions),
                "kill_s": self.kill_s,
                "lost_s": self.lost_s,
                "running_s": self.running_s,
                "outage": self.outage if self.outage is not None else self._outage(),
                "takeover": self.takeover,
                "ending": self.ending,
                "full_copies": self.full_copies,
                "full_copies_count": self.full_copies_count,
                "primary": self.primary.as_dict(),
                "secondary": self.secondary.as_dict(),
                "vm_pauses": self.vm_pauses.as_dict(),
                "heat": heat,
                "notes": self.notes,
                "notes_left_out": self.notes_left_out,
            }
