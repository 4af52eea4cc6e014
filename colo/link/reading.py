"""One message from a connection, without a byte of what follows it."""

from __future__ import annotations

from colo._fast.receive.buffers import ReadBuffer
from colo.protocol import (
    Message,
    ReturnPathMessage,
    decode_message,
    decode_return_path,
    message_missing_bytes,
    return_path_missing_bytes,
)
from colo.protocol.messages import DEVICE_LIMIT_BYTES


def read_message(buffer: ReadBuffer, *, device_limit_bytes: int = DEVICE_LIMIT_BYTES) -> Message:
    """Read one of COLO's. Raises what the buffer raises, StreamError for what is no message, LimitExceeded for a VMSTATE_SIZE
    over its limit."""
    position = buffer.position
    raw = b""
    while missing := message_missing_bytes(raw):
        raw += buffer.read_exact(missing)
    return decode_message(raw, offset=position, device_limit_bytes=device_limit_bytes)


def read_return_path(buffer: ReadBuffer) -> ReturnPathMessage:
    """Read one message of the return path. Raises what the buffer raises, StreamError for what is none."""
    position = buffer.position
    raw = b""
    while missing := return_path_missing_bytes(raw):
        raw += buffer.read_exact(missing)
    return decode_return_path(raw, offset=position)
