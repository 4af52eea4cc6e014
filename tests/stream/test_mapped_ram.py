"""The block headers of mapped-ram: of a real QEMU, and such as lie."""

from __future__ import annotations

import os

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import StreamError
from colo.stream import RamBlockInfo
from colo.stream.mapped_ram import read_mapped_block

BLOCK = RamBlockInfo("ram", 100 * 4096)
BITMAP_AT = 28
PAGES_AT = 65536


def header(version=1, page=4096, bitmap=BITMAP_AT, pages=PAGES_AT):
    return version.to_bytes(4, "big") + b"".join(n.to_bytes(8, "big") for n in (page, bitmap, pages))


def block(bits=b"\xff" * 16, **numbers):
    head = header(**numbers) + bits
    return head + bytes(max(0, PAGES_AT - len(head))) + bytes(BLOCK.used_length) + b"next"


def test_pages_are_counted_and_bits_past_the_last_are_not():
    buf = ReadBuffer.from_bytes(block())
    found = read_mapped_block(buf, BLOCK)
    assert (found.normal_pages, found.zero_pages) == (100, 0)
    assert buf.peek(4) == b"next"
    sparse = b"\x01" + bytes(7) + b"\x03" + bytes(7)
    found = read_mapped_block(ReadBuffer.from_bytes(block(sparse)), BLOCK)
    assert (found.normal_pages, found.zero_pages) == (3, 97)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"page": 3000}, "pages of 3000"),
        ({"page": 1 << 40}, "pages of 1099511627776"),
        ({"page": 8192 * 4}, "in a block of 409600"),
        ({"bitmap": 5028}, "give the whole file"),
        ({"bitmap": 1 << 63}, "give the whole file"),
        ({"pages": 0}, "no whole page behind the bitmap"),
        ({"pages": 65537}, "no whole page behind the bitmap"),
        ({"pages": 1 << 63}, "no whole page behind the bitmap"),
        ({"pages": 1 << 40}, "the data ends here"),
    ],
)
def test_headers_that_lie_are_refused(numbers, says):
    with pytest.raises(StreamError, match=says):
        read_mapped_block(ReadBuffer.from_bytes(block(**numbers)), BLOCK)


def test_the_claims_of_a_small_file_allocate_nothing():
    """A terabyte of pages in a file of some bytes: the file's end is met, nothing is made for the claim."""
    fd = os.memfd_create("stream")
    os.write(fd, header(pages=1 << 40) + bytes(1000))
    os.lseek(fd, 0, os.SEEK_SET)
    with pytest.raises(StreamError, match="the data ends here"):
        read_mapped_block(ReadBuffer(fd), RamBlockInfo("ram", 1 << 40))
    os.close(fd)


def test_pages_of_a_file_are_leapt_over():
    """A sparse file of 4 TiB takes no time: its pages are not read."""
    fd = os.memfd_create("stream")
    length = 1 << 42
    bitmap_bytes = length // 65536 // 8
    pages_at = 1 << 30
    os.write(fd, header(page=65536, pages=pages_at))
    os.ftruncate(fd, pages_at + length + 4)
    os.pwrite(fd, b"next", pages_at + length)
    os.lseek(fd, 0, os.SEEK_SET)
    buf = ReadBuffer(fd)
    found = read_mapped_block(buf, RamBlockInfo("ram", length))
    assert (found.normal_pages, found.zero_pages) == (0, bitmap_bytes * 8)
    assert buf.position == pages_at + length
    assert buf.peek(5) == b"next"
    os.close(fd)
