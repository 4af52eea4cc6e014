"""Scans find each changed byte, by a shadow copy and by keyed hashes, and set no other bit."""

from __future__ import annotations

import array
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo._fast.kernels import kernels, scan
from tests._fast import oracle

LEVELS = kernels.levels()


def words(pages: int) -> np.ndarray:
    return np.zeros((pages + 63) // 64, np.uint64)


def bits(bitmap: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(bitmap.view(np.uint8), bitorder="little")).tolist()


@pytest.mark.parametrize("level", LEVELS)
def test_every_single_byte_is_seen(level: str) -> None:
    memory = np.random.default_rng(1).integers(0, 256, 3 * 1024, dtype=np.uint8)
    shadow = memory.copy()
    key = scan.hash_key(1024)
    hashes, bitmap = np.zeros(6, np.uint64), words(3)
    scan.scan_hashes(memory, hashes, key, bitmap, 1024, level=level)
    for at in range(memory.size):
        memory[at] ^= 1 << at % 8
        bitmap[:] = 0
        assert scan.scan_shadow(memory, shadow, bitmap, 1024, level=level) == 1
        assert bits(bitmap) == [at // 1024]
        bitmap[:] = 0
        assert scan.scan_hashes(memory, hashes, key, bitmap, 1024, level=level) == 1
        assert bits(bitmap) == [at // 1024]
        shadow[at] = memory[at]
    bitmap[:] = 0
    assert scan.scan_shadow(memory, shadow, bitmap, 1024, level=level) == 0
    assert scan.scan_hashes(memory, hashes, key, bitmap, 1024, level=level) == 0
    assert not bitmap.any()


@given(st.sets(st.integers(0, 199)), st.integers(0, 200), st.integers(0, 200), st.sampled_from([1024, 4096]))
@settings(max_examples=60, deadline=None)
def test_ranges_set_the_block_s_bits(changed: set[int], first: int, count: int, page_bytes: int) -> None:
    memory = np.zeros(200 * page_bytes, np.uint8)
    shadow = memory.copy()
    for page in changed:
        memory[page * page_bytes + page * 7 % page_bytes] = 1
    count = min(count, 200 - first)
    expected = sorted(page for page in changed if first <= page < first + count)
    key = scan.hash_key(page_bytes)
    for level in LEVELS:
        bitmap = words(200)
        found = scan.scan_shadow(memory, shadow, bitmap, page_bytes, first_page=first, pages=count, level=level)
        assert (found, bits(bitmap)) == (len(expected), expected)
        hashes = np.zeros(400, np.uint64)
        scan.scan_hashes(shadow, hashes, key, words(200), page_bytes, level=level)
        bitmap = words(200)
        found = scan.scan_hashes(
            memory, hashes, key, bitmap, page_bytes, first_page=first, pages=count, level=level
        )
        assert (found, bits(bitmap)) == (len(expected), expected)


@pytest.mark.parametrize("page_bytes", [1024, 4096, 65536])
def test_all_levels_hash_as_the_oracle_does(page_bytes: int) -> None:
    memory = np.random.default_rng(2).integers(0, 256, 2 * page_bytes, dtype=np.uint8)
    memory[page_bytes : page_bytes + 64] = 0xFF
    key = scan.hash_key(page_bytes)
    page = memory.tobytes()
    expected = [*oracle.page_hash(page[:page_bytes], key), *oracle.page_hash(page[page_bytes:], key)]
    for level in LEVELS:
        hashes = np.zeros(4, np.uint64)
        assert scan.scan_hashes(memory, hashes, key, words(2), page_bytes, level=level) == 2
        assert hashes.tolist() == expected


def test_no_two_keys_are_the_same() -> None:
    assert len({scan.hash_key() for _ in range(100)}) == 100
    assert len(scan.hash_key(1024)) == 1024 + 64


def test_swapped_words_and_shifted_content_change_the_hash() -> None:
    """What a plain sum would miss."""
    base = np.random.default_rng(4).integers(0, 2**32, 1024, dtype=np.uint32)
    key = scan.hash_key()
    hashes = np.zeros(2, np.uint64)
    for other in (np.roll(base, 1), np.roll(base, 2), base[::-1].copy(), base + np.uint32(1)):
        scan.scan_hashes(base.view(np.uint8), hashes, key, words(1))
        assert scan.scan_hashes(other.view(np.uint8), hashes, key, words(1)) == 1


def test_bad_input_is_refused_and_the_bitmap_stays() -> None:
    memory, bitmap, hashes, key = bytearray(8192), array.array("Q", [0]), array.array("Q", [0] * 4), scan.hash_key()
    other = bytearray(b"\1" * 8192)
    cases: list[Callable[[], object]] = [
        lambda: scan.scan_shadow(memory, other[:4096], bitmap),
        lambda: scan.scan_shadow(memory[:5000], other[:5000], bitmap),
        lambda: scan.scan_shadow(memory, other, array.array("Q", [0, 0])),
        lambda: scan.scan_shadow(memory, other, array.array("Q")),
        lambda: scan.scan_shadow(memory, other, bytes(8)),
        lambda: scan.scan_shadow(memory, other, array.array("L" if array.array("L").itemsize != 8 else "I", [0])),
        lambda: scan.scan_shadow(memory, other, bitmap, 100),
        lambda: scan.scan_shadow(memory, other, bitmap, first_page=3),
        lambda: scan.scan_shadow(memory, other, bitmap, first_page=-1),
        lambda: scan.scan_shadow(memory, other, bitmap, first_page=1, pages=2),
        lambda: scan.scan_shadow(memory, other, bitmap, pages=-1),
        lambda: scan.scan_shadow(memory, other, memoryview(memory)[:8].cast("Q")),
        lambda: scan.scan_shadow(memory, other, bitmap, level="neon512"),
        lambda: scan.scan_hashes(memory, hashes[:3], key, bitmap),
        lambda: scan.scan_hashes(memory, hashes, key[:-1], bitmap),
        lambda: scan.scan_hashes(memory, memoryview(memory)[:32].cast("Q"), key, bitmap),
        lambda: scan.scan_hashes(memory, bytes(32), key, bitmap),
        lambda: scan.hash_key(5000),
    ]
    for case in cases:
        with pytest.raises((ValueError, BufferError)):
            case()
    assert bitmap[0] == 0
    assert hashes.tolist() == [0] * 4
