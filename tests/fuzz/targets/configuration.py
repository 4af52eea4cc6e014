"""The CONFIGURATION item: what is taken, is written again so that it reads the same."""

from __future__ import annotations

from collections.abc import Iterator

from _vectors import offset_is_in

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import StreamError
from colo.stream.configuration import configuration, read_configuration


def seeds() -> Iterator[bytes]:
    yield configuration("pc-i440fx-7.2")[1:] + b"\1"
    yield configuration("q35", capabilities=("x-ignore-shared", "xbzrle"), page_bits=12, uuid=bytes(16))[1:] + b"\x08"


def fuzz_one(data: bytes) -> None:
    buf = ReadBuffer.from_bytes(b"\x07" + data)
    buf.skip(1)
    try:
        found = read_configuration(buf)
    except StreamError as error:
        offset_is_in(error, b"\x07" + data)
        return
    again = configuration(
        found.machine, capabilities=found.capabilities, page_bits=found.page_bits, uuid=found.uuid
    )
    second = ReadBuffer.from_bytes(again + b"\0")
    second.skip(1)
    same = read_configuration(second)
    assert (same.machine, same.capabilities, same.page_bits, same.uuid) == (
        found.machine, found.capabilities, found.page_bits, found.uuid
    )
    assert len(again) == buf.position or not found.capabilities  # an empty list of them is not written
