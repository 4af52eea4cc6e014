"""A session watched through its control socket: samples, and the picture, line or JSON object made of each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from colo.cli.terminal.figure_text import block_line, heat_strip, sparkline
from colo.figures.kinds import compression_ratio, pages_by_kind
from colo.figures.running_share import TOO_LITTLE
from colo.text import printable, size

SAMPLES = 120
SPARK_WIDTH = 30
STRIP_WIDTH = 64
KIND_STYLES = {"raw": "red", "xbzrle": "yellow", "compressed": "cyan", "zero": "green", "unchanged": "dim"}


@dataclass(frozen=True, slots=True)
class Sample:
    """What a session did since the sample before, and how it stands. None: this side does not know, or there was
    nothing. Times in milliseconds."""

    state: str
    checkpoint: int | None
    checkpoint_age_ms: float | None
    checkpoints: int
    """Committed since the sample before; pages and bytes are of these."""
    checkpoints_per_s: float | None
    pause_name: str
    """``pause``: the VM stood still; ``held``: what of that passes between the two ends (all that a secondary sees)."""
    pause_ms: float | None
    """Of the last checkpoint."""
    pause_p50_ms: float | None
    pause_p99_ms: float | None
    interval_ms: float | None
    pages: dict[str, int]
    """By kind; empty of a QEMU's guard, which sees neither pages nor bytes."""
    dirty_pages: int | None
    stream_bytes: int | None
    total_bytes: int | None
    compression_ratio: float | None
    """Bytes of the stream per byte of dirty pages."""
    bytes_per_s: float | None
    """What was streamed."""
    link_bytes_per_s: float | None
    """What the link can, as measured."""
    running_share: float | None = None
    """Which part of the last seconds the VM ran."""
    lease_left_ms: float | None = None
    """Of a QEMU's guard: how long its VM may run without another promise."""


def take_sample(status: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float | None) -> Sample:
    """From a status and the one ``seconds`` before it; without that, from the session's beginning."""
    statistics = status["statistics"]
    earlier = before["statistics"] if before else None
    primary = "pause_ms" in statistics
    series = statistics["pause_ms" if primary else "held_ms"] or {"count": 0}
    last = statistics.get("last") or {"pause_ms": series.get("last")}
    counts_pages = "pages" in statistics

    def since(name: str) -> int:
        return int(statistics[name]) - (int(earlier[name]) if earlier else 0)

    pages: dict[str, int] = {}
    if counts_pages:
        then = pages_by_kind(earlier["pages"]) if earlier else {}
        pages = {kind: count - then.get(kind, 0) for kind, count in pages_by_kind(statistics["pages"]).items()}
    # A primary counts the pages of full copies in their reports only.
    copied = since("full_copies") if primary and counts_pages else 0
    dirty, stream = None, None
    if counts_pages:
        dirty, stream = since("dirty_pages") if primary else sum(pages.values()), since("stream_bytes")
    interval = status.get("interval_ms") if primary else last.get("interval_ms")
    count = since("checkpoints")
    known = seconds is not None and seconds > 0
    return Sample(
        state=status["state"],
        checkpoint=status.get("checkpoint"),
        checkpoint_age_ms=status.get("checkpoint_age_ms"),
        checkpoints=count,
        checkpoints_per_s=round(count / seconds, 2) if known and seconds else None,
        pause_name="pause" if primary else "held",
        pause_ms=last.get("pause_ms" if primary else "held_ms") if series["count"] else None,
        pause_p50_ms=series["p50"] if series["count"] else None,
        pause_p99_ms=series["p99"] if series["count"] else None,
        interval_ms=interval,
        pages=pages,
        dirty_pages=dirty,
        stream_bytes=stream,
        total_bytes=int(statistics["stream_bytes"]) if counts_pages else None,
        compression_ratio=None if copied or stream is None or dirty is None else _rounded(compression_ratio(stream, dirty)),
        bytes_per_s=round(stream / seconds) if known and seconds and stream is not None else None,
        link_bytes_per_s=status.get("link_bytes_per_s") or None,
        running_share=statistics.get("running_share", status.get("running_share")),
        lease_left_ms=(status.get("lease") or {}).get("left_ms"),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


class Watch:
    """The samples of a session, the last :data:`SAMPLES` kept; renders as the live picture."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.status: dict[str, Any] | None = None
        self.heat: dict[str, Any] | None = None
        self._at_s = 0.0

    def add(self, status: dict[str, Any], heat: dict[str, Any] | None) -> Sample:
        """Take in what the session answered just now."""
        now = time.monotonic()
        sample = take_sample(status, self.status, now - self._at_s if self.status is not None else None)
        self.samples.append(sample)
        self.status, self.heat, self._at_s = status, heat, now
        return sample

    def line(self) -> str:
        """The last sample for a pipe."""
        s = self.samples[-1]
        parts = [s.state]
        if s.checkpoint is not None:
            age = f" ({_ms(s.checkpoint_age_ms)} old)" if s.checkpoint_age_ms is not None else ""
            parts.append(f"checkpoint {s.checkpoint}{age}")
        if s.pause_ms is not None:
            parts.append(f"{s.pause_name} {_ms(s.pause_ms)} (p50 {_ms(s.pause_p50_ms)}, p99 {_ms(s.pause_p99_ms)})")
        if s.interval_ms is not None:
            parts.append(f"every {_ms(s.interval_ms)}")
        if s.running_share is not None:
            parts.append(f"runs {s.running_share:.0%} of the time")
        if s.dirty_pages is not None and s.stream_bytes is not None:
            parts.append(f"{s.checkpoints} new: {s.dirty_pages} pages ({_kinds(s)}), {size(s.stream_bytes)}")
        else:
            parts.append(f"{s.checkpoints} new")
        if s.compression_ratio is not None:
            parts.append(f"ratio {s.compression_ratio:.2f}")
        if s.bytes_per_s is not None:
            parts.append(f"{size(s.bytes_per_s)}/s")
        if s.link_bytes_per_s is not None:
            parts.append(f"link {size(s.link_bytes_per_s)}/s")
        if s.total_bytes is not None:
            parts.append(f"{size(s.total_bytes)} in all")
        if s.lease_left_ms is not None:
            parts.append(f"lease {_ms(s.lease_left_ms)} left")
        return printable("; ".join(parts))

    def as_dict(self) -> dict[str, Any]:
        """The last sample for JSON, with the whole status it was made of."""
        return {"time": round(time.time(), 3), "sample": asdict(self.samples[-1]), "status": self.status}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.samples:
            return
        s = self.samples[-1]
        wide = options.max_width >= 90
        table = Table.grid(padding=(0, 2))
        for _ in range(2 + wide):
            table.add_column(no_wrap=True, overflow="ellipsis")

        def row(name: str, text: str | Text, values: list[float | None] | None = None) -> None:
            cells: list[str | Text] = [Text(name, style="bold"), text if isinstance(text, Text) else Text(text)]
            if wide:
                cells.append(Text(sparkline(values, SPARK_WIDTH) if values else "", style="cyan"))
            table.add_row(*cells)

        age = f", {_ms(s.checkpoint_age_ms)} old" if s.checkpoint_age_ms is not None else ""
        rate = f", {s.checkpoints_per_s:.1f} a second" if s.checkpoints_per_s is not None else ""
        row("checkpoint", "none yet" if s.checkpoint is None else f"{s.checkpoint}{age}{rate}")
        row(s.pause_name, "–" if s.pause_ms is None else
            f"{_ms(s.pause_ms)}   p50 {_ms(s.pause_p50_ms)}   p99 {_ms(s.pause_p99_ms)}", [x.pause_ms for x in self.samples])
        runs = "" if s.running_share is None else f", the VM runs {s.running_share:.0%} of the time"
        too_little = s.running_share is not None and s.running_share < TOO_LITTLE
        row("interval", Text(f"{_ms(s.interval_ms)}{runs}", style="bold red" if too_little else ""))
        if s.lease_left_ms is not None:
            row("lease", f"{_ms(s.lease_left_ms)} left", [x.lease_left_ms for x in self.samples])
        if s.dirty_pages is not None and s.total_bytes is not None:
            self._pages_and_bytes(s, s.dirty_pages, s.total_bytes, row)
        strip = min(STRIP_WIDTH, max(16, options.max_width - 22))
        if self.heat is not None and self.heat["blocks"]:
            row("heat", Text(heat_strip(self.heat["recent"], strip), style="bright_red on grey11"))
            row("", block_line(self.heat["blocks"], self._drawn_pages(), strip))
        yield Panel(
            table, title=Text(printable(f"{self.title}: {s.state}")), title_align="left", expand=False,
            border_style="green" if s.state in ("protecting", "running") else "yellow")

    def _pages_and_bytes(self, s: Sample, dirty_pages: int, total_bytes: int, row: Callable[..., None]) -> None:
        each = f" in {s.checkpoints} checkpoints" if s.checkpoints else ""
        row("dirty pages", f"{dirty_pages:,}{each}", [
            # The first sample is all that was before the watch began.
            float(x.dirty_pages) if x.bytes_per_s is not None and x.dirty_pages is not None else None for x in self.samples])
        kinds = Text()
        for kind, count in s.pages.items():
            kinds.append(f"{kind} {count:,}   ", style=KIND_STYLES[kind] if count else "dim")
        row("", kinds)
        row("ratio", "–" if s.compression_ratio is None else
            f"{s.compression_ratio:.3f} bytes sent per byte of dirty pages", [x.compression_ratio for x in self.samples])
        link = f" of {size(s.link_bytes_per_s)}/s that the link gives" if s.link_bytes_per_s else ""
        row("rate", "–" if s.bytes_per_s is None else f"{size(s.bytes_per_s)}/s{link}",
            [x.bytes_per_s for x in self.samples])
        row("streamed", f"{size(total_bytes)} in all")

    def _drawn_pages(self) -> int:
        """Pages that the strip stands for: its last places may have none."""
        assert self.heat is not None
        return int(self.heat["bucket_pages"]) * len(self.heat["recent"])


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.0f} s"


def _kinds(sample: Sample) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sample.pages.items() if count) or "none"
