"""Bytes to messages and back, and everything that is no message."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import LimitExceeded, ProtocolError, StreamError, Truncated
from colo.protocol import (
    Event,
    Message,
    ReturnPathMessage,
    command_event,
    decode_message,
    decode_return_path,
    encode_message,
    encode_return_path,
    message_event,
    message_missing_bytes,
    return_path_event,
    return_path_missing_bytes,
)
from colo.protocol.messages import DEVICE_LIMIT_BYTES, RETURN_PATH_PAYLOAD_BYTES
from colo.wire import MESSAGE_VALUE_BYTES, ColoMessage, Command, ReturnPath

PLAIN = [kind for kind in ColoMessage if kind not in MESSAGE_VALUE_BYTES]


@pytest.mark.parametrize("kind", PLAIN)
def test_a_message_is_a_big_endian_u32(kind: ColoMessage) -> None:
    data = encode_message(kind)
    assert data == bytes([0, 0, 0, int(kind)])
    assert decode_message(data) == Message(kind, None)
    assert message_event(kind).name == kind.name


@given(st.integers(1, DEVICE_LIMIT_BYTES))
def test_vmstate_size_carries_a_u64(size: int) -> None:
    data = encode_message(ColoMessage.VMSTATE_SIZE, size)
    assert data == b"\0\0\0\4" + size.to_bytes(8, "big")
    assert decode_message(memoryview(data)) == Message(ColoMessage.VMSTATE_SIZE, size)


@pytest.mark.parametrize("data", [encode_message(ColoMessage.VMSTATE_SIZE, 300), b"\0\0\0\1"])
def test_a_reader_never_asks_for_more_than_the_message(data: bytes) -> None:
    have = b""
    while missing := message_missing_bytes(have):
        with pytest.raises(Truncated) as caught:
            decode_message(have, offset=7)
        assert caught.value.offset == 7
        have += data[len(have) : len(have) + missing]
    assert have == data
    decode_message(have)


@pytest.mark.parametrize("number", [7, 8, 255, 0x10000, 0xFFFFFFFF, 0x5145564D])
def test_unknown_numbers_are_refused(number: int) -> None:
    with pytest.raises(StreamError, match=f"at byte 512 .*{number} .*is no COLO message") as caught:
        decode_message(struct.pack(">I", number), offset=512)
    assert caught.value.value == number


@pytest.mark.parametrize("size", [DEVICE_LIMIT_BYTES + 1, 1 << 63, (1 << 64) - 1])
def test_a_size_over_the_limit_is_refused(size: int) -> None:
    with pytest.raises(LimitExceeded, match=str(size)) as caught:
        decode_message(encode_message(ColoMessage.VMSTATE_SIZE, size), offset=100)
    assert (caught.value.offset, caught.value.value) == (104, size)


def test_the_limit_is_the_users() -> None:
    data = encode_message(ColoMessage.VMSTATE_SIZE, 1001)
    assert decode_message(data, device_limit_bytes=1001).value == 1001
    with pytest.raises(LimitExceeded):
        decode_message(data, device_limit_bytes=1000)


def test_a_size_of_0_is_refused() -> None:
    with pytest.raises(StreamError, match="VMSTATE_SIZE of 0"):
        decode_message(b"\0\0\0\4" + bytes(8))
    with pytest.raises(ValueError, match="VMSTATE_SIZE"):
        encode_message(ColoMessage.VMSTATE_SIZE, 0)


def test_values_go_with_vmstate_size_only() -> None:
    with pytest.raises(ValueError, match="carries no value"):
        encode_message(ColoMessage.VMSTATE_LOADED, 1)
    with pytest.raises(ValueError, match="got None"):
        encode_message(ColoMessage.VMSTATE_SIZE)
    with pytest.raises(ValueError, match="2\\*\\*64"):
        encode_message(ColoMessage.VMSTATE_SIZE, 1 << 64)


def test_bytes_after_a_message_are_refused() -> None:
    for data in (b"\0\0\0\1\0", encode_message(ColoMessage.VMSTATE_SIZE, 5) + b"x"):
        with pytest.raises(StreamError, match="1 bytes follow"):
            decode_message(data)


@given(st.binary(max_size=20))
def test_any_bytes_are_a_message_or_a_clear_error(data: bytes) -> None:
    error = None
    try:
        message = decode_message(data, offset=0)
    except StreamError as caught:
        error = caught
    if error is None:
        assert encode_message(*message) == data
    else:
        assert error.where == "COLO message"
        assert error.offset is not None


def test_shut_and_pong_are_as_qemu_sends_them() -> None:
    assert encode_return_path(ReturnPath.SHUT, 0) == bytes.fromhex("0001 0004 00000000")
    assert encode_return_path(ReturnPath.PONG, 1) == bytes.fromhex("0002 0004 00000001")
    assert encode_return_path(ReturnPath.SWITCHOVER_ACK) == bytes.fromhex("0007 0000")
    request = ReturnPathMessage(ReturnPath.REQ_PAGES, bytes(12))
    assert decode_return_path(encode_return_path(request.kind, payload=request.payload)) == request


@given(st.sampled_from(ReturnPath), st.data())
def test_return_path_round_trip(kind: ReturnPath, data: st.DataObject) -> None:
    least, most = RETURN_PATH_PAYLOAD_BYTES[kind]
    payload = data.draw(st.binary(min_size=least, max_size=most))
    encoded = encode_return_path(kind, payload=payload)
    have = b""
    while missing := return_path_missing_bytes(have):
        with pytest.raises(Truncated):
            decode_return_path(have)
        have += encoded[len(have) : len(have) + missing]
    assert have == encoded
    assert decode_return_path(have) == ReturnPathMessage(kind, payload)


@given(st.binary(min_size=4, max_size=300))
def test_any_bytes_are_a_return_path_message_or_a_clear_error(data: bytes) -> None:
    assert return_path_missing_bytes(data) <= 268
    error = None
    try:
        message = decode_return_path(data, offset=0)
    except StreamError as caught:
        error = caught
    if error is None:
        assert encode_return_path(message.kind, payload=message.payload) == data
    else:
        assert error.where == "return path"


@pytest.mark.parametrize("kind", ReturnPath)
def test_a_length_that_does_not_go_with_the_type_is_refused_before_it_is_read(kind: ReturnPath) -> None:
    for length in (RETURN_PATH_PAYLOAD_BYTES[kind][0] - 1, RETURN_PATH_PAYLOAD_BYTES[kind][1] + 1, 0xFFFF):
        if length < 0:
            continue
        header = struct.pack(">HH", kind, length)
        assert return_path_missing_bytes(header) == 0
        with pytest.raises(StreamError, match=kind.name) as caught:
            decode_return_path(header, offset=10)
        assert (caught.value.offset, caught.value.value) == (12, length)
        with pytest.raises(ValueError, match=kind.name):
            encode_return_path(kind, payload=bytes(length))


def test_a_colo_message_on_the_return_path_is_recognised() -> None:
    with pytest.raises(StreamError, match="before the return path was shut"):
        decode_return_path(encode_message(ColoMessage.CHECKPOINT_READY))


def test_values_of_the_return_path_are_bounded() -> None:
    with pytest.raises(ValueError, match="u32"):
        encode_return_path(ReturnPath.PONG, 1 << 32)
    with pytest.raises(ValueError, match="not both"):
        encode_return_path(ReturnPath.PONG, 1, payload=b"1234")


def test_return_path_events() -> None:
    assert return_path_event(decode_return_path(encode_return_path(ReturnPath.PONG, 9))) is Event.PONG
    assert return_path_event(decode_return_path(encode_return_path(ReturnPath.SHUT, 0))) is Event.SHUT
    assert return_path_event(decode_return_path(encode_return_path(ReturnPath.SHUT, 1))) is Event.SHUT_FAILED
    for kind in set(ReturnPath) - {ReturnPath.PONG, ReturnPath.SHUT}:
        with pytest.raises(ProtocolError, match=kind.name):
            return_path_event(ReturnPathMessage(kind, b""))


def test_commands_of_postcopy_have_no_place_in_colo() -> None:
    served = {Command.OPEN_RETURN_PATH, Command.PING, Command.ENABLE_COLO, Command.SWITCHOVER_START}
    for command in Command:
        if command in served:
            assert command_event(command).name == command.name
        else:
            with pytest.raises(ProtocolError, match=command.name):
                command_event(command)
