"""How near to memory's own limits do the kernels get, at every SIMD level?

``python -m benchmarks.limits [--rounds N] [--level LEVEL]... [--hot-only]``. Times ``memcmp``, ``memcpy`` and plain reads of one
and two streams, and in the same rounds each kernel on each pattern of change, and prints ratios to the limit:
medians of paired rounds, which hold on a busy machine where times do not. Hot is 64 pairs of pages, which fit in a
core's second-level cache; cold is 256 MiB of them. Hot samples, the limit's too, begin with passes that are not timed:
what ran before has taken the cache, and a CPU that saw no 512-bit instructions for about 0.7 ms runs them at half speed
for the first 0.1 ms (seen on an Ice Lake Xeon).
"""

from __future__ import annotations

import argparse
import mmap
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colo._fast.kernels import kernels, xbzrle
from colo._fast.kernels.timing import time_pages

PAGE_BYTES = 4096
HOT_PAGES = 64
COLD_PAGES = (256 << 20) // (2 * PAGE_BYTES)
HOT_REPEATS = 12
HOT_WARM_UP_US = 200
KIB = 1024

Pages = NDArray[np.uint8]


def _scattered(count: int) -> Callable[[Pages, np.random.Generator], None]:
    def change(page: Pages, rng: np.random.Generator) -> None:
        page[rng.integers(0, PAGE_BYTES, count)] ^= 0x5A

    return change


def _runs(count: int, length: int) -> Callable[[Pages, np.random.Generator], None]:
    def change(page: Pages, rng: np.random.Generator) -> None:
        room = PAGE_BYTES // count
        for i in range(count):
            start = i * room + int(rng.integers(0, room - length))
            page[start : start + length] ^= 0x5A

    return change


def _share(share: float) -> Callable[[Pages, np.random.Generator], None]:
    def change(page: Pages, rng: np.random.Generator) -> None:
        page[rng.random(PAGE_BYTES) < share] ^= 0x5A

    return change


PATTERNS: dict[str, Callable[[Pages, np.random.Generator], None]] = {
    "identical": _scattered(0),
    "1 byte": _scattered(1),
    "8 scattered": _scattered(8),
    "64 scattered": _scattered(64),
    "one run of 256": _runs(1, 256),
    "16 runs of 16": _runs(16, 16),
    "10 % random": _share(0.1),
    "50 % random": _share(0.5),
    "all changed": _share(1.0),
}


def aligned(size_bytes: int) -> Pages:
    """Memory as a VM's is: whole pages, huge ones if there are any."""
    memory = mmap.mmap(-1, size_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def page_pairs(pattern: str, pages: int, seed: int = 1) -> tuple[Pages, Pages]:
    """``pages`` random pages, and the same after a change of that pattern. Beyond 1024 pages contents repeat."""
    rng = np.random.default_rng(seed)
    distinct = min(pages, 1024)
    old, new = aligned(pages * PAGE_BYTES), aligned(pages * PAGE_BYTES)
    first = old[: distinct * PAGE_BYTES]
    first[:] = rng.integers(0, 256, first.size, dtype=np.uint8)
    changed = new[: first.size].reshape(distinct, PAGE_BYTES)
    changed[:] = first.reshape(distinct, PAGE_BYTES)
    for page in changed:
        PATTERNS[pattern](page, rng)
    for at in range(first.size, old.size, first.size):
        n = min(first.size, old.size - at)
        old[at : at + n], new[at : at + n] = first[:n], new[:n]
    return old, new


@dataclass(frozen=True)
class Timed:
    """Nanoseconds per page, a sample per round."""

    ns: list[float]
    limit_ns: list[float]

    @property
    def median_ns(self) -> float:
        return statistics.median(self.ns)

    @property
    def median_limit_ns(self) -> float:
        return statistics.median(self.limit_ns)

    @property
    def ratio(self) -> float:
        """Time over the limit's time."""
        return statistics.median(a / b for a, b in zip(self.ns, self.limit_ns, strict=True))

    @property
    def best_ratio(self) -> float:
        """The fastest round of each: what a quiet machine gives."""
        return min(self.ns) / min(self.limit_ns)


def in_pairs(limit: Callable[[], float], works: dict[str, Callable[[], float]], rounds: int) -> dict[str, Timed]:
    """Time each work beside the limit, in rounds. The first round warms up."""
    taken: dict[str, Timed] = {name: Timed([], []) for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            limit_ns, ns = limit(), work()
            if round_:
                taken[name].ns.append(ns)
                taken[name].limit_ns.append(limit_ns)
    return taken


def sample(work: str, old: Pages, new: Pages, **more: Any) -> float:
    """ns per page of one sample: hot pages after a warm-up, several times over."""
    if old.size <= HOT_PAGES * PAGE_BYTES:
        # A step changes its shadow, so it has one pass.
        repeats = 1 if work == "step" else HOT_REPEATS
        return time_pages(work, old, new, repeats=repeats, warm_up_us=HOT_WARM_UP_US, **more)
    return time_pages(work, old, new, **more)


def encode_ratios(pattern: str, pages: int, levels: list[str], rounds: int) -> dict[str, Timed]:
    """Encoding at each level, against memcmp of as many equal pages."""
    old, new = page_pairs(pattern, pages)
    same_a, same_b = page_pairs("identical", pages)
    return in_pairs(
        partial(sample, "memcmp", same_a, same_b),
        {level: partial(sample, "encode", old, new, level=level) for level in levels},
        rounds,
    )


def encodings(old: Pages, new: Pages) -> tuple[Pages, NDArray[np.int32]]:
    """Each page's encoding in an equal share of an arena, and the lengths."""
    pages, share = old.size // PAGE_BYTES, PAGE_BYTES + 128
    arena, lengths = np.zeros(pages * share, np.uint8), np.zeros(pages, np.int32)
    for page in range(pages):
        at = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        encoded = xbzrle.encode(old[at], new[at])
        if encoded is not None:
            arena[page * share : page * share + len(encoded)] = np.frombuffer(encoded, np.uint8)
            lengths[page] = len(encoded)
    return arena, lengths


def decode_ratios(pattern: str, pages: int, rounds: int) -> dict[str, Timed]:
    """Decoding against memcpy of each page into one hot buffer. All levels decode by the same code."""
    old, new = page_pairs(pattern, pages)
    arena, lengths = encodings(old, new)
    return in_pairs(
        partial(sample, "memcpy", old, new),
        {
            work: partial(sample, work, old, new, arena=arena, lengths=lengths)
            for work in ("decode", "check")
        },
        rounds,
    )


def step_ratios(pattern: str, pages: int, levels: list[str], rounds: int) -> dict[str, Timed]:
    """The whole step at each level against memcmp; the shadow is put back before each round."""
    old, new = page_pairs(pattern, pages)
    shadow = aligned(old.size)
    same_a, same_b = page_pairs("identical", pages)

    def step(level: str) -> float:
        shadow[:] = old
        return sample("step", shadow, new, level=level)

    return in_pairs(
        partial(sample, "memcmp", same_a, same_b),
        {level: partial(step, level) for level in levels},
        rounds,
    )


def read_ratios(work: str, pages: int, levels: list[str], rounds: int) -> dict[str, Timed]:
    """``is_zero`` and ``scan_hash`` against a plain read of one stream, ``scan`` of two."""
    old, new = aligned(pages * PAGE_BYTES), aligned(pages * PAGE_BYTES)
    old[:] = new[:] = 0
    limit = "read two" if work == "scan" else "read one"
    return in_pairs(
        partial(sample, limit, old, new),
        {level: partial(sample, work, old, new, level=level) for level in levels},
        rounds,
    )


def raw_limits(pages: int, rounds: int) -> dict[str, float]:
    """ns per page of memory's own limits."""
    old, new = page_pairs("identical", pages)
    names = ("memcmp", "memcpy", "read one", "read two")
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            taken[name].append(sample(name, old, new))
    return {name: statistics.median(samples[1:]) for name, samples in taken.items()}


def print_row(name: str, timed: dict[str, Timed]) -> None:
    cells = "  ".join(f"{t.median_ns:7.0f} ns {t.ratio:6.2f} ({t.best_ratio:5.2f})" for t in timed.values())
    print(f"{name:28} {next(iter(timed.values())).median_limit_ns:7.0f} ns  {cells}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="paired rounds when hot; a third of them when cold")
    parser.add_argument("--level", action="append", choices=kernels.levels(), help="repeatable; default: all")
    parser.add_argument("--hot-only", action="store_true")
    options = parser.parse_args()
    levels = options.level or list(kernels.levels())
    print("Each cell: time per page, ratio to the limit (of the fastest rounds). A ratio is time over the limit's time.")
    for heat, pages in (("hot", HOT_PAGES), ("cold", COLD_PAGES)):
        if heat == "cold" and options.hot_only:
            continue
        rounds = options.rounds if heat == "hot" else max(options.rounds // 3, 3)
        print(f"\n{heat}, {pages} pairs:", ", ".join(f"{n} {ns:.0f} ns" for n, ns in raw_limits(pages, rounds).items()))
        print(f"{'':28} {'limit':>10}  " + "  ".join(f"{level:^25}" for level in levels))
        for pattern in PATTERNS:
            print_row(f"encode, {pattern}", encode_ratios(pattern, pages, levels, rounds))
        for pattern in PATTERNS:
            print_row(f"step, {pattern}", step_ratios(pattern, pages, levels, rounds))
        for work in ("is_zero", "scan", "scan_hash"):
            print_row(work, read_ratios(work, pages, levels, rounds))
        print(f"{'':28} {'limit':>10}  {'decode':^25}  {'check':^25}")
        for pattern in list(PATTERNS)[1:-1]:
            print_row(f"decode, {pattern}", decode_ratios(pattern, min(pages, 4096), rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
