"""What only the trackers by content do: the shadow and who refreshes it, and the hash."""

from __future__ import annotations

import random

import numpy as np
import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.trackers.base import ProcessMemory
from colo._fast.trackers.hash import HashTracker
from colo._fast.trackers.shadow import ShadowTracker
from colo.errors import TrackerError, Unsupported

PAGE = 4096


def harvest(tracker: ShadowTracker | HashTracker) -> list[tuple[int, int]]:
    bitmap = DirtyBitmap(tracker.pages)
    tracker.harvest(bitmap)
    return bitmap.runs()


@pytest.mark.parametrize("kind", [ShadowTracker, HashTracker])
@pytest.mark.parametrize("page_bytes", [1024, 4096, 65536])
def test_any_single_bit_that_flips_is_found(kind: type[ShadowTracker | HashTracker], page_bytes: int) -> None:
    rng = random.Random(page_bytes)
    memory = np.frombuffer(bytearray(rng.randbytes(16 * page_bytes)), np.uint8)
    with kind(memory, page_bytes=page_bytes) as tracker:
        anywhere = [rng.randrange(len(memory)) for _ in range(150)]
        for at in [0, 16 * page_bytes - 1, page_bytes - 1, page_bytes, *anywhere]:
            memory[at] ^= 1 << rng.randrange(8)
            assert harvest(tracker) == [(at // page_bytes, 1)]


@pytest.mark.parametrize("kind", [ShadowTracker, HashTracker])
def test_a_page_written_with_what_it_held_is_not_dirty(kind: type[ShadowTracker | HashTracker]) -> None:
    memory = bytearray(8 * PAGE)
    with kind(memory) as tracker:
        memory[PAGE] = 1
        memory[PAGE] = 0
        assert harvest(tracker) == []


@pytest.mark.parametrize("kind", [ShadowTracker, HashTracker])
def test_another_processs_memory_is_refused(kind: type[ShadowTracker | HashTracker]) -> None:
    with pytest.raises(Unsupported, match="this process"):
        kind(ProcessMemory(1, PAGE, PAGE))


def test_harvest_refreshes_the_shadow() -> None:
    memory = bytearray(600 * PAGE)
    rng = random.Random(2)
    with ShadowTracker(memory) as tracker:
        for _ in range(10):
            for at in rng.sample(range(len(memory)), 300):
                memory[at] = rng.randrange(256)
            harvest(tracker)
            assert tracker.shadow == memory
            assert harvest(tracker) == []
    assert tracker.shadow is None


def test_without_refresh_the_shadow_keeps_the_old_page_until_it_is_asked_for() -> None:
    memory = bytearray(b"a" * 200 * PAGE)
    with ShadowTracker(memory, refresh=False) as tracker:
        memory[3 * PAGE] = memory[150 * PAGE] = memory[199 * PAGE] = 1
        assert harvest(tracker) == [(3, 1), (150, 1), (199, 1)]
        assert tracker.shadow[3 * PAGE] == ord("a")
        assert harvest(tracker) == [(3, 1), (150, 1), (199, 1)]
        some = DirtyBitmap(200)
        some.set(3)
        some.set(199)
        tracker.refresh(some)
        assert tracker.shadow[3 * PAGE] == 1
        assert tracker.shadow[150 * PAGE] == ord("a")
        assert harvest(tracker) == [(150, 1)]
    with pytest.raises(TrackerError, match="not started"):
        tracker.refresh(some)


def test_the_callers_own_shadow_is_used() -> None:
    memory, shadow = bytearray(b"x" * 4 * PAGE), bytearray(4 * PAGE)
    with ShadowTracker(memory, shadow=shadow) as tracker:
        assert shadow == memory
        memory[PAGE] = 0
        assert harvest(tracker) == [(1, 1)]
        assert shadow == memory
        with pytest.raises(BufferError):
            shadow.extend(b"held")
    shadow.extend(b"free again")


def test_a_shadow_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a shadow of 4096 bytes for a block of 8192"):
        ShadowTracker(bytearray(2 * PAGE), shadow=bytearray(PAGE))
    with pytest.raises(BufferError, match="read-only"):
        ShadowTracker(bytearray(PAGE), shadow=bytes(PAGE))
    shadow = bytearray(PAGE)
    tracker = ShadowTracker(bytearray(PAGE), shadow=shadow)
    shadow.extend(bytes(PAGE))
    with pytest.raises(ValueError, match="a shadow of 8192 bytes"):
        tracker.start()
    assert not tracker.started
