"""A serialised bitmap: what is taken holds no page past its end, and serialises to the same pages."""

from __future__ import annotations

from collections.abc import Iterator

from _vectors import offset_is_in

from colo._fast.kernels.bitmap import DirtyBitmap
from colo.errors import StreamError

MAX_PAGES = 5000


def seeds() -> Iterator[bytes]:
    for pages, runs in ((1, [(0, 1)]), (4097, [(0, 5), (700, 300), (4096, 1)]), (64, []), (0, [])):
        bitmap = DirtyBitmap(pages)
        for first, count in runs:
            bitmap.set(first, count)
        yield bitmap.to_bytes()
    dense = DirtyBitmap(777)
    for page in range(0, 777, 3):
        dense.set(page)
    yield dense.to_bytes()


def fuzz_one(data: bytes) -> None:
    try:
        bitmap = DirtyBitmap.from_bytes(data, MAX_PAGES)
    except StreamError as error:
        offset_is_in(error, data)
        return
    assert bitmap.pages == int.from_bytes(data[:8], "big") <= MAX_PAGES
    runs = bitmap.runs()
    assert bitmap.count() == sum(count for _, count in runs)
    assert all(first + count <= bitmap.pages for first, count in runs)
    again = bitmap.to_bytes()
    assert len(again) <= 9 + (bitmap.pages + 7) // 8
    assert DirtyBitmap.from_bytes(again, MAX_PAGES) == bitmap
    if data[8] == 0:  # the form of bits has one encoding
        assert data[9:] == bytes(
            sum(bitmap.test(8 * i + bit) << bit for bit in range(8) if 8 * i + bit < bitmap.pages)
            for i in range((bitmap.pages + 7) // 8)
        )
