"""What a session shows: a live table on a terminal, plain lines in a pipe, JSON objects (one a line) on request."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from colo import trace
from colo.cli.report.recording import Recording
from colo.cli.terminal.figure_text import sparkline
from colo.cli.terminal.outlet import Outlet
from colo.figures.kinds import compression_ratio, report_pages
from colo.figures.secondary_report import CheckpointReport, CheckpointStatistics
from colo.figures.series import percentile
from colo.text import printable, size
from colo.trace import Kind

LINE_EVERY_S = 1.0
"""In a pipe, one line a second stands for all checkpoints of that second."""
SHOWN = 10
SPARK_WIDTH = 40

COLUMNS = ("checkpoint", "every ms", "pause ms", "held ms", "raw", "xbzrle", "compr.", "zero", "unch.", "bytes", "ratio",
           "rate", "link")
KIND_COLUMNS = range(4, 9)
SPARED = (3, 11, 9)
"""These are left out, in this order, where the terminal is too narrow: after the kinds of which there are no pages."""


def shown_columns(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Which of :data:`COLUMNS` fit into ``width`` columns of a terminal."""
    wide = [max(len(cells[n]) for cells in (COLUMNS, *rows)) + 2 for n in range(len(COLUMNS))]
    shown = list(range(len(COLUMNS)))
    empty = [n for n in KIND_COLUMNS if all(row[n] in ("0", "–") for row in rows)]
    for n in (*empty, *SPARED):
        if sum(wide[k] for k in shown) + 1 <= width:
            break
        shown.remove(n)
    return shown


class SessionOutput:
    """Shows a session's events; :meth:`event` may be called from any thread. ``json_lines`` gives JSON, ``recording``
    hears of all that is shown, for a report."""

    def __init__(self, *, json_lines: bool = False, title: str = "colo", recording: Recording | None = None) -> None:
        self.out = Outlet()
        self.console = Console(file=cast(TextIO, self.out), highlight=False)
        self.statistics = CheckpointStatistics()
        self.pauses_ms: list[float] = []
        self._json = json_lines
        self._title = title
        self._recent: list[CheckpointReport] = []
        self._primary: dict[int, dict[str, Any]] = {}
        """The primary's own reports of the last checkpoints, by number."""
        self._notes: list[str] = []
        self._last_words = ""
        self._recording = recording
        self._last_line = 0.0
        self._live: Live | None = None
        self._lock = threading.RLock()
        if self.console.is_terminal and not json_lines:
            self._live = Live(self._render(), console=self.console, refresh_per_second=8, transient=False)
            self._live.start()

    def last_line(self, text: str) -> None:
        """A line to be left standing at the end, where it is not JSON that is asked for."""
        self._last_words = printable(text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.stop()
            self._live = None
        if self._last_words and not self._json:
            self.out.line(self._last_words)
        self._last_words = ""
        self.out.finish()

    def event(self, event: trace.Event) -> None:
        """One event of a session: this is a sink of its trace."""
        with self._lock:
            if not isinstance(event, trace.Settled):
                self._show(event)

    def _show(self, event: trace.Event) -> None:
        if self._recording is not None:
            self._record(self._recording, event)
        match event:
            case trace.Checkpoint(CheckpointReport() as report):
                self._checkpoint(report)
            case trace.Pause(pause_ms):
                self._show_pause(pause_ms)
            case _ if self._json:
                self.json_line(event.kind, event.as_data())
            case _:
                self.say(_sentence(event))

    def _record(self, recording: Recording, event: trace.Event) -> None:
        match event:
            case trace.Checkpoint(report):
                recording.secondary_checkpoint(report.as_dict())
                return
            case trace.Pause(pause_ms):
                recording.vm_pause(pause_ms)
                return
            case trace.Lost():
                recording.lost()
            case trace.Connected():
                recording.found()
            case trace.Running(report):
                recording.running(report.as_dict())
            case trace.Ended(report):
                recording.ending = report.as_dict()
        recording.note(_sentence(event))

    def say(self, text: str, *, remember: bool = True) -> None:
        """A line that stays, and, if to be remembered, is in the report."""
        with self._lock:
            if remember and self._recording is not None:
                self._recording.note(text)
            self._say(text)

    def _say(self, text: str) -> None:
        text = printable(text)
        if self._json:
            self.json_line(Kind.NOTICE, text)
        elif self._live is not None:
            self._notes = [*self._notes, text][-6:]
            self._live.update(self._render())
        else:
            self.out.line(text)

    def pause(self, pause_ms: float) -> None:
        """How long the primary's VM stood still for the last checkpoint, as seen from outside."""
        self.event(trace.Pause(pause_ms))

    def primary_checkpoint(self, report: dict[str, Any]) -> None:
        """A checkpoint as its primary reports it (``PrimaryReport.as_dict()``)."""
        with self._lock:
            if self._recording is not None:
                self._recording.primary_checkpoint(report)
            if report["full_copy"]:
                return
            self._primary[report["number"]] = report
            for number in list(self._primary)[: -2 * SHOWN]:
                del self._primary[number]
            self._show_pause(report["pause_ms"])

    def _show_pause(self, pause_ms: float) -> None:
        self.pauses_ms.append(pause_ms)
        if self._json:
            self.json_line(Kind.PAUSE, {"pause_ms": round(pause_ms, 3)})
        elif self._live is not None:
            self._live.update(self._render())
        elif not self._recent and self._line_is_due():
            self.out.line(f"pause {len(self.pauses_ms)}: the VM stood still for {pause_ms:.2f} ms")

    def json_line(self, kind: str, data: Any) -> None:
        """What a program is told."""
        self.out.line(json.dumps({"event": kind, "time": round(time.time(), 3), "data": data}))

    def _checkpoint(self, report: CheckpointReport) -> None:
        self.statistics.add(report)
        if self._json:
            self.json_line(Kind.CHECKPOINT, report.as_dict())
            return
        self._recent = [*self._recent, report][-SHOWN:]
        if self._live is not None:
            self._live.update(self._render())
            return
        if self._line_is_due():
            ratio = compression_ratio(report.stream_bytes, report.dirty_pages)
            self.out.line(
                f"checkpoint {report.number}: every {report.interval_ms:.0f} ms, held {report.held_ms:.2f} ms, "
                f"{report.dirty_pages} pages ({report.normal_pages} raw, {report.xbzrle_pages} xbzrle, "
                f"{report.zero_pages} zero, {report.compressed_pages} compressed), {size(report.stream_bytes)}"
                f"{'' if ratio is None else f', ratio {ratio:.2f}'}")

    def _line_is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < LINE_EVERY_S:
            return False
        self._last_line = now
        return True

    def _render(self) -> Group:
        if not self._recent:
            return Group(*(Text(line) for line in self._pause_lines()), *(Text(note) for note in self._notes))
        first = len(self.pauses_ms) - len(self._recent)
        rows = [self._row(report, first + index) for index, report in enumerate(self._recent)]
        table = Table(title=self._title, title_justify="left", expand=False, padding=(0, 0, 0, 1))
        columns = shown_columns(rows, self.console.width)
        for n in columns:
            table.add_column(COLUMNS[n], justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[n] for n in columns))
        return Group(table, *(Text(line) for line in self._pause_lines()), *(Text(note) for note in self._notes))

    def _row(self, r: CheckpointReport, place: int) -> list[str]:
        primary = self._primary.get(r.number)
        pause = primary["pause_ms"] if primary else self.pauses_ms[place] if 0 <= place < len(self.pauses_ms) else None
        pages = report_pages(primary or r.as_dict())
        ratio = compression_ratio(r.stream_bytes, sum(pages.values()))
        link_ms = primary["transfer_ms"] if primary else None
        return [
            str(r.number), f"{r.interval_ms:.0f}", "–" if pause is None else f"{pause:.2f}", f"{r.held_ms:.2f}",
            str(pages["raw"]), str(pages["xbzrle"]), str(pages["compressed"]), str(pages["zero"]),
            str(pages["unchanged"]) if primary else "–", size(r.stream_bytes), "–" if ratio is None else f"{ratio:.2f}",
            f"{size(r.stream_bytes / r.interval_ms * 1000)}/s" if r.interval_ms else "–",
            f"{size(r.stream_bytes / link_ms * 1000)}/s" if link_ms else "–",
        ]

    def _pause_lines(self) -> list[str]:
        if not self.pauses_ms:
            return []
        last = self.pauses_ms[-1000:]
        return [f"{len(self.pauses_ms)} checkpoints, pause {last[-1]:.2f} ms (p50 {percentile(last, 50):.2f}, "
                f"p99 {percentile(last, 99):.2f})  {sparkline(last, SPARK_WIDTH)}"]


def _sentence(event: trace.Event) -> str:
    match event:
        case trace.Listening(address):
            return f"listening on {address}"
        case trace.Connected():
            return "a primary connected"
        case trace.Announced(configuration, blocks):
            known = list(blocks)
            return f"machine {configuration.machine}, {size(sum(b.used_length for b in known))} of RAM in {len(known)} blocks"
        case trace.Lost(reason):
            return f"channel lost: {reason}"
        case trace.Protecting(to):
            return f"protecting: checkpoints go to {to}"
        case trace.TakingOver(reason):
            return f"taking over ({reason})"
        case _:
            return str(event.data)


def print_mapping(data: dict[str, Any], *, json_output: bool) -> None:
    """A dict as JSON, or as aligned lines with nested keys joined by dots."""
    if json_output:
        json.dump(data, sys.stdout, indent=2)
        print()
        return
    rows = list(_flatten("", data))
    width = max((len(key) for key, _ in rows), default=0)
    for key, value in rows:
        print(f"{printable(key):<{width}}  {'–' if value is None else printable(str(value))}")


def _flatten(prefix: str, data: dict[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += _flatten(f"{name}.", value)
        else:
            rows.append((name, value))
    return rows
