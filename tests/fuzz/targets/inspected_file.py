"""A file as ``colo inspect`` is given it: whatever is around a stream, and streams that sessions refuse."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Iterator

from _vectors import VECTORS, vector

from colo.cli.inspect import inspected_file
from colo.cli.inspect.inspected_file import examine
from colo.errors import ColoError
from colo.stream import RamBlockInfo
from colo.stream.ram import end_of_section, mem_size
from colo.stream.writer import configuration, device_section, end_of_stream, file_header, section_footer, section_start

LONGEST = 1 << 16
assert inspected_file.LAYERS_MAX <= 8


def mapped() -> bytes:
    """A mapped-ram file of one block of two pages."""
    head = file_header() + configuration("pc", capabilities=("mapped-ram",)) + section_start(2, "ram", version_id=4)
    head += mem_size([RamBlockInfo("r", 8192)])
    at = len(head) + 28
    numbers = (1).to_bytes(4, "big") + b"".join(n.to_bytes(8, "big") for n in (4096, at, 4096))
    start = head + numbers + b"\x01" + bytes(7)
    rest = end_of_section() + section_footer(2) + device_section(3, "d", b"abc", version_id=1) + end_of_stream()
    return start + bytes(4096 - len(start)) + bytes(8192) + rest


def seeds() -> Iterator[bytes]:
    small = vector("7.2-none")
    yield small
    yield gzip.compress(small)
    yield lzma.compress(small)
    xml = b"<domain><name>a</name></domain>\0"
    numbers = b"".join(n.to_bytes(4, "little") for n in (2, len(xml), 1, 0, 0))
    yield b"LibvirtQemudSave" + numbers + bytes(56) + xml + small
    yield mapped()
    for name, length in (("7.2-snapshot", LONGEST * 4), ("7.2-pc-2.3", 20_000), ("7.2-s390", 3000), ("7.2-mps2", 3000)):
        yield lzma.decompress((VECTORS / "inspect" / f"{name}.stream.xz").read_bytes())[:length]


def fuzz_one(data: bytes) -> None:
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        try:
            found, error = examine(f"/proc/self/fd/{fd}", max_ram_bytes=1 << 26)
        except ColoError:
            return
        assert (found["error"] is None) == (error is None)
        assert len(found["errors"]) <= 256
        if error is None:
            assert found["header"]
    finally:
        os.close(fd)
