"""How long does a VM stand still for a checkpoint, with our secondary and with QEMU's own?

The same unmodified QEMU primary under KVM, over TCP loopback, meets both in turn, each time with a new VM. A pause is
from QEMU's STOP event to its RESUME event, by its own timestamps. Also: what the time at our secondary goes to.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.session_vm import ColoSecondary, PrimaryVm, qemu_secondary

PAGE_BYTES = 4096
WARM_UP = 5
ATTEMPTS = 20
DIRTIED_FROM = 128 << 20
PARTS = ("ram_ms", "device_ms", "validate_ms")


@dataclass
class Pauses:
    """What the checkpoints of one kind of secondary were like."""

    pauses_ms: list[float] = field(default_factory=list)
    round_medians_ms: list[float] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)


def measure(
    into: Pauses, qemu: str, ours: bool, folder: Path, ram_dir: Path, *, checkpoints: int, dirty_pages: int, delay_ms: int
) -> None:
    """One round: a new primary and secondary, some checkpoints to warm up, then ``checkpoints``."""
    with contextlib.ExitStack() as stack:
        vm = stack.enter_context(PrimaryVm(qemu, 512, folder))
        follower = None
        if ours:
            follower = stack.enter_context(ColoSecondary(ram_dir / folder.name))
            uri = follower.uri
        else:
            uri = stack.enter_context(qemu_secondary(vm.line, folder))
        vm.protect(uri, delay_ms)
        fill = itertools.cycle(range(1, 256))
        pauses = []
        for index in range(WARM_UP + checkpoints):
            if dirty_pages:
                dirty(vm, dirty_pages, fill)
            pause = vm.next_pause_ms()
            if index >= WARM_UP:
                pauses.append(pause)
    into.pauses_ms += pauses
    into.round_medians_ms.append(statistics.median(pauses))
    if follower is not None:
        # One more checkpoint may have begun, and some were not measured: those of the last pauses are meant.
        reports = [r for r in follower.checkpoints[1:] if r["normal_pages"] >= dirty_pages]
        into.reports += reports[WARM_UP : WARM_UP + checkpoints]


def dirty(vm: PrimaryVm, pages: int, fill: Iterator[int]) -> None:
    """Dirty ``pages`` pages between two checkpoints, again if one came in between.

    QEMU does not count pages while in COLO: what is known of either secondary's pauses is that all were dirty by then.
    """
    assert vm.meter is not None
    for _ in range(ATTEMPTS):
        vm.memset(DIRTIED_FROM, pages * PAGE_BYTES, next(fill))
        if vm.meter.stopped_at_us is None and vm.pauses.empty():
            return
        vm.next_pause_ms()
    raise TimeoutError(f"in {ATTEMPTS} attempts the pages were never all dirty before the next checkpoint began")


def compare(
    qemu: str, tmp_path: Path, ram_dir: Path, *, rounds: int, checkpoints: int, dirty_pages: int, delay_ms: int
) -> tuple[Pauses, Pauses]:
    """(with our secondary, with QEMU's own)."""
    found = {True: Pauses(), False: Pauses()}
    for round_ in range(rounds):
        for ours in (True, False) if round_ % 2 else (False, True):
            measure(
                found[ours], qemu, ours, tmp_path / f"{round_}{'ours' if ours else 'qemu'}", ram_dir,
                checkpoints=checkpoints, dirty_pages=dirty_pages, delay_ms=delay_ms)
    return found[True], found[False]


def note(figure: Callable[..., Any], what: str, ours: Pauses, theirs: Pauses, **bar: Any) -> None:
    ratio = statistics.median(a / b for a, b in zip(ours.round_medians_ms, theirs.round_medians_ms, strict=True))
    figure(
        f"pause p50, {what}", statistics.median(ours.pauses_ms), "ms", limit=statistics.median(theirs.pauses_ms),
        limit_name="QEMU's own secondary", ratio=ratio, samples=ours.pauses_ms, limit_samples=theirs.pauses_ms, **bar,
    )
    figure(
        f"pause p99, {what}", percentile_99(ours.pauses_ms), "ms", limit=percentile_99(theirs.pauses_ms),
        limit_name="QEMU's own secondary", ratio=percentile_99(ours.pauses_ms) / percentile_99(theirs.pauses_ms),
    )
    parts = {name.removesuffix("_ms"): statistics.median(r[name] for r in ours.reports) for name in PARTS}
    held = statistics.median(r["held_ms"] for r in ours.reports)
    parts["acknowledge"] = max(0.0, held - sum(parts.values()))
    figure(f"of it at the secondary, {what}", held, "ms", parts=parts, samples=[r["held_ms"] for r in ours.reports])


def percentile_99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


@pytest.fixture
def rounds(quick: bool) -> int:
    return 2 if quick else 4


def test_small_dirty_set(
    figure: Callable[..., Any], qemu: str, tmp_path: Path, ram_dir: Path, rounds: int, quick: bool
) -> None:
    ours, theirs = compare(
        qemu, tmp_path, ram_dir, rounds=rounds, checkpoints=30 if quick else 60, dirty_pages=0, delay_ms=30)
    pages = statistics.median(report["normal_pages"] for report in ours.reports)
    assert 0 < pages < 100, pages
    note(figure, "under 100 dirty pages", ours, theirs, bar=5.0)


def test_25000_dirty_pages(
    figure: Callable[..., Any], qemu: str, tmp_path: Path, ram_dir: Path, rounds: int, quick: bool
) -> None:
    ours, theirs = compare(
        qemu, tmp_path, ram_dir, rounds=rounds, checkpoints=10 if quick else 20, dirty_pages=25_000, delay_ms=300)
    pages = statistics.median(report["normal_pages"] for report in ours.reports)
    assert 25_000 <= pages < 25_200, pages
    note(figure, "25,000 dirty pages", ours, theirs, bar=0.6, bar_on="ratio")
