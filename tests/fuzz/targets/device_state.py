"""Device sections: as a checkpoint's blob, and read from a stream. The three ways must agree on what they
accept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from _vectors import vector

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import StreamError
from colo.stream import (
    DeviceCheck,
    DeviceState,
    LiveSection,
    StreamLimits,
    StreamReader,
    check_device_blob,
    read_devices,
)
from colo.stream.ram import parse_mem_size
from colo.stream.writer import device_section, end_of_stream, section_footer, section_full

LIMITS = StreamLimits(device_state_bytes=1 << 20, vmdesc_bytes=1 << 20, vmdesc_values=20_000, quiet_ms=0)


@cache
def first_state() -> DeviceState:
    """The device state of a captured stream."""
    from colo._fast.kernels.ramblock import RamBlock
    from colo._fast.receive.pagedecoder import EOS, PageDecoder
    from colo._fast.receive.staging import Staging

    buf = ReadBuffer.from_bytes(vector("7.2-microvm"))
    decoder = PageDecoder(Staging(), immediate=True)
    for item in StreamReader(buf):
        if isinstance(item, LiveSection):
            while (total := decoder.decode(buf)) != EOS:
                decoder.set_blocks([RamBlock(b.idstr, b.used_length) for b in parse_mem_size(buf, total)])
        elif isinstance(item, DeviceState):
            return item
    raise AssertionError("a stream without devices")


@cache
def check_against_first() -> DeviceCheck:
    return DeviceCheck(first_state().sections, LIMITS)


def seeds() -> Iterator[bytes]:
    state = first_state()
    yield state.blob
    assert state.vmdesc is not None
    yield vector("7.2-microvm")[state.offset :]
    tricky = section_footer(3) + section_full(4, "b", version_id=1) + section_footer(4) + b"\0\x06"
    yield (
        device_section(3, "a", tricky, version_id=1)
        + device_section(4, "b", tricky, version_id=1)
        + end_of_stream()
    )


def fuzz_one(data: bytes) -> None:
    try:
        blob = check_device_blob(data, limits=LIMITS)
    except StreamError:
        blob = ()
    try:
        known = check_against_first().check(data)
    except StreamError:
        known = ()
    try:
        check_against_first().verify(data)
        assert known
    except StreamError:
        assert not known
    # Whatever passes against the first stream's devices is a blob, and of those devices.
    if known:
        assert blob
        assert {s.key for s in known} == {s.key for s in first_state().sections}
    for sections in (blob, known):
        end = 0
        for section in sections:
            assert section.offset >= end
            end = section.offset + section.length_bytes + 5
        assert not sections or end + 1 == len(data)
    for live in (None, {2}):
        buf = ReadBuffer.from_bytes(data)
        try:
            state = read_devices(buf, LIMITS, live=live)
        except StreamError:
            continue
        assert data.startswith(state.blob)
        if state.complete:
            assert check_device_blob(state.blob, limits=LIMITS)
        if state.vmdesc is None:
            assert buf.position == len(state.blob)
