"""Buffers that do not fit are refused before a byte is touched. Those of xbzrle are in test_xbzrle.py."""

from __future__ import annotations

import array
from collections.abc import Callable

import numpy as np
import pytest

from colo._fast.kernels import scan, xbzrle, zeropage
from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.send.pagecache import PageCache, ShadowCache
from colo._fast.send.pageencoder import PageEncoder

PAGE = 4096


def words(count: int) -> array.array[int]:
    return array.array("Q", [0] * count)


def misaligned(typecode: str, count: int) -> memoryview:
    item_bytes = array.array(typecode).itemsize
    return memoryview(bytearray(item_bytes * count + item_bytes))[1 : 1 + item_bytes * count].cast(typecode)


def block(memory: object, bitmap: DirtyBitmap | None = None, cache: PageCache | ShadowCache | None = None) -> None:
    PageEncoder().begin_block("pc.ram", memory, bitmap, cache)


shared = bytearray(4 * PAGE)
two = bytearray(2 * PAGE)
strided = memoryview(bytearray(4 * PAGE))[::2]
shorts = array.array("h", bytes(2 * PAGE))
flat = memoryview(shared)
key = scan.hash_key()

BAD: dict[str, Callable[[], object]] = {
    "scan: odd length": lambda: scan.scan_shadow(bytearray(8191), bytearray(8191), words(1)),
    "scan: different lengths": lambda: scan.scan_shadow(two, bytearray(PAGE), words(1)),
    "scan: read-only bitmap": lambda: scan.scan_shadow(two, bytearray(two), memoryview(words(1)).toreadonly()),
    "scan: bitmap of bytes": lambda: scan.scan_shadow(two, bytearray(two), bytearray(8)),
    "scan: signed bitmap": lambda: scan.scan_shadow(two, bytearray(two), array.array("q", [0])),
    "scan: misaligned bitmap": lambda: scan.scan_shadow(two, bytearray(two), misaligned("Q", 1)),
    "scan: bitmap longer than the block": lambda: scan.scan_shadow(two, bytearray(two), words(2)),
    "scan: page of 512": lambda: scan.scan_shadow(two, bytearray(two), words(1), 512),
    "scan: page of 128 KiB": lambda: scan.scan_shadow(bytearray(1 << 17), bytearray(1 << 17), words(1), 1 << 17),
    "scan: page of 3000": lambda: scan.scan_shadow(bytearray(6000), bytearray(6000), words(1), 3000),
    "scan: bitmap inside memory": lambda: scan.scan_shadow(flat[: 2 * PAGE], two, flat[PAGE : PAGE + 8].cast("Q")),
    "scan: items of two bytes": lambda: scan.scan_shadow(shorts, two, words(1)),
    "scan: strided": lambda: scan.scan_shadow(strided, two, words(1)),
    "scan: two dimensions": lambda: scan.scan_shadow(np.zeros((2, PAGE), np.uint8), two, words(1)),
    "scan: first page past the end": lambda: scan.scan_shadow(two, bytearray(two), words(1), first_page=3),
    "hashes: few": lambda: scan.scan_hashes(two, words(3), key, words(1)),
    "hashes: read-only": lambda: scan.scan_hashes(two, memoryview(words(4)).toreadonly(), key, words(1)),
    "hashes: misaligned": lambda: scan.scan_hashes(two, misaligned("Q", 4), key, words(1)),
    "hashes: short key": lambda: scan.scan_hashes(two, words(4), key[:-1], words(1)),
    "hashes: over memory": lambda: scan.scan_hashes(flat[: 2 * PAGE], flat[:32].cast("Q"), key, words(1)),
    "zero pages: odd length": lambda: zeropage.is_zero_pages(bytearray(8191), PAGE, words(1)),
    "zero pages: bitmap longer than the block": lambda: zeropage.is_zero_pages(two, PAGE, words(2)),
    "zero pages: bitmap of bytes": lambda: zeropage.is_zero_pages(two, PAGE, bytearray(8)),
    "zero pages: misaligned bitmap": lambda: zeropage.is_zero_pages(two, PAGE, misaligned("Q", 1)),
    "zero pages: read-only bitmap": lambda: zeropage.is_zero_pages(two, PAGE, memoryview(words(1)).toreadonly()),
    "zero pages: bitmap inside memory": lambda: zeropage.is_zero_pages(flat, PAGE, flat[:8].cast("Q")),
    "zero pages: page of 512": lambda: zeropage.is_zero_pages(two, 512, words(1)),
    "zero page: strided": lambda: zeropage.is_zero(strided),
    "zero page: items of two bytes": lambda: zeropage.is_zero(shorts),
    "bitmap: negative pages": lambda: DirtyBitmap(-1),
    "bitmap: range past the end": lambda: DirtyBitmap(5).set(4, 2),
    "bitmap: signed numbers": lambda: DirtyBitmap(5).set_pages(array.array("q", [1])),
    "bitmap: misaligned numbers": lambda: DirtyBitmap(5).set_pages(misaligned("Q", 1)),
    "bitmap: number past the end": lambda: DirtyBitmap(5).set_pages(array.array("Q", [0, 5])),
    "bitmap: of another block": lambda: DirtyBitmap(5).union(DirtyBitmap(6)),
    "bitmap: read-only runs": lambda: DirtyBitmap(5).runs_into(memoryview(bytes(32)).cast("Q", [2, 2])),
    "bitmap: rows of three": lambda: DirtyBitmap(5).runs_into(np.zeros((2, 3), np.uint64)),
    "block: odd length": lambda: block(bytearray(8191)),
    "block: items of two bytes": lambda: block(shorts),
    "block: strided": lambda: block(strided),
    "block: bitmap longer than the block": lambda: block(two, DirtyBitmap(3)),
    "block: shadow of other size": lambda: block(two, None, ShadowCache(3)),
    "block: memory as its own shadow": lambda: block(two, None, ShadowCache(2, memory=two)),
    "block: cache of other pages": lambda: block(two, None, PageCache(1 << 20, 1024)),
    "encoder: page of 512": lambda: PageEncoder(page_bytes=512),
    "encoder: page of 3000": lambda: PageEncoder(page_bytes=3000),
    "encoder: page of 128 KiB": lambda: PageEncoder(page_bytes=1 << 17),
    "shadow: read-only": lambda: ShadowCache(2, memory=bytes(2 * PAGE)),
    "shadow: short": lambda: ShadowCache(2, memory=bytearray(8191)),
    "shadow: items of two bytes": lambda: ShadowCache(2, memory=shorts),
    "xbzrle: misaligned lengths": lambda: xbzrle.encode_pages(two, two, PAGE, bytearray(9000), misaligned("i", 2)),
    "xbzrle: decode of misaligned lengths": lambda: xbzrle.decode_pages(b"", misaligned("i", 2), bytearray(two), PAGE),
    "xbzrle: decode into read-only pages": lambda: xbzrle.decode_pages(b"", array.array("i", [0, 0]), bytes(two), PAGE),
    "xbzrle: decode into its own arena": lambda: xbzrle.decode_pages(two, array.array("i", [0, 0]), two, PAGE),
}


@pytest.mark.parametrize("case", BAD)
def test_buffers_that_do_not_fit_are_refused(case: str) -> None:
    with pytest.raises((ValueError, BufferError)):
        BAD[case]()
    assert not any(shared)
    assert not any(two)


@pytest.mark.parametrize("page_bytes", [1 << bits for bits in range(10, 17)])
def test_every_page_size_works(page_bytes: int) -> None:
    old, new = bytearray(4 * page_bytes), bytearray(4 * page_bytes)
    new[2 * page_bytes + 5] = 7
    bitmap = words(1)
    assert scan.scan_shadow(new, old, bitmap, page_bytes) == 1
    assert bitmap[0] == 0b100
    zeros = words(1)
    assert zeropage.is_zero_pages(new, page_bytes, zeros) == 3
    assert zeros[0] == 0b1011
    lengths = array.array("i", [9] * 4)
    arena = bytearray(6 * 65536)
    assert xbzrle.encode_pages(old, new, page_bytes, arena, lengths) == (4, 3)
    assert lengths.tolist() == [0, 0, 3, 0]
    assert xbzrle.decode_pages(arena[:3], lengths, old, page_bytes) == 3
    assert old == new


def test_memory_cannot_shrink_while_a_block_is_open() -> None:
    memory = bytearray(2 * PAGE)
    encoder = PageEncoder()
    encoder.begin_block("pc.ram", memory)
    with pytest.raises(BufferError):
        memory.pop()
    encoder.encode()
    encoder.close()
    memory.pop()


def test_a_refused_call_lets_its_buffers_go() -> None:
    memory, arena = bytearray(8191), bytearray(20000)
    for _ in range(3):
        with pytest.raises(ValueError, match="whole number of pages"):
            xbzrle.encode_pages(memory, memory, PAGE, arena, array.array("i", [0, 0]))
    memory.append(0)
    arena.append(0)
