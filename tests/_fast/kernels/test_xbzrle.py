"""The XBZRLE kernels agree with the oracle and with one another, at every SIMD level this machine has."""

from __future__ import annotations

import array
import mmap
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo._fast.kernels import kernels, xbzrle
from colo.errors import StreamError
from tests._fast import oracle

LEVELS = kernels.levels()
PAGE_SIZES = [1024, 2048, 4096, 8192, 16384, 32768, 65536]
GUARD = 0xA5


def page_of(seed: int, page_bytes: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, page_bytes, dtype=np.uint8).tobytes()


@st.composite
def page_pairs(draw: st.DrawFn, sizes: tuple[int, ...] = (1024, 4096)) -> tuple[bytes, bytes]:
    """Pages that differ in runs of any length, in scattered bytes, or nearly everywhere."""
    page_bytes = draw(st.sampled_from(sizes))
    old = page_of(draw(st.integers(0, 7)), page_bytes)
    new = np.frombuffer(old, np.uint8).copy()
    if draw(st.booleans()):
        for start, n in draw(
            st.lists(st.tuples(st.integers(0, page_bytes - 1), st.integers(1, 400)), max_size=30)
        ):
            new[start : start + n] ^= 0xFF
    else:
        density = draw(st.sampled_from([0.001, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        new[rng.random(page_bytes) < density] ^= 0x5A
        for at in draw(st.lists(st.integers(0, page_bytes - 1), max_size=5)):
            new[at] = old[at]
    if draw(st.booleans()):
        new[-1] = old[-1]
    return old, new.tobytes()


def encode_at(level: str, old: bytes, new: bytes, dlen: int) -> tuple[int, bytes]:
    """One page through the batch edge, with the bytes behind the slack watched."""
    arena = np.full(dlen + xbzrle.SLACK_BYTES + 32, GUARD, np.uint8)
    lengths = np.full(1, 99, np.int32)
    room = dlen + xbzrle.SLACK_BYTES
    done, used = xbzrle.encode_pages(old, new, len(old), arena[:room], lengths, dlen=dlen, level=level)
    assert (done, used) == (1, max(lengths[0], 0))
    assert (arena[room:] == GUARD).all(), "wrote past the slack"
    return int(lengths[0]), arena[:used].tobytes()


@given(page_pairs(), st.integers(-4, 4), st.integers(0, 65535))
@settings(max_examples=150, deadline=None)
def test_all_levels_encode_as_the_oracle_does(pair: tuple[bytes, bytes], near: int, other: int) -> None:
    old, new = pair
    size, _ = oracle.encode(old, new, 65535)
    for dlen in {len(old), min(max(size + near, 0), 65535), other}:
        expected = oracle.encode(old, new, dlen)
        for level in LEVELS:
            assert encode_at(level, old, new, dlen) == expected, (level, dlen)


@given(page_pairs(sizes=(2048, 8192, 16384, 65536)), st.integers(-3, 3))
@settings(max_examples=40, deadline=None)
def test_other_page_sizes_encode_as_the_oracle_does(pair: tuple[bytes, bytes], near: int) -> None:
    old, new = pair
    size, _ = oracle.encode(old, new, 65535)
    for dlen in {min(len(old), 65535), min(max(size + near, 0), 65535)}:
        expected = oracle.encode(old, new, dlen)
        for level in LEVELS:
            assert encode_at(level, old, new, dlen) == expected, (level, dlen)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ends_equal", [True, False])
def test_every_dlen_around_the_exact_size(level: str, ends_equal: bool) -> None:
    old = page_of(1, 1024)
    new = bytearray(old)
    for at in [*range(3, 1000, 9), *([] if ends_equal else [1023])]:
        new[at] ^= 1
    size, _ = oracle.encode(old, bytes(new), 65535)
    for dlen in range(size + 8):
        assert encode_at(level, old, bytes(new), dlen) == oracle.encode(old, bytes(new), dlen)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("page_bytes", PAGE_SIZES)
def test_pages_at_the_edges(level: str, page_bytes: int) -> None:
    old = page_of(2, page_bytes)
    inverted = bytes(b ^ 0xFF for b in old)
    cases = {
        "unchanged": old,
        "all changed": inverted,
        "first byte": inverted[:1] + old[1:],
        "last byte": old[:-1] + inverted[-1:],
        "all but the first": old[:1] + inverted[1:],
        "all but the last": inverted[:-1] + old[-1:],
        "run of 128": old[:64] + inverted[64:192] + old[192:],
        "every other byte": bytes(a if i % 2 else b for i, (a, b) in enumerate(zip(old, inverted, strict=True))),
    }
    for name, new in cases.items():
        for dlen in {0, 1, 2, 3, 4, page_bytes // 2, min(page_bytes, 65535), 65535}:
            assert encode_at(level, old, new, dlen) == oracle.encode(old, new, dlen), (name, dlen)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("run", [0x3FFF, 0x4000, 0x4001])
def test_a_run_of_more_than_14_bits_is_an_overflow(level: str, run: int) -> None:
    old = bytes(65536)
    changed = bytes(100) + b"\1" * run + bytes(65536 - 100 - run)
    unchanged = b"\1" + bytes(run) + b"\1" + bytes(65536 - run - 2)
    fits = run <= 0x3FFF
    assert (encode_at(level, old, changed, 65535)[0] > 0) == fits
    assert (encode_at(level, old, unchanged, 65535)[0] > 0) == fits


LINES = {
    "first byte": bytes([1]) + bytes(63),
    "last byte": bytes(63) + bytes([1]),
    "whole": bytes([1]) * 64,
    "all but the last": bytes([1]) * 63 + bytes(1),
    "every other": bytes([1, 0]) * 32,
    "both ends": bytes([1]) + bytes(62) + bytes([1]),
}
"""What changes of 64 bytes."""


@given(
    page_bytes=st.sampled_from([1024, 4096, 16384, 32768]),
    kinds=st.lists(st.sampled_from(sorted(LINES)), min_size=1, max_size=19),
    # Lines next to one another, in the same block of eight, and far apart.
    gaps=st.lists(st.sampled_from([1, 1, 1, 2, 7, 8, 60]), min_size=19, max_size=19),
    first=st.sampled_from([0, 1, 7, 15, -1]),
    near=st.integers(-3, 3),
)
@settings(max_examples=200, deadline=None)
def test_a_few_changed_lines_encode_as_the_oracle_does(
    page_bytes: int, kinds: list[str], gaps: list[int], first: int, near: int
) -> None:
    old = page_of(4, page_bytes)
    changes, line, changed = bytearray(page_bytes), first % (page_bytes // 64), 0
    for kind, gap in zip(kinds, gaps, strict=False):
        if line >= page_bytes // 64:
            break
        changes[64 * line : 64 * line + 64] = LINES[kind]
        line, changed = line + gap, changed + 1
    new = bytes(a ^ b for a, b in zip(old, changes, strict=True))
    size, _ = oracle.encode(old, new, 65535)
    for dlen in {page_bytes, max(size + near, 0), 128 * changed + 64 + near}:
        expected = oracle.encode(old, new, dlen)
        for level in LEVELS:
            assert encode_at(level, old, new, dlen) == expected, (level, dlen)


@given(page_pairs())
@settings(max_examples=100, deadline=None)
def test_decode_gives_the_new_page_back(pair: tuple[bytes, bytes]) -> None:
    old, new = pair
    size, encoded = oracle.encode(old, new, 65535)
    for level in LEVELS:
        page = bytearray(old)
        covered = xbzrle.decode(encoded, page, level=level)
        assert page == (new if size >= 0 else old)
        assert covered == oracle.decode(encoded, old)[0] == xbzrle.check(encoded, len(old), level=level)


@given(page_pairs(), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_encodings_are_judged_as_the_oracle_does(pair: tuple[bytes, bytes], data: st.DataObject) -> None:
    old, new = pair
    damaged = bytearray(oracle.encode(old, new, 65535)[1])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=3)):
        if at < len(damaged):
            damaged[at] = value
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    judge(bytes(damaged), old)


@given(st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_judged_as_the_oracle_does(encoded: bytes) -> None:
    judge(encoded, page_of(3, 1024))


def judge(encoded: bytes, old: bytes) -> None:
    covered, expected = oracle.decode(encoded, old)
    for level in LEVELS:
        assert xbzrle.check(encoded, len(old), level=level) == covered
        page = bytearray(old)
        if covered < 0:
            with pytest.raises(StreamError, match="no valid encoding"):
                xbzrle.decode(encoded, page, level=level)
            assert page == old
        else:
            assert xbzrle.decode(encoded, page, level=level) == covered
            assert page == expected


def test_a_length_of_128_in_two_needless_bytes_is_accepted_and_a_needless_zero_is_not() -> None:
    assert xbzrle.check(b"\x81\x00\x01x", 1024) == 2
    assert xbzrle.check(b"\x00\x01x\x80\x00\x01x", 1024) == -1
    assert xbzrle.check(b"\x80\x00\x01x", 1024) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_step_leaves_the_shadow_equal_and_says_what_encode_says(level: str) -> None:
    rng = np.random.default_rng(5)
    for page_bytes in (1024, 4096, 65536):
        live = rng.integers(0, 256, 64 * 4096 // 1024 * 1024, dtype=np.uint8)
        shadow = live.copy()
        for page in range(0, live.size // page_bytes, 2):
            density = rng.choice([0.001, 0.05, 0.6, 1.0])
            part = live[page * page_bytes : (page + 1) * page_bytes]
            part[rng.random(page_bytes) < density] ^= 3
        pages = live.size // page_bytes
        arenas = [np.zeros(live.size + 65536, np.uint8) for _ in range(2)]
        lengths = [np.zeros(pages, np.int32) for _ in range(2)]
        before = shadow.copy()
        direct = xbzrle.encode_pages(shadow, live, page_bytes, arenas[0], lengths[0], level=level)
        stepped = xbzrle.step_pages(shadow, live, page_bytes, arenas[1], lengths[1], level=level)
        assert direct == stepped
        assert (lengths[0] == lengths[1]).all()
        assert (arenas[0][: direct[1]] == arenas[1][: direct[1]]).all()
        assert (shadow == live).all()
        xbzrle.decode_pages(arenas[1][: direct[1]], lengths[1], before, page_bytes, level=level)
        kept = np.repeat(lengths[1] < 0, page_bytes)
        assert (before[~kept] == live[~kept]).all()


@pytest.mark.parametrize("level", LEVELS)
def test_batches_stop_at_a_full_arena_and_go_on(level: str) -> None:
    old = np.zeros(40 * 1024, np.uint8)
    new = old.copy()
    new[::3] = 1
    lengths = np.zeros(40, np.int32)
    whole = np.zeros(200_000, np.uint8)
    total = xbzrle.encode_pages(old, new, 1024, whole, lengths, dlen=2000, level=level)
    assert total[0] == 40
    parts, first = b"", 0
    again = np.zeros(40, np.int32)
    while first < 40:
        arena = np.zeros(9000, np.uint8)
        first, used = xbzrle.encode_pages(old, new, 1024, arena, again, dlen=2000, first=first, level=level)
        assert used
        parts += arena[:used].tobytes()
    assert parts == whole[: total[1]].tobytes()
    assert (again == lengths).all()


def test_a_bad_page_in_a_batch_is_named_and_no_page_is_touched() -> None:
    arena = bytearray(b"\x00\x01a" + b"\x05\x01b" + b"\x00\x00\x00")
    pages = bytearray(3 * 1024)
    with pytest.raises(StreamError, match="page 2") as caught:
        xbzrle.decode_pages(arena, array.array("i", [3, 3, 3]), pages, 1024)
    assert (caught.value.offset, caught.value.value) == (6, 3)
    assert not any(pages)
    with pytest.raises(ValueError, match=r"lengths\[2\] is 9"):
        xbzrle.decode_pages(arena, array.array("i", [3, 3, 9]), pages, 1024)
    assert not any(pages)
    assert xbzrle.decode_pages(arena, array.array("i", [3, -1, 3]), pages, 1024) == 6
    assert pages[0] == ord("a")
    assert pages[2 * 1024 + 5] == ord("b")


@pytest.mark.parametrize("tail_records", [0, 1, 4])
@pytest.mark.parametrize("second_n", [1, 2, 3, 4, 16, 127, 128, 300])
@pytest.mark.parametrize("first_n", [1, 2, 3, 4, 16, 127, 128, 300])
def test_neighbouring_records_of_every_kind_decode(first_n: int, second_n: int, tail_records: int) -> None:
    """Lengths on both sides of every border between the decoder's ways, each beside each other."""
    page = random.Random(1).randbytes(4096)
    for first_z in (0, 1, 2, 126, 127, 128, 129, 255, 256, 2000):
        for second_z in (1, 2, 126, 127, 128, 129, 255, 256, 1000):
            new = bytearray(page)
            at = 0
            for z, n in ((first_z, first_n), (second_z, second_n), *[(3, 1)] * tail_records):
                at += z
                new[at : at + n] = bytes(byte ^ 0xA5 for byte in new[at : at + n])
                at += n
            encoded = xbzrle.encode(page, new)
            assert encoded is not None
            assert xbzrle.check(encoded, 4096) == at == oracle.decode(encoded, page)[0]
            decoded = bytearray(page)
            assert xbzrle.decode(encoded, decoded) == at
            assert decoded == new
            assert xbzrle.check(encoded[:-1], 4096) == oracle.decode(encoded[:-1], page)[0]


def good() -> dict[str, Any]:
    return {
        "old": bytearray(8192),
        "new": bytearray(8192),
        "page_bytes": 4096,
        "arena": bytearray(20000),
        "lengths": array.array("i", [7, 7]),
    }


shared = bytearray(32768)
BAD: dict[str, dict[str, Any]] = {
    "odd length": {"old": bytearray(8191), "new": bytearray(8191)},
    "different lengths": {"new": bytearray(4096)},
    "page size not a power of two": {"page_bytes": 3000},
    "page size too small": {"page_bytes": 512},
    "page size too large": {"page_bytes": 131072},
    "negative page size": {"page_bytes": -4096},
    "zero page size": {"page_bytes": 0},
    "small arena": {"arena": bytearray(4096)},
    "read-only arena": {"arena": bytes(20000)},
    "read-only lengths": {"lengths": memoryview(array.array("i", [1, 1])).toreadonly()},
    "few lengths": {"lengths": array.array("i", [1])},
    "wide lengths": {"lengths": array.array("q", [1, 1])},
    "unsigned lengths": {"lengths": array.array("I", [1, 1])},
    "wrong type of page": {"old": array.array("h", bytes(8192))},
    "strided page": {"old": memoryview(bytearray(16384))[::2]},
    "arena over new": {"new": memoryview(shared)[:8192], "arena": memoryview(shared)[8191:]},
    "arena over old": {"old": memoryview(shared)[:8192], "arena": memoryview(shared)[4096:]},
    "lengths over new": {
        "new": memoryview(shared)[:8192],
        "lengths": memoryview(shared)[8188:8196].cast("i"),
    },
    "negative dlen": {"dlen": -1},
    "dlen over 16 bits": {"dlen": 65536},
    "first past the end": {"first": 3},
    "negative first": {"first": -1},
    "unknown level": {"level": "mmx"},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_a_byte_is_touched(case: str) -> None:
    arguments = good() | BAD[case]
    lengths = bytes(memoryview(arguments["lengths"]).cast("B"))
    for function in (xbzrle.encode_pages, xbzrle.step_pages):
        positional = [arguments[name] for name in ("old", "new", "page_bytes", "arena", "lengths")]
        if function is xbzrle.step_pages and case == "strided page":
            positional[0] = bytearray(8192)
            positional[1] = BAD[case]["old"]
        named = {name: arguments[name] for name in ("dlen", "first", "level") if name in arguments}
        with pytest.raises((ValueError, BufferError)):
            function(*positional, **named)
        assert bytes(memoryview(arguments["lengths"]).cast("B")) == lengths


def test_step_refuses_a_shadow_it_cannot_write_or_that_is_live_memory() -> None:
    live = bytearray(8192)
    rest = (4096, bytearray(20000), array.array("i", [0, 0]))
    with pytest.raises((ValueError, BufferError)):
        xbzrle.step_pages(bytes(8192), live, *rest)
    with pytest.raises(ValueError, match="overlap"):
        xbzrle.step_pages(live, live, *rest)


def test_decode_refuses_bad_buffers() -> None:
    page = bytearray(1024)
    with pytest.raises((ValueError, BufferError)):
        xbzrle.decode(b"\x00\x01a", bytes(1024))
    with pytest.raises(ValueError, match="power of two"):
        xbzrle.decode(b"\x00\x01a", bytearray(1000))
    with pytest.raises(ValueError, match="overlap"):
        xbzrle.decode(memoryview(page)[:3], page)
    with pytest.raises(ValueError, match="1 entries for 2 pages"):
        xbzrle.decode_pages(b"\x00\x01a", array.array("i", [3]), bytearray(2048), 1024)


def test_misaligned_memory_is_fine() -> None:
    old, new = page_of(8, 4096), bytearray(page_of(8, 4096))
    new[100:300:3] = bytes(67)
    expected = oracle.encode(old, bytes(new), 4096)[1]
    for shift in range(1, 9):
        a, b = bytearray(shift) + old, bytearray(9 - shift) + new
        for level in LEVELS:
            encoded = xbzrle.encode(memoryview(a)[shift:], memoryview(b)[9 - shift :], level=level)
            assert encoded == expected


def test_a_buffer_cannot_shrink_while_a_view_of_it_is_in_use() -> None:
    with mmap.mmap(-1, 8192) as memory:
        view = memoryview(memory)
        with pytest.raises(BufferError):
            memory.close()
        assert xbzrle.encode(view[:4096], view[4096:]) == b""
        view.release()


def test_pages_at_the_very_end_of_a_mapping() -> None:
    """The last byte of each page is the last byte of a mapping with nothing behind it that is known to be mapped."""
    for level in LEVELS:
        with mmap.mmap(-1, 4096) as a, mmap.mmap(-1, 4096) as b:
            for start in range(4080, 4096):
                b[:] = bytes(4096)
                b[start:] = b"\1" * (4096 - start)
                assert xbzrle.encode(a, b, level=level) == oracle.encode(a[:], b[:], 4096)[1]
