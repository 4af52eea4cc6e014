"""What comes over a lease connection is a frame or an error, however it is cut up, and never more than its bounds."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import LimitExceeded, ProtocolError, StreamError
from colo.lease.frames import Frame, FrameReader, encode
from colo.lease.meeting import Meeting, Welcome
from colo.wire import LEASE_FRAME_BYTES, LEASE_MAGIC, LEASE_TEXT_BYTES_MAX, LeaseMessage

FRAMES = [
    Frame(LeaseMessage.MEET, 3, text={"vm": "a"}), Frame(LeaseMessage.RENEW, 3, 7), Frame(LeaseMessage.PROMISE, 3, 7, 10**9),
    Frame(LeaseMessage.STOP, 3, value=4), Frame(LeaseMessage.NOTICE, text={"notice": "é"}),
]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_frames_come_out_whole_however_they_are_cut(cuts: list[int]) -> None:
    data = b"".join(map(encode, FRAMES))
    reader, found, at = FrameReader(), [], 0
    for cut in [*cuts, len(data)]:
        found += reader.feed(data[at : at + cut])
        at += cut
    assert [(f.kind, f.generation, f.sequence, f.value, dict(f.text)) for f in found] == [
        (f.kind, f.generation, f.sequence, f.value, dict(f.text)) for f in FRAMES]


def raw(kind: int, length: int = 0, *, magic: int = LEASE_MAGIC, zero: int = 0, text: bytes = b"") -> bytes:
    return struct.pack(">IBBHQQQ", magic, kind, zero, length, 1, 1, 1) + text


@pytest.mark.parametrize(("data", "error"), [
    (raw(2, magic=0x51455645), StreamError), (raw(99), StreamError), (raw(2, zero=1), StreamError),
    (raw(2, 5, text=b"12345"), LimitExceeded), (raw(1, LEASE_TEXT_BYTES_MAX + 1), LimitExceeded),
    (raw(1, 4, text=b"[[[["), StreamError), (raw(1, 2, text=b"[]"), StreamError), (raw(1, 2, text=b"\xff\xfe"), StreamError),
    (raw(1, 6, text=b'"text"'), StreamError),
    *((encode(Frame(kind, 3, value=value)), StreamError)
      for kind in (LeaseMessage.STOP, LeaseMessage.END, LeaseMessage.RETURNED, LeaseMessage.ALONE) for value in (0, 3, 10**15)),
    (encode(Frame(LeaseMessage.RENEW, 1 << 63)), StreamError),
])
def test_what_is_no_frame_is_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="lease connection"):
        FrameReader().feed(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_an_error_or_not_whole_yet(data: bytes) -> None:
    try:
        FrameReader().feed(data)
    except StreamError:
        pass
    else:
        assert len(data) < LEASE_FRAME_BYTES or data[:4] == LEASE_MAGIC.to_bytes(4, "big")


@pytest.mark.parametrize("text", [
    {"generation": "1"}, {"generation": -2}, {"generation": True}, {"lease_ms": "3"}, {"lease_ms": -1.0}, {"vm": "x" * 600},
    {"vm": None}, {"version": 2}, {"token": "zz"}, {"generation": 1 << 70}, {"generation": -1}, {"generation": 10**15},
    {"lease_ms": 10**400}, {"lease_ms": float("nan")}, {"lease_ms": True},
])
def test_a_meeting_of_wrong_types_or_sizes_is_refused(text: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        Meeting.of(text)


def test_what_both_say_comes_back() -> None:
    meeting = Meeting("vm", "u", "a" * 32, 5, "c" * 32, 3000.0, "", "host")
    assert Meeting.of(meeting.as_dict()) == meeting
    welcome = Welcome("f" * 32, 1000.0, "a", 5, 7, True, "no room", "host")
    assert Welcome.of(welcome.as_dict() | {"unknown": 1}) == welcome
    with pytest.raises(ProtocolError, match="no token"):
        Welcome.of({})
