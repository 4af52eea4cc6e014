"""A whole stream through the reader, its RAM bodies through the decoder, its devices through their fields."""

from __future__ import annotations

from collections.abc import Iterator

from _vectors import offset_is_in, vector

from colo._fast.receive.buffers import ReadBuffer
from colo.cli.inspect.inspection import Inspection
from colo.errors import StreamError
from colo.stream import StreamLimits

LIMITS = StreamLimits(device_state_bytes=1 << 20, vmdesc_bytes=1 << 20, vmdesc_values=20_000, quiet_ms=0)


def seeds() -> Iterator[bytes]:
    for name in ("7.2-none", "7.2-microvm", "7.2-pc-suppress-vmdesc", "7.2-isapc"):
        yield vector(name)
    yield vector("7.2-pc-ignore-shared")[:6000]


def fuzz_one(data: bytes) -> None:
    inspection = Inspection(ReadBuffer.from_bytes(data), max_ram_bytes=1 << 30, limits=LIMITS)
    try:
        inspection.read()
    except StreamError as error:
        offset_is_in(error, data)
        return
    assert inspection.found["bytes"] == len(data)
