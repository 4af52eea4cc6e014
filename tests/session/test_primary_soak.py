"""A primary and its secondary for half an hour at 20 checkpoints a second: neither grows."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.bench_primary import BenchVm, secondary_main
from colo.session.primary import Primary, PrimaryConfig

SECONDS = float(os.environ.get("COLO_SOAK_S", "1800"))
WARM_UP_S = min(120.0, SECONDS / 4)
MEMORY_BYTES = 256 << 20
INTERVAL_MS = 50.0
DIRTY_PAGES = 1000


@pytest.fixture
def secondary() -> Iterator[tuple[str, int]]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=secondary_main, args=(MEMORY_BYTES, True, theirs))
    child.start()
    assert child.pid is not None
    yield pipe.recv(), child.pid
    pipe.send("end")
    child.join(10)
    child.kill()


def resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("options", [{"xbzrle": "shadow"}], ids=["shadow"])
def test_resident_memory_is_flat(secondary: tuple[str, int], options: dict[str, Any]) -> None:
    address, pid = secondary
    vm = BenchVm(MEMORY_BYTES)
    vm.fill(1.0)
    draw = np.random.default_rng(11)
    samples: list[tuple[int, int]] = []
    with Primary(vm, PrimaryConfig(address, "none", interval_ms=INTERVAL_MS, **options)) as primary:
        primary.start()
        primary.checkpoint(120)
        began = time.monotonic()
        looked = 0.0
        made = primary.statistics.checkpoints
        while (ran := time.monotonic() - began) < SECONDS:
            vm.write(draw, DIRTY_PAGES)
            time.sleep(INTERVAL_MS / 1000)
            if ran > WARM_UP_S and ran - looked > (SECONDS - WARM_UP_S) / 200:
                looked = ran
                samples.append((resident_bytes(os.getpid()), resident_bytes(pid)))
        assert primary.statistics.losses == 0
        per_s = (primary.statistics.checkpoints - made) / SECONDS
        primary.stop()
    print(f"{per_s:.1f} checkpoints/s; resident MiB: {[tuple(n >> 20 for n in pair) for pair in samples[::20]]}")
    for side, values in zip(("primary", "secondary"), zip(*samples, strict=True), strict=True):
        half = len(values) // 2
        early, late = np.median(values[:half]), np.median(values[half:])
        assert late <= early * 1.01, f"the {side} grew from {early:.0f} to {late:.0f} bytes"
        assert max(values) <= early * 1.01, f"the {side} had {max(values)} bytes at one time, {early:.0f} at most else"
