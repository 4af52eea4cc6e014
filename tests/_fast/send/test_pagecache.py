"""The page cache against a model of QEMU's, and the shadow copy's bookkeeping."""

from __future__ import annotations

import random

import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.send.pagecache import CacheStats, PageCache, RememberedPages, ShadowCache
from colo._fast.send.pageencoder import PageEncoder

PAGE = 4096


def send(
    cache: PageCache | ShadowCache, memory: bytearray, pages: list[int], age: int, address: int = 0
) -> None:
    bitmap = DirtyBitmap(len(memory) // PAGE)
    for page in pages:
        bitmap.set(page)
    encoder = PageEncoder()
    encoder.begin_block("b", memory, bitmap, cache, address=address, age=age)
    encoder.encode()


def numbered(pages: int) -> bytearray:
    return bytearray(b"".join(bytes([page + 1]) * PAGE for page in range(pages)))


@pytest.mark.parametrize(
    ("given_bytes", "pages"), [(4096, 1), (8191, 1), (8192, 2), (1 << 20, 256), ((1 << 20) - 1, 128)]
)
def test_the_capacity_is_the_greatest_power_of_two_that_fits(given_bytes: int, pages: int) -> None:
    assert PageCache(given_bytes).capacity_bytes == pages * PAGE


def test_a_young_page_keeps_its_slot_and_an_old_one_gives_it_up() -> None:
    cache = PageCache(4 * PAGE)
    memory = numbered(12)
    send(cache, memory, [1, 2], age=10)
    send(cache, memory, [5], age=11)
    assert cache.get(1 * PAGE) == bytes(memory[PAGE : 2 * PAGE])
    assert cache.get(5 * PAGE) is None
    assert cache.stats.refused == 1
    send(cache, memory, [5], age=12)
    assert cache.get(1 * PAGE) is None
    assert cache.get(5 * PAGE) == bytes(memory[5 * PAGE : 6 * PAGE])
    assert cache.stats.evicted == 1


def test_a_hit_makes_a_page_young_again() -> None:
    cache = PageCache(4 * PAGE)
    memory = numbered(12)
    send(cache, memory, [1], age=10)
    send(cache, memory, [1], age=12)
    send(cache, memory, [5], age=13)
    assert cache.get(5 * PAGE) is None


def test_statistics_tell_hits_misses_overflows_and_bytes() -> None:
    cache = PageCache(4 * PAGE)
    memory = numbered(4)
    send(cache, memory, [0, 1, 2], age=1)
    memory[10] = 99
    memory[PAGE : 2 * PAGE] = random.Random(1).randbytes(PAGE)
    send(cache, memory, [0, 1, 2], age=2)
    assert cache.stats == CacheStats(
        hits=3, misses=3, unchanged=1, overflows=1, refused=0, evicted=0, encoded_bytes=3
    )
    assert cache.used_pages == 3


def test_zero_pages_are_remembered_as_zero() -> None:
    cache = PageCache(4 * PAGE)
    memory = numbered(2)
    send(cache, memory, [0, 1], age=1)
    memory[:PAGE] = bytes(PAGE)
    send(cache, memory, [0], age=2)
    assert cache.get(0) == bytes(PAGE)


def test_blocks_at_different_addresses_do_not_meet() -> None:
    cache = PageCache(16 * PAGE)
    send(cache, numbered(4), [0, 1, 2, 3], age=1)
    other = bytearray(b"\x55" * (4 * PAGE))
    send(cache, other, [0, 1, 2, 3], age=1, address=4 * PAGE)
    assert cache.get(0) == b"\x01" * PAGE
    assert cache.get(4 * PAGE) == b"\x55" * PAGE


def test_invalidated_pages_are_forgotten_and_no_others() -> None:
    cache = PageCache(16 * PAGE)
    memory = numbered(8)
    send(cache, memory, list(range(8)), age=1, address=1 << 40)
    lost = DirtyBitmap(8)
    lost.set(2, 3)
    cache.invalidate(lost)
    assert cache.used_pages == 8
    cache.invalidate(lost, address=1 << 40)
    gone = [page for page in range(8) if cache.get((1 << 40) + page * PAGE) is None]
    assert gone == [2, 3, 4]
    cache.invalidate_all()
    assert cache.used_pages == 0


def test_resizing_keeps_what_fits_and_the_younger_of_two() -> None:
    cache = PageCache(8 * PAGE)
    memory = numbered(8)
    send(cache, memory, [0, 1, 2, 3], age=1)
    send(cache, memory, [4, 5], age=2)
    cache.resize(64 * PAGE)
    assert cache.used_pages == 6
    cache.resize(4 * PAGE)
    for page in (2, 3, 4, 5):
        assert cache.get(page * PAGE) == bytes([page + 1]) * PAGE
    assert cache.get(0) is None
    assert cache.stats.misses == 6


def test_odd_sizes_are_refused() -> None:
    cache = PageCache(4 * PAGE)
    send(cache, numbered(4), [1], age=1)
    with pytest.raises(ValueError, match="does not hold one page"):
        cache.resize(PAGE - 1)
    with pytest.raises(ValueError, match="more than any machine"):
        cache.resize(1 << 62)
    assert cache.get(PAGE) == b"\x02" * PAGE
    for page_bytes in (0, 512, 4095, 131072, -4096):
        with pytest.raises(ValueError, match="power of two"):
            PageCache(1 << 20, page_bytes)
        with pytest.raises(ValueError, match="power of two"):
            ShadowCache(4, page_bytes)
    with pytest.raises(ValueError, match="0 to"):
        ShadowCache(-1)
    with pytest.raises(TypeError):
        _ = RememberedPages().stats


def test_a_shadow_copy_may_live_in_memory_given() -> None:
    backing = bytearray(4 * PAGE)
    shadow = ShadowCache(4, memory=backing)
    memory = numbered(4)
    send(shadow, memory, [1, 3], age=0)
    assert backing == bytes(PAGE) + memory[PAGE : 2 * PAGE] + bytes(PAGE) + memory[3 * PAGE :]
    assert shadow.valid.runs() == [(1, 1), (3, 1)]
    with pytest.raises(BufferError):
        backing.extend(b"x")
    with pytest.raises(ValueError, match="5 pages needs 20480"):
        ShadowCache(5, memory=bytearray(4 * PAGE))
    with pytest.raises(BufferError):
        ShadowCache(1, memory=bytes(PAGE))


def test_a_shadow_copy_forgets_and_promises() -> None:
    shadow = ShadowCache(4)
    memory = numbered(4)
    send(shadow, memory, [0, 1, 2, 3], age=0)
    lost = DirtyBitmap(4)
    lost.set(1)
    shadow.invalidate(lost)
    assert shadow.valid.runs() == [(0, 1), (2, 2)]
    assert memoryview(shadow).readonly
    with pytest.raises(ValueError, match="one RAM block"):
        shadow.invalidate(DirtyBitmap(5))
    shadow.invalidate_all()
    assert shadow.used_pages == 0
    shadow.validate_all()
    assert shadow.used_pages == 4
