"""A long random comparison of the kernels: every SIMD level with the first, and samples of it with the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from colo._fast.kernels import kernels, scan, xbzrle, zeropage
from tests._fast import oracle

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]

LEVELS = kernels.levels()
PAIRS = 1_000_000
BATCH_PAGES = 512
SEED = 20240229


def page_pairs(rng: np.random.Generator, pages: int, page_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pages, and what became of them: each page in one of six ways."""
    old = rng.integers(0, 256, (pages, page_bytes), dtype=np.uint8)
    new = old.copy()
    kind = rng.integers(0, 6, pages)
    for page in np.flatnonzero(kind == 0):
        new[page, rng.integers(0, page_bytes, rng.integers(0, 130))] ^= 0x80
    for page in np.flatnonzero(kind == 1):
        for start in rng.integers(0, page_bytes, rng.integers(1, 20)):
            new[page, start : start + rng.integers(1, 300)] ^= 0x11
    dense = np.flatnonzero(kind == 2)
    new[dense] ^= np.where(rng.random((dense.size, page_bytes)) < rng.random((dense.size, 1)), 0xFF, 0).astype(np.uint8)
    words = np.flatnonzero(kind == 3)
    changed = np.repeat(rng.random((words.size, page_bytes // 8)) < 0.2, 8, axis=1)
    new[words] ^= np.where(changed, rng.integers(0, 256, (words.size, page_bytes)), 0).astype(np.uint8)
    for page in np.flatnonzero(kind == 4):
        edge = rng.integers(0, page_bytes)
        new[page, edge:] ^= 0xFF
        new[page, : edge // 2 : rng.integers(2, 200)] ^= 1
    nearly = np.flatnonzero(kind == 5)
    new[nearly] ^= 0xFF
    for page in nearly:
        keep = rng.integers(0, page_bytes, rng.integers(0, 6))
        new[page, keep] = old[page, keep]
    return old, new


def check_batch(old: np.ndarray, new: np.ndarray, page_bytes: int, dlen: int) -> np.ndarray:
    """All levels and both ways of encoding agree, and decode to the new pages. Returns the lengths."""
    pages = old.size // page_bytes
    room = pages * dlen + xbzrle.SLACK_BYTES
    results = []
    for level in LEVELS:
        arena, lengths = np.zeros(room, np.uint8), np.zeros(pages, np.int32)
        done, used = xbzrle.encode_pages(old, new, page_bytes, arena, lengths, dlen=dlen, level=level)
        assert done == pages
        results.append((lengths, arena[:used]))
        stepped, again, shadow = np.zeros(room, np.uint8), np.zeros(pages, np.int32), old.copy()
        assert xbzrle.step_pages(shadow, new, page_bytes, stepped, again, dlen=dlen, level=level) == (pages, used)
        assert (shadow == new).all()
        assert (again == lengths).all()
        assert (stepped[:used] == arena[:used]).all()
        pages_now = old.copy()
        xbzrle.decode_pages(arena[:used], lengths, pages_now, page_bytes, level=level)
        pages_now = np.where(np.repeat(lengths < 0, page_bytes), new, pages_now)
        assert (pages_now == new).all(), level
    for level, (lengths, encoded) in zip(LEVELS, results, strict=True):
        assert (lengths == results[0][0]).all(), level
        assert encoded.tobytes() == results[0][1].tobytes(), level
    return results[0][0]


def test_a_million_page_pairs() -> None:
    rng = np.random.default_rng(SEED)
    done = batch = 0
    while done < PAIRS:
        page_bytes = 4096 if batch % 8 else int(rng.choice([1024, 2048, 8192, 16384, 32768, 65536]))
        pages = max(BATCH_PAGES * 4096 // page_bytes // (1 if page_bytes <= 4096 else 4), 8)
        old, new = page_pairs(rng, pages, page_bytes)
        dlen = min(page_bytes, 65535) if rng.random() < 0.5 else int(rng.integers(0, min(page_bytes + 300, 65536)))
        lengths = check_batch(old.ravel(), new.ravel(), page_bytes, dlen)
        for page in rng.integers(0, pages, 2 if page_bytes <= 4096 else 1):
            expected, _ = oracle.encode(old[page].tobytes(), new[page].tobytes(), dlen)
            assert lengths[page] == expected
        done += pages
        batch += 1


def test_every_dlen() -> None:
    rng = np.random.default_rng(SEED + 1)
    old, new = page_pairs(rng, 24, 4096)
    for dlen in range(4400):
        lengths = check_batch(old.ravel(), new.ravel(), 4096, dlen)
        if dlen % 20 == 0:
            for page in range(24):
                assert lengths[page] == oracle.encode(old[page].tobytes(), new[page].tobytes(), dlen)[0]


def test_damaged_encodings_get_one_verdict() -> None:
    rng = np.random.default_rng(SEED + 2)
    for _ in range(400):
        old, new = page_pairs(rng, 16, 4096)
        for page in range(16):
            whole = encoding_of(old[page], new[page])
            for _ in range(20):
                damaged = whole[: rng.integers(0, len(whole) + 1)].copy()
                for _ in range(rng.integers(0, 4)):
                    if damaged.size:
                        damaged[rng.integers(damaged.size)] = rng.choice(np.array([0, 1, 0x7F, 0x80, 0x81, 0xFF, rng.integers(256)]))
                verdicts = {xbzrle.check(damaged, 4096, level=level) for level in LEVELS}
                assert len(verdicts) == 1
                if rng.random() < 0.02:
                    assert verdicts == {oracle.decode(damaged.tobytes(), old[page].tobytes())[0]}


def encoding_of(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    encoded = xbzrle.encode(old, new, 16000)
    return np.frombuffer(encoded or b"\0\1x", np.uint8)


def test_scans_and_zero_checks_agree() -> None:
    rng = np.random.default_rng(SEED + 3)
    for _ in range(300):
        page_bytes = int(rng.choice([1024, 4096, 65536]))
        pages = int(rng.integers(1, 200 if page_bytes < 65536 else 20))
        memory = rng.integers(0, 256, pages * page_bytes, dtype=np.uint8)
        memory.reshape(pages, page_bytes)[rng.random(pages) < 0.3] = 0
        shadow, key = memory.copy(), scan.hash_key(page_bytes)
        spots = rng.integers(0, memory.size, rng.integers(0, 50))
        memory[spots] ^= 1
        results = set()
        for level in LEVELS:
            changed, hashed, zero = (np.zeros((pages + 63) // 64, np.uint64) for _ in range(3))
            hashes = np.zeros(2 * pages, np.uint64)
            scan.scan_hashes(shadow, hashes, key, zero, page_bytes, level=level)
            zero[:] = 0
            scan.scan_shadow(memory, shadow, changed, page_bytes, level=level)
            scan.scan_hashes(memory, hashes, key, hashed, page_bytes, level=level)
            zeropage.is_zero_pages(memory, page_bytes, zero, level=level)
            assert (changed == hashed).all()
            results.add((changed.tobytes(), zero.tobytes()))
        assert len(results) == 1
        bits = np.unpackbits(changed.view(np.uint8), bitorder="little")[:pages].astype(bool)
        assert (bits == (memory != shadow).reshape(pages, page_bytes).any(axis=1)).all()
