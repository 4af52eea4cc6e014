"""Device sections are split right, also when their data looks like footers, headers or the end."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import LimitExceeded, StreamError, Truncated
from colo.stream import DeviceCheck, StreamLimits, check_device_blob, read_devices
from colo.stream.writer import device_section, end_of_stream, section_footer, section_full, vmdescription

FAST = StreamLimits(quiet_ms=20)


def describe(devices):
    """The vmdesc of (idstr, instance, body) devices, each one field."""
    return vmdescription(
        json.dumps(
            {
                "page_size": 4096,
                "devices": [
                    {
                        "name": idstr,
                        "instance_id": instance,
                        "version": 1,
                        "fields": [{"name": "data", "type": "buffer", "size": len(body)}],
                    }
                    for idstr, instance, body in devices
                ],
            }
        ).encode()
    )


def sections_of(devices, first_id=3):
    return (
        b"".join(
            device_section(first_id + i, idstr, body, instance_id=instance, version_id=1)
            for i, (idstr, instance, body) in enumerate(devices)
        )
        + end_of_stream()
    )


def split(state):
    return [
        (s.idstr, s.instance_id, state.blob[s.offset : s.offset + s.length_bytes]) for s in state.sections
    ]


NAMES = st.text("abc/:.0", min_size=1, max_size=6)
# Data made of what the delimiter looks for: footers with ids in use, types, lengths, whole headers.
TRICKS = st.sampled_from(
    [
        b"\x7e",
        b"\0",
        b"\x04",
        b"\x06",
        section_footer(3),
        section_footer(4),
        section_footer(5),
        section_footer(3) + b"\0",
        section_footer(4) + b"\0\x06",
        section_footer(3) + section_full(4, "a", version_id=1),
        section_footer(4) + section_full(5, "b", version_id=1),
        section_footer(3) + section_full(5, "c", version_id=1),
        section_footer(3) + b"\x08\0\x02\0",
        section_footer(3) + b"\x02\0\0\0",
        b"\x00" * 9,
        section_footer(5) + b"\0" * 9,
    ]
)
BODIES = st.lists(TRICKS | st.binary(max_size=5), max_size=6).map(b"".join)
DEVICES = st.lists(st.tuples(NAMES, st.integers(0, 3), BODIES), min_size=1, max_size=6)


@given(DEVICES)
@example([("0", 0, b""), ("0", 0, b"~\x00\x00\x00\x04\x00\x06~\x00\x00\x00{")])
@settings(max_examples=300, deadline=None)
def test_the_vmdesc_settles_what_hostile_data_leaves_open(devices):
    blob = sections_of(devices)
    state = read_devices(ReadBuffer.from_bytes(blob + describe(devices)), FAST)
    assert state.blob == blob
    assert split(state) == [tuple(device) for device in devices]


@given(DEVICES)
@settings(max_examples=200, deadline=None)
def test_a_blob_that_a_sender_made_is_never_refused(devices):
    blob = sections_of(devices)
    state = read_devices(ReadBuffer.from_bytes(blob + describe(devices)), FAST)
    known = DeviceCheck(state.sections)
    assert known.check(blob)
    known.verify(blob)
    assert check_device_blob(blob, {idstr for idstr, _, _ in devices})
    assert check_device_blob(blob)


@given(DEVICES, st.lists(st.integers(1, 9), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_how_the_bytes_arrive_makes_no_difference(devices, pieces):
    blob = sections_of(devices)
    stream = blob + describe(devices) + b"what comes then"
    reader, writer = os.pipe()

    def send():
        at = 0
        for size in pieces:
            os.write(writer, stream[at : at + size])
            at += size
            time.sleep(0)
        os.write(writer, stream[at:])
        os.close(writer)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        buf = ReadBuffer(reader)
        state = read_devices(buf, StreamLimits(quiet_ms=2000))
        assert split(state) == [tuple(device) for device in devices]
        assert buf.read_exact(15) == b"what comes then"
    finally:
        thread.join()
        os.close(reader)


def test_one_byte_at_a_time_with_pauses_at_the_seams(vector, consume):
    whole = consume(vector("7.2-microvm")).device_state()
    ours, theirs = socket.socketpair()

    def send():
        for byte in whole.blob:
            theirs.send(bytes((byte,)))
        theirs.sendall(vector("7.2-microvm")[whole.offset + len(whole.blob) :])

    thread = threading.Thread(target=send)
    with ours, theirs:
        thread.start()
        state = read_devices(ReadBuffer(ours.fileno()), StreamLimits(quiet_ms=2000))
        thread.join()
    assert state.sections == whole.sections


def test_without_a_vmdesc_quiet_ends_the_stream_and_nothing_is_read_past_it():
    blob = sections_of([("a", 0, b"one"), ("b", 0, section_footer(4) + b"\1")])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(blob)
        buf = ReadBuffer(ours.fileno())
        state = read_devices(buf, FAST)
        assert state.vmdesc is None
        assert state.complete
        assert state.blob == blob
        assert buf.position == len(blob)
        theirs.sendall(b"\0\0\0\1")
        assert buf.read_u32() == 1


def test_eof_in_data_is_not_the_end_when_more_comes():
    devices = [("a", 0, section_footer(3) + b"\0" + b"more data"), ("b", 0, b"x")]
    blob = sections_of(devices)
    state = read_devices(ReadBuffer.from_bytes(blob), FAST)
    assert split(state) == [tuple(device) for device in devices]


def test_colo_messages_may_follow_without_a_vmdesc():
    blob = sections_of([("a", 0, b"data")])
    buf = ReadBuffer.from_bytes(blob + bytes.fromhex("00000001 00000003") + b"rest of the channel")
    assert read_devices(buf, FAST).blob == blob
    assert buf.read_u32() == 1


def test_early_sections_end_where_the_ram_section_or_a_command_goes_on():
    early = device_section(7, "early", b"data\x7e", version_id=1)
    for follows in (b"\x01\0\0\0\x02\x03ram", b"\x02\0\0\0\x02", b"\x03\0\0\0\x02", b"\x08\0\x0b\0\0"):
        buf = ReadBuffer.from_bytes(early + follows + b"...")
        state = read_devices(buf, FAST, live={2})
        assert not state.complete
        assert state.blob == early
        assert buf.position == len(early)


def test_a_length_that_is_not_the_vmdescs_is_refused_and_both_are_said():
    blob = sections_of([("a", 0, b"four"), ("b", 1, b"x" * 10)])
    with pytest.raises(StreamError, match=r"'b' instance 1.*10 bytes.*'b' instance 1 of 9 bytes") as caught:
        read_devices(ReadBuffer.from_bytes(blob + describe([("a", 0, b"four"), ("b", 1, b"x" * 9)])), FAST)
    assert caught.value.offset == blob.index(b"x" * 10)
    with pytest.raises(StreamError, match="does not list it"):
        read_devices(ReadBuffer.from_bytes(blob + describe([("a", 0, b"four")])), FAST)
    more = [("a", 0, b"four"), ("b", 1, b"x" * 10), ("c", 0, b"")]
    with pytest.raises(StreamError, match="lists 'c' instance 0, which has no section"):
        read_devices(ReadBuffer.from_bytes(blob + describe(more)), FAST)


def test_a_forged_section_is_seen_through_by_the_names_of_the_first_stream():
    forged = b"aa" + section_footer(3) + section_full(9, "evil", version_id=1) + b"bb" + section_footer(9)
    body = forged + section_full(3, "a", version_id=1) + b"cc"
    blob = sections_of([("a", 0, body), ("b", 0, b"x")])
    assert [s.idstr for s in check_device_blob(blob, {"a", "b"})] == ["a", "b"]


def test_ambiguity_without_a_vmdesc_is_told():
    body = b"aa" + section_footer(3) + section_full(4, "b", version_id=1)
    state = read_devices(ReadBuffer.from_bytes(sections_of([("a", 0, body), ("b", 0, b"x")])), FAST)
    assert state.ambiguous
    assert not read_devices(
        ReadBuffer.from_bytes(sections_of([("a", 0, b""), ("b", 0, b"x")])), FAST
    ).ambiguous


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "no device section"),
        (b"\0", "no device section"),
        (b"\x01\0\0\0\x02\x03ram", "not FULL"),
        (device_section(3, "a", b"data", version_id=1), "no footer"),
        (device_section(3, "a", b"data", version_id=1) + b"\0\0", "1 bytes follow the EOF"),
        (device_section(3, "a", b"data", version_id=1) + b"\0\0\0\0", "3 bytes follow the EOF"),
        (
            section_full(3, "a", version_id=1) + b"data" + section_footer(4) + b"\0",
            "footer of section 4, expected.* 3",
        ),
        (
            device_section(3, "a", b"1", version_id=1) + device_section(3, "b", b"2", version_id=1) + b"\0",
            None,
        ),
        (device_section(3, "ram", b"1", version_id=1) + b"\0", "'ram' is not expected"),
        (
            device_section(3, "a", b"1", version_id=1).replace(b"\x01a", b"\x01\x07") + b"\0",
            "control characters",
        ),
        (b"\x04\0\0\0\x03\x00" + bytes(8) + section_footer(3) + b"\0", "empty name"),
        (b"\x04\0\0\0\x03\xffabc", "cut off"),
        (b"\x04", "cut off"),
    ],
)
def test_a_blob_that_is_not_whole_sections_is_refused(blob, says):
    if says is None:  # a reused id can only mean that the second section is data of the first
        assert len(check_device_blob(blob)) == 1
        return
    with pytest.raises(StreamError, match=says):
        check_device_blob(blob)


def test_bounds_hold_on_hostile_blobs():
    limits = StreamLimits(device_state_bytes=1 << 16, device_sections=64, quiet_ms=20)
    with pytest.raises(LimitExceeded, match="65537 bytes"):
        check_device_blob(b"\x04" * 65537, limits=limits)
    with pytest.raises(LimitExceeded, match="no end within 65536 bytes"):
        read_devices(ReadBuffer.from_bytes(section_full(3, "a", version_id=1) + bytes(1 << 17)), limits)
    many = b"".join(device_section(i, "a", b"", version_id=1) for i in range(65)) + b"\0"
    with pytest.raises(LimitExceeded, match="64 device sections"):
        check_device_blob(many, limits=limits)


def test_a_blob_with_countless_readings_is_refused_in_bounded_time():
    # Each layer offers both a way on and a dead end that is only noticed far behind it.
    layers = []
    for i in range(1000):
        layers.append(section_footer(2 * i) + section_full(2 * i + 2, "a", version_id=1))
        layers.append(section_footer(2 * i) + section_full(2 * i + 2, "b", version_id=1))
    blob = section_full(0, "x", version_id=1) + b"".join(layers) + section_footer(2000) + b"\0"
    started = time.process_time()
    assert check_device_blob(blob)
    with pytest.raises(StreamError):
        check_device_blob(blob, {"x", "nowhere", "a", "b"})
    assert time.process_time() - started < 5


def test_data_full_of_footers_is_scanned_once():
    footers = (section_footer(3) + b"\0") * 50_000
    blob = sections_of([("a", 0, footers), ("b", 0, b"")])
    started = time.process_time()
    state = read_devices(ReadBuffer.from_bytes(blob), FAST)
    assert [s.idstr for s in state.sections] == ["a", "b"]
    assert check_device_blob(blob)
    assert time.process_time() - started < 5


def test_truncated_device_data_names_the_section():
    with pytest.raises(Truncated, match="device section 3 'a'"):
        read_devices(ReadBuffer.from_bytes(section_full(3, "a", version_id=1) + b"data"), FAST)


def test_endless_candidates_are_refused():
    data = section_full(3, "a", version_id=1) + (section_footer(3) + b"\0") * 70_000
    with pytest.raises(LimitExceeded, match="look like the end of a section"):
        read_devices(ReadBuffer.from_bytes(data), FAST)
    data = section_full(3, "a", version_id=1) + (section_footer(3) + b"\x04\0\0\0\x03\x01\x07") * 70_000
    with pytest.raises(LimitExceeded, match="look like the end of a section"):
        check_device_blob(data)
