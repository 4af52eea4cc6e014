"""The MEM_SIZE record: what is announced, and what is refused before anything is allocated for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import LimitExceeded, StreamError, Truncated
from colo.stream import RamBlockInfo, StreamLimits, mem_size, parse_mem_size

PAGE = 4096


def parse(data, total, **options):
    return parse_mem_size(ReadBuffer.from_bytes(data), total, **options)


def entry(name: bytes, length: int) -> bytes:
    return bytes((len(name),)) + name + length.to_bytes(8, "big")


LENGTHS = st.integers(1, 1 << 40).map(lambda pages: pages * PAGE)


@given(
    st.lists(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=40), unique=True, max_size=20
    ),
    st.data(),
    st.booleans(),
    st.booleans(),
)
def test_round_trip(names, data, with_page_size, with_address):
    blocks = [
        RamBlockInfo(
            name,
            data.draw(LENGTHS),
            data.draw(st.sampled_from([4096, 1 << 21, 1 << 30])) if with_page_size else None,
            data.draw(st.integers(0, (1 << 64) - 1)) if with_address else None,
        )
        for name in names
    ]
    record = mem_size(blocks)
    total = int.from_bytes(record[:8], "big")
    assert total & 0xFFF == 4
    read = parse(record[8:], total & ~0xFFF, with_page_size=with_page_size, with_address=with_address)
    assert read == blocks


def test_page_sizes_only_for_the_blocks_that_have_them():
    blocks = [RamBlockInfo("huge", 1 << 21, 1 << 21), RamBlockInfo("small", PAGE)]
    assert parse(mem_size(blocks)[8:], (1 << 21) + PAGE, with_page_size={"huge"}) == blocks


def test_a_machine_without_ram_announces_nothing():
    assert parse(b"", 0) == []


@pytest.mark.parametrize(
    ("data", "total", "says"),
    [
        (entry(b"a", PAGE), 2 * PAGE, "ends here"),
        (entry(b"a", 2 * PAGE), PAGE, "lengths do not sum to the total"),
        (entry(b"a", (1 << 64) - PAGE), PAGE, "0xfffffffffffff000"),
        (entry(b"a", (1 << 64) - 1), PAGE, "not a positive number of whole pages"),
        (entry(b"a", 0), PAGE, "not a positive number"),
        (entry(b"a", 100), PAGE, "not a positive number of whole pages"),
        (entry(b"a", PAGE) * 2, 2 * PAGE, "announced twice"),
        (entry(b"", PAGE), PAGE, "empty name"),
        (entry(b"a\0b", PAGE), PAGE, "control characters"),
        (entry(b"\xff\xfe", PAGE), PAGE, "not UTF-8"),
        (b"", 100, "not whole pages"),
    ],
)
def test_refusals(data, total, says):
    with pytest.raises(StreamError, match=says) as caught:
        parse(data, total)
    assert caught.value.offset is not None


def test_more_blocks_than_allowed_are_refused():
    data = b"".join(entry(b"%d" % i, PAGE) for i in range(5))
    with pytest.raises(LimitExceeded, match="more than 4 RAM blocks"):
        parse(data, 5 * PAGE, limits=StreamLimits(ram_blocks=4))


def test_odd_page_sizes_are_refused():
    for size in (0, 100, 4097, 1 << 63):
        with pytest.raises(StreamError, match="page size"):
            parse(entry(b"a", PAGE) + size.to_bytes(8, "big"), PAGE, with_page_size=True)


def test_truncation_at_every_byte():
    record = mem_size(
        [RamBlockInfo("pc.ram", 1 << 20, None, 0), RamBlockInfo("pc.bios", 1 << 18, None, 1 << 31)]
    )
    total = (1 << 20) + (1 << 18)
    for cut in range(8, len(record)):
        with pytest.raises(Truncated):
            parse(record[8:cut], total, with_address=True)


def test_the_writer_refuses_what_no_reader_takes():
    for blocks in (
        [RamBlockInfo("a", 100)],
        [RamBlockInfo("", PAGE)],
        [RamBlockInfo("a", PAGE)] * 2,
        [RamBlockInfo("x" * 256, PAGE)],
        [RamBlockInfo("a\0", PAGE)],
    ):
        with pytest.raises(ValueError):
            mem_size(blocks)
