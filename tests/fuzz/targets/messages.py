"""COLO's messages and those of the return path: what is taken, encodes to the same bytes again."""


from __future__ import annotations

from collections.abc import Iterator

from colo.errors import ProtocolError, StreamError, Truncated
from colo.protocol.messages import (
    decode_message,
    decode_return_path,
    encode_message,
    encode_return_path,
    message_event,
    message_missing_bytes,
    return_path_event,
    return_path_missing_bytes,
)
from colo.wire import MESSAGE_VALUE_BYTES, ColoMessage, ReturnPath


def seeds() -> Iterator[bytes]:
    for kind in ColoMessage:
        yield encode_message(kind, 4096 if kind in MESSAGE_VALUE_BYTES else None)
    for path, size in ((ReturnPath.SHUT, 4), (ReturnPath.REQ_PAGES_ID, 20), (ReturnPath.SWITCHOVER_ACK, 0)):
        yield encode_return_path(path, payload=bytes(size))


def fuzz_one(data: bytes) -> None:
    missing = message_missing_bytes(data)
    assert 0 <= missing <= 20
    try:
        message = decode_message(data, offset=7)
    except Truncated:
        assert missing
    except StreamError as error:
        assert error.offset in (7, 11)
    else:
        assert not missing
        assert encode_message(message.kind, message.value) == data
        message_event(message.kind)
    missing = return_path_missing_bytes(data)
    assert 0 <= missing <= 4 + 13 + 255
    try:
        path = decode_return_path(data, offset=7)
    except Truncated:
        assert missing
    except StreamError as error:
        assert error.offset in (7, 9)
    else:
        assert not missing
        assert encode_return_path(path.kind, payload=path.payload) == data
        try:
            return_path_event(path)
        except ProtocolError:
            assert path.kind not in (ReturnPath.PONG, ReturnPath.SHUT)
