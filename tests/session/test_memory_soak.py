"""A secondary's memory after many checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory_use import ALLOWED_BESIDES_BYTES, MIB, memory_over


@pytest.fixture
def ram_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ram")


def test_memory_stays_within_image_one_checkpoint_and_100_mib(ram_dir: Path) -> None:
    use = memory_over(150, ram_dir, ram_mib=32)
    assert use.besides_bytes <= ALLOWED_BESIDES_BYTES


@pytest.mark.soak
def test_memory_is_bounded_and_does_not_grow_over_10000_checkpoints(ram_dir: Path) -> None:
    use = memory_over(10_000, ram_dir)
    assert use.besides_bytes <= ALLOWED_BESIDES_BYTES
    assert use.growth_bytes <= 16 * MIB
