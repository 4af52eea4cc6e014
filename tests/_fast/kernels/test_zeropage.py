"""A byte that is not zero is found wherever it is, at every SIMD level."""

from __future__ import annotations

import array

import numpy as np
import pytest

from colo._fast.kernels import kernels, zeropage

LEVELS = kernels.levels()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 127, 128, 129, 200, 255, 300, 1024, 1111])
def test_each_single_byte_is_seen_and_none_outside(level: str, size: int) -> None:
    memory = np.full(size + 130, 0xFF, np.uint8)
    middle = memory[65 : 65 + size]
    middle[:] = 0
    assert zeropage.is_zero(middle, level=level)
    for at in range(size):
        middle[at] = 1 << at % 8
        assert not zeropage.is_zero(middle, level=level)
        middle[at] = 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("page_bytes", [1024, 4096, 65536])
def test_the_bitmap_has_exactly_the_zero_pages(level: str, page_bytes: int) -> None:
    rng = np.random.default_rng(3)
    pages = 130
    memory = np.zeros(pages * page_bytes, np.uint8)
    dirty = rng.random(pages) < 0.5
    for page in np.flatnonzero(dirty):
        memory[page * page_bytes + rng.integers(page_bytes)] = rng.integers(1, 256)
    bitmap = np.zeros(3, np.uint64)
    assert zeropage.is_zero_pages(memory, page_bytes, bitmap, level=level) == (~dirty).sum()
    bits = np.unpackbits(bitmap.view(np.uint8), bitorder="little")
    assert (bits[:pages] == ~dirty).all()
    assert not bits[pages:].any()


def test_bits_that_were_set_stay() -> None:
    bitmap = array.array("Q", [1 << 63])
    assert zeropage.is_zero_pages(bytes(1024), 1024, bitmap) == 1
    assert bitmap[0] == 1 << 63 | 1


def test_bad_input_is_refused() -> None:
    bitmap = array.array("Q", [0])
    with pytest.raises(ValueError, match="whole number"):
        zeropage.is_zero_pages(bytes(5000), 4096, bitmap)
    with pytest.raises(ValueError, match="power of two"):
        zeropage.is_zero_pages(bytes(4096), 4095, bitmap)
    with pytest.raises(ValueError, match="2 words"):
        zeropage.is_zero_pages(bytes(4096), 4096, array.array("Q", [0, 0]))
    with pytest.raises((ValueError, BufferError)):
        zeropage.is_zero_pages(bytes(4096), 4096, bytes(8))
    shared = bytearray(4096)
    with pytest.raises(ValueError, match="overlap"):
        zeropage.is_zero_pages(shared, 4096, memoryview(shared)[:8].cast("Q"))
    with pytest.raises(ValueError, match="SIMD level"):
        zeropage.is_zero(b"", level="")
    assert bitmap[0] == 0
