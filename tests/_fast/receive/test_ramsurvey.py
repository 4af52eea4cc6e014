"""Records counted, for pages of any size."""

from __future__ import annotations

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.ramsurvey import EOS, RamSurvey
from colo.errors import StreamError, Truncated
from colo.survey.page_size import SIZES, shown_by_records
from colo.wire import RamFlag

BLOCKS = [("a", 1 << 20), ("b", 1 << 20)]


def record(offset: int, flag: int, name: str = "", payload: bytes = b"") -> bytes:
    head = (offset | flag | (0 if name else RamFlag.CONTINUE)).to_bytes(8, "big")
    return head + (bytes((len(name),)) + name.encode() if name else b"") + payload


END = int(RamFlag.EOS).to_bytes(8, "big")


def body(size: int, fill: bytes = b"\xa5") -> bytes:
    return b"".join(
        (
            record(0, RamFlag.PAGE, "a", fill * size),
            record(3 * size, RamFlag.ZERO, "", b"\0"),
            record(0, RamFlag.ZERO, "b", b"\0"),
            record(size, RamFlag.XBZRLE, "", b"\1\0\3abc"),
            record(2 * size, RamFlag.COMPRESS_PAGE, "", b"\0\0\0\5hello"),
            int(RamFlag.MULTIFD_FLUSH).to_bytes(8, "big"),
            int(RamFlag.HOOK).to_bytes(8, "big"),
            record(4 * size, RamFlag.PAGE, "", fill * size),
            END,
        )
    )


def survey(size: int, data: bytes) -> RamSurvey:
    made = RamSurvey(size)
    made.set_blocks(BLOCKS)
    buf = ReadBuffer.from_bytes(data)
    assert made.decode(buf) == EOS
    assert buf.at_end()
    return made


@pytest.mark.parametrize("size", SIZES)
def test_records_are_counted(size: int) -> None:
    made = survey(size, body(size))
    assert [block.counts for block in made.blocks] == [
        {"normal_pages": 1, "zero_pages": 1, "xbzrle_pages": 0, "compressed_pages": 0},
        {"normal_pages": 1, "zero_pages": 1, "xbzrle_pages": 1, "compressed_pages": 1},
    ]
    assert (made.flushes, made.hooks) == (1, 1)
    assert made.min_stride == size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill", [b"\xa5", b"\0", b"\x08"])
def test_the_page_size_shows_in_the_records(size: int, fill: bytes) -> None:
    assert shown_by_records(body(size, fill), BLOCKS) == size
    cut = body(size, fill)[: 2 * size]
    assert shown_by_records(cut, BLOCKS) in (size, None) or len(cut) < size


@pytest.mark.parametrize("size", SIZES)
def test_the_page_size_shows_in_zero_pages_too(size: int) -> None:
    zeros = record(0, RamFlag.ZERO, "a", b"\0") + b"".join(
        record(n * size, RamFlag.ZERO, "", b"\0") for n in range(1, 12)
    )
    assert shown_by_records(zeros + END, BLOCKS) == size


def test_nothing_shows_nothing() -> None:
    assert shown_by_records(END, BLOCKS) is None
    assert shown_by_records(b"", BLOCKS) is None
    assert shown_by_records(b"\xff" * 100, BLOCKS) is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (record(0, 0, "a"), "without a type flag"),
        (record(0, 0x1, "a"), "unknown flag 0x1"),
        (record(0, RamFlag.ZERO | RamFlag.PAGE, "a"), "do not go together"),
        (record(0, RamFlag.ZERO, "c", b"\0"), "b'c', which was not announced"),
        (record(0, RamFlag.ZERO, "", b"\0"), "named a block"),
        (record(1 << 20, RamFlag.ZERO, "a", b"\0"), "past the end"),
        (record(0, RamFlag.XBZRLE, "a", b"\1\xff\xff"), "XBZRLE length 65535"),
        (record(0, RamFlag.COMPRESS_PAGE, "a", b"\xff" * 4), "compressed length"),
        ((1 << 30 | RamFlag.EOS).to_bytes(8, "big"), "carries the offset"),
    ],
)
def test_what_cannot_be_is_refused(data: bytes, says: str) -> None:
    made = RamSurvey(16384)
    made.set_blocks(BLOCKS)
    with pytest.raises(StreamError, match=says) as caught:
        made.decode(ReadBuffer.from_bytes(data))
    assert caught.value.offset == 0


def test_a_cut_body_is_told() -> None:
    made = RamSurvey(1024)
    made.set_blocks(BLOCKS)
    with pytest.raises(Truncated):
        made.decode(ReadBuffer.from_bytes(body(1024)[:500]))


def test_a_block_list_is_the_callers() -> None:
    made = RamSurvey(1024)
    buf = ReadBuffer.from_bytes((5 << 10 | RamFlag.MEM_SIZE).to_bytes(8, "big") + b"list")
    assert made.decode(buf) == 5 << 10
    assert buf.peek(4) == b"list"


@pytest.mark.parametrize("size", [0, 512, 3000, 131072])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        RamSurvey(size)
