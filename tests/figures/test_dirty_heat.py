"""Pages by place and time."""

from __future__ import annotations

import json
import os

import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import PageDecoder
from colo._fast.receive.staging import Staging
from colo._fast.send.pageencoder import PageEncoder
from colo.control.client import ANSWER_LIMIT_BYTES
from colo.figures.dirty_heat import COLUMNS, NAMED_BLOCKS, ROWS, DirtyHeat

PAGE = 4096


class Checkpoints:
    """Stages checkpoints of two blocks whose pages are chosen by number over both."""

    def __init__(self, first: int, second: int) -> None:
        self.sizes = (first, second)
        self.memory = [bytearray(os.urandom(n * PAGE)) for n in self.sizes]
        self.blocks = [RamBlock(name, n * PAGE, memory=bytearray(n * PAGE)) for name, n in zip("ab", self.sizes, strict=True)]
        self.staging = Staging()
        self.decoder = PageDecoder(self.staging)

    def add(self, heat: DirtyHeat, *pages: int, zero: bool = False) -> None:
        encoder = PageEncoder()
        for n, block in enumerate(self.blocks):
            bitmap = DirtyBitmap(self.sizes[n])
            for page in pages:
                place = page - (self.sizes[0] if n else 0)
                if 0 <= place < self.sizes[n]:
                    bitmap.set(place, 1)
            memory = bytearray(len(self.memory[n])) if zero else self.memory[n]
            encoder.begin_block(block.idstr, memory, bitmap)
            encoder.encode()
        encoder.end_section()
        encoder.close()
        self.decoder.set_blocks(self.blocks)
        self.decoder.decode(ReadBuffer.from_bytes(encoder.take()))
        heat.add(self.blocks, self.staging)
        self.staging.apply()


@pytest.mark.parametrize("zero", [False, True])
def test_pages_count_where_they_lie(zero: bool) -> None:
    """Also in runs of zero pages, which are one entry."""
    checkpoints, heat = Checkpoints(2 * COLUMNS, 2 * COLUMNS), DirtyHeat()
    pages = (0, 1, 2, 3, 7, 2 * COLUMNS, 4 * COLUMNS - 1)
    checkpoints.add(heat, *pages, zero=zero)
    checkpoints.add(heat, 5)
    told = heat.as_dict()
    assert told["bucket_pages"] == 4 and told["checkpoints_per_row"] == 1
    assert told["blocks"] == [{"idstr": "a", "pages": 2 * COLUMNS}, {"idstr": "b", "pages": 2 * COLUMNS}]
    first, second = told["rows"]
    assert {n: count for n, count in enumerate(first) if count} == {0: 4, 1: 1, COLUMNS // 2: 1, COLUMNS - 1: 1}
    assert {n: count for n, count in enumerate(second) if count} == {1: 1}


def test_a_long_session_keeps_its_shape_and_a_short_table() -> None:
    checkpoints, heat = Checkpoints(100, 3), DirtyHeat()
    total = 3 * ROWS + 5
    for n in range(total):
        checkpoints.add(heat, n * 100 // total)
    told = heat.as_dict()
    assert len(told["rows"]) <= ROWS
    assert told["checkpoints_per_row"] == 4
    assert sum(map(sum, told["rows"])) == total
    hottest = [row.index(max(row)) for row in told["rows"]]
    assert hottest == sorted(hottest)


def test_a_summary_has_all_that_was_counted_by_place() -> None:
    checkpoints, heat = Checkpoints(COLUMNS, COLUMNS), DirtyHeat()
    assert heat.summary()["places"] == [0] * COLUMNS and heat.summary()["checkpoints"] == 0
    for n in range(ROWS + 7):
        checkpoints.add(heat, n % 4, 2 * COLUMNS - 1)
    told = heat.summary()
    assert sum(told["places"]) == 2 * (ROWS + 7) == sum(map(sum, heat.as_dict()["rows"]))
    assert told["places"][COLUMNS - 1] == ROWS + 7 == told["checkpoints"]
    assert told["blocks"] == [
        {"idstr": "a", "begin": 0, "pages": COLUMNS}, {"idstr": "b", "begin": COLUMNS, "pages": COLUMNS}]
    assert 0 < sum(told["recent"]) <= sum(told["places"])
    times = heat.as_dict()["times_s"]
    assert len(times) == len(heat.as_dict()["rows"]) and times == sorted(times)


def test_a_summary_of_very_many_blocks_fits_an_answer() -> None:
    """The control socket bounds its answers; a primary may announce 4096 blocks with names of 255 bytes."""
    heat = DirtyHeat()
    blocks = [RamBlock(chr(0x80) * 120 + f"{n:05d}", (1 + n % 9) * PAGE, memory=bytearray((1 + n % 9) * PAGE)) for n in range(4096)]
    heat.add(blocks, Checkpoints(1, 1).staging)
    told = heat.summary()
    assert len(json.dumps(told)) < ANSWER_LIMIT_BYTES // 8
    assert len(told["blocks"]) == NAMED_BLOCKS and all(block["pages"] == 9 for block in told["blocks"])
    assert told["total_pages"] == sum(block.pages for block in blocks)
    begins = [block["begin"] for block in told["blocks"]]
    assert begins == sorted(begins)


def test_a_table_without_places_is_refused() -> None:
    checkpoints = Checkpoints(4, 4)
    for buckets, pages in ((bytearray(0), 1), (bytearray(8), 0)):
        with pytest.raises(ValueError, match="buckets"):
            checkpoints.staging.count_pages(memoryview(buckets).cast("I"), pages)
