"""The dirty bitmap against a set of page numbers."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo._fast.kernels.bitmap import DirtyBitmap
from colo.errors import LimitExceeded, StreamError, Truncated


@st.composite
def bitmaps(draw: st.DrawFn, pages: int | None = None) -> tuple[DirtyBitmap, set[int]]:
    size = draw(st.integers(0, 400)) if pages is None else pages
    bitmap, expected = DirtyBitmap(size), set[int]()
    for _ in range(draw(st.integers(0, 8))):
        first = draw(st.integers(0, size))
        count = draw(st.integers(0, size - first))
        if draw(st.booleans()):
            bitmap.set(first, count)
            expected |= set(range(first, first + count))
        else:
            bitmap.clear(first, count)
            expected -= set(range(first, first + count))
    return bitmap, expected


def pages_of(bitmap: DirtyBitmap) -> set[int]:
    return {page for first, count in bitmap.runs() for page in range(first, first + count)}


@given(bitmaps(), st.data())
def test_set_clear_count_and_runs_agree_with_a_set(
    made: tuple[DirtyBitmap, set[int]], data: st.DataObject
) -> None:
    bitmap, expected = made
    assert pages_of(bitmap) == expected
    assert {page for page in range(bitmap.pages) if bitmap.test(page)} == expected
    assert bitmap.count() == len(expected)
    assert bitmap.any() == bool(expected)
    first = data.draw(st.integers(0, bitmap.pages))
    count = data.draw(st.integers(0, bitmap.pages - first))
    assert bitmap.count(first, count) == len(expected & set(range(first, first + count)))
    assert bitmap.next_dirty(first) == min((page for page in expected if page >= first), default=bitmap.pages)
    runs = bitmap.runs()
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(runs))


@given(st.integers(0, 300).flatmap(lambda pages: st.tuples(bitmaps(pages), bitmaps(pages))))
def test_union_subtract_take_and_equality(
    both: tuple[tuple[DirtyBitmap, set[int]], tuple[DirtyBitmap, set[int]]],
) -> None:
    (a, in_a), (b, in_b) = both
    assert (a == b) == (in_a == in_b)
    union = a.copy()
    union.union(b)
    assert pages_of(union) == in_a | in_b
    rest = a.copy()
    rest.subtract(b)
    assert pages_of(rest) == in_a - in_b
    words = memoryview(a)
    taken = a.take()
    assert pages_of(taken) == in_a
    assert not a.any()
    assert bytes(words) == bytes(len(bytes(words)))


@given(bitmaps())
def test_serialised_and_back(made: tuple[DirtyBitmap, set[int]]) -> None:
    bitmap, expected = made
    data = bitmap.to_bytes()
    assert len(data) <= 9 + (bitmap.pages + 7) // 8
    again = DirtyBitmap.from_bytes(data, bitmap.pages)
    assert pages_of(again) == expected
    assert again == bitmap


@given(bitmaps(), st.integers(1, 5))
def test_runs_are_written_piece_by_piece(made: tuple[DirtyBitmap, set[int]], rows: int) -> None:
    bitmap, _ = made
    out = np.zeros((rows, 2), np.uint64)
    got: list[tuple[int, int]] = []
    at = 0
    while at < bitmap.pages:
        n, at = bitmap.runs_into(out, at)
        got += [(int(first), int(count)) for first, count in out[:n]]
    assert got == bitmap.runs()


def test_both_forms_are_as_documented() -> None:
    bitmap = DirtyBitmap(1000)
    bitmap.set(3, 200)
    assert bitmap.to_bytes() == struct.pack(">QB", 1000, 1) + b"\x03\xc8\x01"
    scattered = DirtyBitmap(10)
    for page in (0, 2, 9):
        scattered.set(page)
    assert scattered.to_bytes() == struct.pack(">QB", 10, 0) + b"\x05\x02"


def test_words_are_shared_and_bits_past_the_end_do_not_count() -> None:
    bitmap = DirtyBitmap(70)
    words = np.frombuffer(bitmap, np.uint64)  # type: ignore[call-overload]
    words[:] = 2**64 - 1
    assert bitmap.count() == 70
    assert bitmap.runs() == [(0, 70)]
    full = DirtyBitmap(70)
    full.set(0, 70)
    assert bitmap == full
    assert DirtyBitmap.from_bytes(bitmap.to_bytes(), 70) == full
    words[:] = 0x5555555555555555
    assert DirtyBitmap.from_bytes(bitmap.to_bytes(), 70) == bitmap


@settings(max_examples=400)
@given(st.integers(0, 200), st.sampled_from([0, 1, 2]), st.binary(max_size=40))
def test_any_bytes_are_a_bitmap_or_an_error(pages: int, form: int, payload: bytes) -> None:
    data = struct.pack(">QB", pages, form) + payload
    refused: StreamError | None = None
    try:
        bitmap = DirtyBitmap.from_bytes(data, 200)
    except StreamError as error:
        refused = error
    else:
        assert bitmap.pages == pages
        assert DirtyBitmap.from_bytes(bitmap.to_bytes(), 200) == bitmap
    assert refused is None or (refused.offset is not None and 0 <= refused.offset <= len(data))


def test_serialised_bitmaps_are_bounded() -> None:
    data = DirtyBitmap(100).to_bytes()
    with pytest.raises(LimitExceeded, match="at most 99"):
        DirtyBitmap.from_bytes(data, 99)
    with pytest.raises(LimitExceeded):
        DirtyBitmap.from_bytes(struct.pack(">QB", 2**64 - 1, 1), 2**62)
    with pytest.raises(Truncated):
        DirtyBitmap.from_bytes(data[:8], 100)
    with pytest.raises(Truncated):
        DirtyBitmap.from_bytes(struct.pack(">QB", 100, 0) + b"\0" * 12, 100)
    with pytest.raises(StreamError):
        DirtyBitmap.from_bytes(struct.pack(">QB", 100, 0) + b"\0" * 14, 100)
    with pytest.raises(StreamError):
        DirtyBitmap.from_bytes(struct.pack(">QB", 100, 0) + b"\0" * 12 + b"\x10", 100)
    with pytest.raises(Truncated):
        DirtyBitmap.from_bytes(struct.pack(">QB", 100, 1) + b"\x05", 100)


def test_what_lies_outside_is_refused() -> None:
    bitmap = DirtyBitmap(64)
    for first, count in [(-1, 1), (0, 65), (64, 1), (65, 0), (0, -1), (2**62, 2**62)]:
        with pytest.raises(ValueError, match="64 pages"):
            bitmap.set(first, count)
        with pytest.raises(ValueError, match="64 pages"):
            bitmap.clear(first, count)
    with pytest.raises(ValueError, match="64 pages"):
        bitmap.test(64)
    with pytest.raises(ValueError, match="number 1 is page 64"):
        bitmap.set_pages(np.array([3, 64], np.uint64))
    assert not bitmap.any()
    bitmap.set_pages(np.array([3, 63], np.uint64))
    assert bitmap.runs() == [(3, 1), (63, 1)]
    with pytest.raises(ValueError, match="one RAM block"):
        bitmap.union(DirtyBitmap(65))
    with pytest.raises(ValueError, match="not -1"):
        DirtyBitmap(-1)
    with pytest.raises(ValueError, match=r"2\*\*44"):
        DirtyBitmap(2**44 + 1)
    with pytest.raises(ValueError, match="rows of 2"):
        bitmap.runs_into(np.zeros((1, 3), np.uint64))
    with pytest.raises(ValueError, match="Buffer dtype"):
        bitmap.set_pages(np.array([1], np.int32))
