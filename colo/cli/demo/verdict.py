"""What the embedded demo proved: the world's transcript and the machine's end beside those of an undisturbed machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from colo.emulator import Walk
from colo.emulator.console_observer import ConsoleObserver
from colo.figures.series import percentile
from colo.text import size


class Reference(Protocol):
    """A machine that ran by itself."""

    def result(self) -> tuple[bytes, dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Times in milliseconds."""

    proved: bool
    faults: tuple[str, ...]
    """What was wrong; empty when proved."""
    lines: int
    lines_by_primary: int
    repeated_bytes: int
    """Said again by the secondary, and dropped by the world: it had them already."""
    checkpoints: int
    checkpoints_per_s: float
    pause_p50_ms: float
    pause_p99_ms: float
    pause_parts_ms: dict[str, float]
    """Medians of what a pause is made of."""
    dirty_pages: float
    """Per checkpoint, the median."""
    stream_bytes: int
    silence_ms: float | None
    """From the kill to the first new byte out of the secondary."""
    takeover: dict[str, Any]
    seed: int


def judge(
    walk: Walk, world: ConsoleObserver, undisturbed: Reference, finished: dict[str, Any], takeover: dict[str, Any],
    checkpoints: Sequence[dict[str, Any]], *, killed_s: float, seed: int,
) -> Verdict:
    """Compare, byte for byte."""
    said = bytes(world.transcript)
    printed, end = undisturbed.result()
    computed = b"".join(walk.expected())
    faults = [*world.faults]
    for name, wanted in (("an undisturbed machine prints", printed), ("Python computes", computed)):
        if said != wanted:
            faults.append(f"the transcript is not what {name}: {difference(said, wanted)}")
    faults += [
        f"{name} at the end: {finished[name]}, undisturbed {value}"
        for name, value in end.items() if finished[name] != value
    ]
    fresh = [heard for heard in world.heard if heard.fresh < heard.end]
    second = next((heard for heard in fresh if heard.generation > 0), None)
    by_primary = max((heard.end for heard in fresh if heard.generation == 0), default=0)
    rounds = [report for report in checkpoints if not report["full_copy"]]
    pauses = [report["pause_ms"] for report in rounds]
    span_s = rounds[-1]["at_s"] - rounds[0]["at_s"] if rounds else 0.0
    return Verdict(
        proved=not faults,
        faults=tuple(faults),
        lines=said.count(b"\n"),
        lines_by_primary=said[:by_primary].count(b"\n"),
        repeated_bytes=world.repeated_bytes,
        checkpoints=len(checkpoints),
        checkpoints_per_s=round((len(rounds) - 1) / span_s, 2) if span_s > 0 else 0.0,
        pause_p50_ms=round(percentile(pauses, 50), 3),
        pause_p99_ms=round(percentile(pauses, 99), 3),
        pause_parts_ms={
            part: round(percentile([report[f"{part}_ms"] for report in rounds], 50), 3)
            for part in ("stop", "save", "harvest", "copy")},
        dirty_pages=percentile([report["dirty_pages"] for report in rounds], 50),
        stream_bytes=sum(report["stream_bytes"] for report in checkpoints),
        silence_ms=round((second.at_s - killed_s) * 1000, 3) if second else None,
        takeover=takeover,
        seed=seed,
    )


def difference(said: bytes, wanted: bytes) -> str:
    """Where two transcripts part."""
    ours, theirs = said.split(b"\n"), wanted.split(b"\n")
    for n, (line, other) in enumerate(zip(ours, theirs, strict=False)):
        if line != other:
            return f"line {n} is {line.decode(errors='replace')!r}, not {other.decode(errors='replace')!r}"
    return f"{len(ours) - 1} lines instead of {len(theirs) - 1}"


def proof(verdict: Verdict) -> str:
    """What was proved, or why not."""
    if not verdict.proved:
        return "FAILED: " + "; ".join(verdict.faults)
    return "byte for byte what an undisturbed machine prints, and what Python computes; memory and registers at the end too"


def print_summary(verdict: Verdict, *, json_lines: bool) -> None:
    """What came out of it."""
    if json_lines:
        print(json.dumps({"event": "summary", "data": asdict(verdict)}), flush=True)
        return
    takeover = verdict.takeover
    parts = ", ".join(f"{name} {takeover[f'{name}_ms']:.1f}" for name in ("arbitration", "settle", "load"))
    pause_parts = ", ".join(f"{name} {value:.2f}" for name, value in verdict.pause_parts_ms.items())
    silence = "it had all of it before" if verdict.silence_ms is None else f"{verdict.silence_ms:.0f} ms after the kill"
    print(f"""
checkpoints   {verdict.checkpoints}, {verdict.checkpoints_per_s:.1f} a second, {verdict.dirty_pages:.0f} dirty pages each, \
{size(verdict.stream_bytes)} in all
pause         p50 {verdict.pause_p50_ms:.2f} ms, p99 {verdict.pause_p99_ms:.2f} ms; medians: {pause_parts}
takeover      {takeover['total_ms']:.1f} ms from the loss noticed to the VM running: {parts}
resumed       checkpoint {takeover['checkpoint']}, {takeover['checkpoint_age_ms']:.0f} ms old
the world     heard {verdict.lines} lines, {verdict.lines_by_primary} of them from the primary; the next came from the \
secondary: {silence}
              {verdict.repeated_bytes} bytes were said again, and recognised
the proof     {proof(verdict)}
seed          {verdict.seed}""", flush=True)
