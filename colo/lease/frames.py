"""The frames of a lease connection: 32 bytes each, and JSON behind a few of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from colo.errors import LimitExceeded, StreamError
from colo.wire import GENERATION_MAX, LEASE_FRAME_BYTES, LEASE_MAGIC, LEASE_TEXT_BYTES_MAX, LeaseMessage

_FRAME = struct.Struct(">IBBHQQQ")
assert _FRAME.size == LEASE_FRAME_BYTES
MAGIC = LEASE_MAGIC.to_bytes(4, "big")
WITH_TEXT = frozenset({
    LeaseMessage.MEET, LeaseMessage.WELCOME, LeaseMessage.REFUSED, LeaseMessage.NOTICE, LeaseMessage.ENDED,
    LeaseMessage.ALONE, LeaseMessage.STANDS, LeaseMessage.GONE, LeaseMessage.RETURNED,
})
CLAIMS = frozenset({LeaseMessage.ALONE, LeaseMessage.STOP, LeaseMessage.END, LeaseMessage.RETURNED})
"""Their ``value`` is the generation that was claimed from the frame's."""
WHERE = "lease connection"


class Frame(NamedTuple):
    """One message. ``text`` is a JSON object, {} where there is none."""

    kind: LeaseMessage
    generation: int = 0
    sequence: int = 0
    value: int = 0
    text: Mapping[str, Any] = MappingProxyType({})


def encode(frame: Frame) -> bytes:
    """The bytes of ``frame``. Raises ValueError when its text is too long."""
    text = json.dumps(dict(frame.text)).encode() if frame.text else b""
    if len(text) > LEASE_TEXT_BYTES_MAX:
        raise ValueError(f"{len(text)} bytes behind a lease frame, {LEASE_TEXT_BYTES_MAX} fit")
    return _FRAME.pack(
        LEASE_MAGIC, frame.kind, 0, len(text), frame.generation, frame.sequence, frame.value) + text


class FrameReader:
    """Frames from bytes as they come, in whatever pieces. Holds no more than one frame's bytes and what was fed last."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. Raises StreamError, LimitExceeded at the first that cannot be one."""
        self._bytes += data
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        return frames

    def _take(self) -> Frame | None:
        if len(self._bytes) < LEASE_FRAME_BYTES:
            return None
        magic, kind, zero, length, generation, sequence, value = _FRAME.unpack_from(self._bytes)
        if magic != LEASE_MAGIC or zero:
            raise StreamError("no lease frame begins here", where=WHERE, value=f"{magic:#010x}")
        try:
            message = LeaseMessage(kind)
        except ValueError:
            raise StreamError(f"unknown message {kind}", where=WHERE, value=kind) from None
        if length > LEASE_TEXT_BYTES_MAX or (length and message not in WITH_TEXT):
            raise LimitExceeded(f"{length} bytes behind {message.name}", where=WHERE, value=length)
        if generation >= GENERATION_MAX or (message in CLAIMS and not generation < value < GENERATION_MAX):
            raise StreamError(f"{message.name} names no generation", where=WHERE, value=(generation, value))
        if len(self._bytes) < LEASE_FRAME_BYTES + length:
            return None
        raw = bytes(self._bytes[LEASE_FRAME_BYTES : LEASE_FRAME_BYTES + length])
        del self._bytes[: LEASE_FRAME_BYTES + length]
        return Frame(message, generation, sequence, value, _text(raw, message))


def _text(raw: bytes, message: LeaseMessage) -> dict[str, Any]:
    if not raw:
        return {}
    try:
        text = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        text = None
    if not isinstance(text, dict):
        raise StreamError(f"what follows {message.name} is no JSON object", where=WHERE, value=raw[:40])
    return text
