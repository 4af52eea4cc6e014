"""What follows the first stream on a COLO channel: messages, live state, device state."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from _vectors import offset_is_in, vector

from colo._fast.receive.buffers import ReadBuffer
from colo.cli.inspect.inspection import Inspection
from colo.errors import StreamError
from colo.stream import StreamLimits
from colo.stream.configuration import configuration
from colo.stream.ram import RamBlockInfo, end_of_section
from colo.stream.writer import (
    device_section,
    end_of_stream,
    file_header,
    ram_start_section,
    section_end,
    section_footer,
)

LIMITS = StreamLimits(device_state_bytes=1 << 20, quiet_ms=0)


@cache
def first_stream() -> bytes:
    """A small stream whose RAM section has the id that the captured channels' has."""
    return (
        file_header()
        + configuration("pc")
        + ram_start_section(2, [RamBlockInfo("pc.ram", 1 << 20)])
        + section_end(2)
        + end_of_section()
        + section_footer(2)
        + device_section(3, "timer", bytes(24), version_id=2)
        + end_of_stream()
    )


def seeds() -> Iterator[bytes]:
    live = (
        ram_start_section(2, [RamBlockInfo("pc.ram", 1 << 20)])
        + section_end(2)
        + bytes.fromhex("0000000000003008 06")
        + b"pc.ram"
        + bytes(4096)
        + end_of_section()
        + section_footer(2)
        + end_of_stream()
    )
    blob = device_section(3, "timer", bytes(24), version_id=2) + end_of_stream()
    one = (
        bytes.fromhex("00000001 00000003")
        + live
        + bytes.fromhex("00000004")
        + len(blob).to_bytes(8, "big")
        + blob
    )
    yield one
    yield one * 3
    channel = vector("7.2-colo-xbzrle")
    yield channel[channel.index(bytes.fromhex("00000001 00000003"), 100_000) :][:9000]


def fuzz_one(data: bytes) -> None:
    whole = first_stream() + data
    try:
        Inspection(ReadBuffer.from_bytes(whole), max_ram_bytes=1 << 30, limits=LIMITS).read()
    except StreamError as error:
        offset_is_in(error, whole)
