"""Does a secondary's memory stay at its RAM image and one staged checkpoint, after thousands of them?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory_use import ALLOWED_BESIDES_BYTES, MIB, memory_over


def test_memory(figure: Callable[..., Any], ram_dir: Path, quick: bool) -> None:
    checkpoints = 200 if quick else 2000
    use = memory_over(checkpoints, ram_dir, ram_mib=64 if quick else 256)
    last = use.samples[-1]
    figure(
        f"beyond RAM image and largest checkpoint, {checkpoints} checkpoints", use.besides_bytes / MIB, "MiB",
        bar=ALLOWED_BESIDES_BYTES / MIB, samples=[s.taken_bytes / MIB for s in use.samples],
        parts={
            "RAM image": use.ram_bytes / MIB, "largest checkpoint": use.largest_checkpoint_bytes / MIB,
            "anonymous": last.anonymous_bytes / MIB, "image storage": last.image_bytes / MIB,
            "RSS": last.rss_bytes / MIB,
        },
    )
    figure("growth of anonymous memory after the first tenth", use.growth_bytes / MIB, "MiB")
