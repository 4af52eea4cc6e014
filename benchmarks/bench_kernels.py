"""How near do the kernels get to memory's own limits, hot and cold, at every SIMD level?

Encoding and the fused step against memcmp of two equal pages, decoding against memcpy of a page into a hot buffer, zero
checks and scans against plain reads of one and of two streams. Loops are C, rounds are paired. The table of
``python -m benchmarks.limits`` has the same figures for one's own eyes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks import limits
from benchmarks.limits import COLD_PAGES, HOT_PAGES, HOT_WARM_UP_US, PAGE_BYTES, PATTERNS, Timed
from colo._fast.kernels import kernels, scan, xbzrle
from colo._fast.kernels.timing import time_pages

# Times memcmp of two equal pages, hot.
ENCODE_BARS = {
    "avx512": dict(zip(PATTERNS, (1.2, 1.45, 1.85, 3.6, 1.6, 2.35, 8.5, 11.5, 1.3), strict=True)),
    "avx2": dict(zip(PATTERNS, (1.6, 1.7, 2.1, 4.6, 1.9, 2.7, 15, 25, 2.7), strict=True)),
}
# Times memcpy of a page into a hot buffer, hot.
DECODE_BARS = {
    "1 byte": 0.2, "8 scattered": 0.75, "64 scattered": 3.8, "one run of 256": 0.35, "16 runs of 16": 1.4,
    "10 % random": 19,
}
SPARSE = ("identical", "1 byte", "8 scattered")
HEATS = {"hot": HOT_PAGES, "cold": COLD_PAGES}
GIB_PAGES = (1 << 30) // PAGE_BYTES
BATCH_PAGES = 512


def levels_for(quick: bool) -> list[str]:
    return [kernels.active_level()] if quick else list(kernels.levels())


def rounds_for(heat: str, quick: bool) -> int:
    return {"hot": 9 if quick else 101, "cold": 3 if quick else 15}[heat]


def note(figure: Callable[..., Any], name: str, timed: Timed, limit: str, **more: Any) -> None:
    figure(
        name, timed.median_ns, "ns/page", limit=timed.median_limit_ns, limit_name=limit, ratio=timed.ratio,
        bar_on="ratio", samples=timed.ns, limit_samples=timed.limit_ns, **more,
    )


@pytest.mark.parametrize("heat", HEATS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_encode(figure: Callable[..., Any], quick: bool, pattern: str, heat: str) -> None:
    if quick and heat == "cold" and pattern not in SPARSE:
        pytest.skip("sparse pages only when quick")
    for level, timed in limits.encode_ratios(pattern, HEATS[heat], levels_for(quick), rounds_for(heat, quick)).items():
        bar = ENCODE_BARS.get(level, {}).get(pattern) if heat == "hot" else None
        if heat == "cold" and pattern in SPARSE and level in ENCODE_BARS:
            bar = 1 / 0.9
        note(figure, f"encode, {pattern}, {heat}, {level}", timed, "memcmp", bar=bar)


@pytest.mark.parametrize("heat", HEATS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_step(figure: Callable[..., Any], quick: bool, pattern: str, heat: str) -> None:
    """Reading live memory once, encoding, and bringing the shadow up to date."""
    if quick and (heat == "cold" or pattern not in SPARSE):
        pytest.skip("sparse pages, hot, only when quick")
    for level, timed in limits.step_ratios(pattern, HEATS[heat], levels_for(quick), rounds_for(heat, quick)).items():
        note(figure, f"step, {pattern}, {heat}, {level}", timed, "memcmp")


@pytest.mark.parametrize("pattern", DECODE_BARS)
def test_decode(figure: Callable[..., Any], quick: bool, pattern: str) -> None:
    for heat, pages in (("hot", HOT_PAGES), ("cold", 8192)):
        if quick and heat == "cold":
            continue
        timed = limits.decode_ratios(pattern, pages, rounds_for(heat, quick))
        note(figure, f"decode, {pattern}, {heat}", timed["decode"], "memcpy",
             bar=DECODE_BARS[pattern] if heat == "hot" else None)
        note(figure, f"check, {pattern}, {heat}", timed["check"], "memcpy")


@pytest.mark.parametrize("heat", HEATS)
def test_zero_pages(figure: Callable[..., Any], quick: bool, heat: str) -> None:
    for level, timed in limits.read_ratios("is_zero", HEATS[heat], levels_for(quick), rounds_for(heat, quick)).items():
        bar = 1 / 0.9 if heat == "cold" and level in ENCODE_BARS else None
        note(figure, f"zero page, {heat}, {level}", timed, "reading one stream", bar=bar)


def test_scan(figure: Callable[..., Any], quick: bool) -> None:
    """Against a shadow copy, and against keyed hashes, which read half as much."""
    pages = COLD_PAGES if quick else GIB_PAGES
    for level, timed in limits.read_ratios("scan", pages, levels_for(quick), 3 if quick else 5).items():
        bar = 1 / 0.9 if level in ENCODE_BARS else None
        note(figure, f"scan, {pages >> 8} MiB, {level}", timed, "reading two streams", bar=bar)
    for level, timed in limits.read_ratios("scan_hash", COLD_PAGES, levels_for(quick), 3 if quick else 5).items():
        note(figure, f"scan by hash, 128 MiB, {level}", timed, "reading one stream")


def per_call_ns(call: Callable[[], object], calls: int, rounds: int) -> list[float]:
    samples = []
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter_ns() - begun) / calls)
    return samples


def test_calling(figure: Callable[..., Any], quick: bool) -> None:
    """What the way through Python costs: a call that finds nothing to do, and a page's share of a batch."""
    rounds = 9 if quick else 41
    lengths, arena = np.zeros(BATCH_PAGES, np.int32), np.zeros(1 << 20, np.uint8)
    nothing = np.zeros(0, np.uint8)
    empty = per_call_ns(lambda: xbzrle.encode_pages(nothing, nothing, PAGE_BYTES, arena, lengths), 2000, rounds)
    figure("empty call of encode_pages()", statistics.median(empty) / 1000, "µs", bar=1.5, samples=[n / 1000 for n in empty])
    bitmap = np.zeros(0, np.uint64)
    scanned = per_call_ns(lambda: scan.scan_shadow(nothing, nothing, bitmap), 2000, rounds)
    figure("empty call of scan_shadow()", statistics.median(scanned) / 1000, "µs", bar=1.5)

    # A page's share: what a batch takes beyond an empty call and the same kernel in a loop of C, on the same pages. Each
    # round has all three, close together, as clocks drift. Small pages compared with themselves: the batch must stay
    # well inside the cache, or the figure is about that.
    old, _ = limits.page_pairs("identical", BATCH_PAGES * 1024 // PAGE_BYTES)
    extra = []
    for _ in range(20 * rounds):
        bare = time_pages("encode", old, old, 1024, repeats=4, warm_up_us=HOT_WARM_UP_US)
        # Two batches, the first as its warm-up.
        batch = per_call_ns(lambda: xbzrle.encode_pages(old, old, 1024, arena, lengths), 4, 2)[1]
        nothing_ns = per_call_ns(lambda: xbzrle.encode_pages(nothing, nothing, 1024, arena, lengths), 16, 1)[0]
        extra.append((batch - nothing_ns) / BATCH_PAGES - bare)
    figure(
        f"a page's share of the call, batches of {BATCH_PAGES}", max(statistics.median(extra), 0.0), "ns/page", bar=2.0,
        samples=extra,
    )


def test_batches(benchmark: Any) -> None:
    """For pytest-benchmark's own records: a batch of sparse pages by the public call."""
    old, new = limits.page_pairs("8 scattered", BATCH_PAGES)
    lengths, arena = np.zeros(BATCH_PAGES, np.int32), np.zeros(1 << 20, np.uint8)
    benchmark.extra_info["level"] = kernels.active_level()
    done, _ = benchmark(xbzrle.encode_pages, old, new, PAGE_BYTES, arena, lengths)
    assert done == BATCH_PAGES
