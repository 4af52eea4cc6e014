"""Bytes to messages and back: COLO's messages, and those of the return path.

The decoders take what has been read so far. ``…_missing_bytes`` says how much more one whole message needs,
so that a session never reads past it: the bytes that follow VMSTATE_SEND or VMSTATE_SIZE belong to
somebody else. Numbers are big-endian; QEMU's side of it is migration/colo.c (colo_send_message,
colo_receive_message) and migration/migration.c (migrate_send_rp_message, source_return_path_thread).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from colo.errors import LimitExceeded, ProtocolError, StreamError, Truncated
from colo.protocol.words import Event
from colo.wire import IDSTR_MAX_BYTES, MESSAGE_VALUE_BYTES, ColoMessage, Command, ReturnPath

DEVICE_LIMIT_BYTES = 64 << 20
"""Most device state that is taken unless the user says otherwise."""

_WHERE = "COLO message"
_WHERE_RETURN_PATH = "return path"
_U32 = struct.Struct(">I")
_RETURN_PATH_HEADER = struct.Struct(">HH")

RETURN_PATH_PAYLOAD_BYTES: dict[ReturnPath, tuple[int, int]] = {
    ReturnPath.SHUT: (4, 4),
    ReturnPath.PONG: (4, 4),
    ReturnPath.REQ_PAGES_ID: (13, 13 + IDSTR_MAX_BYTES),
    ReturnPath.REQ_PAGES: (12, 12),
    ReturnPath.RECV_BITMAP: (1, 1 + IDSTR_MAX_BYTES),
    ReturnPath.RESUME_ACK: (4, 4),
    ReturnPath.SWITCHOVER_ACK: (0, 0),
}
"""Least and most payload bytes of each message of the return path."""


class Message(NamedTuple):
    """``value``: the size in bytes that VMSTATE_SIZE announces, EXTENSIONS' bits, the digest; None for all others."""

    kind: ColoMessage
    value: int | None = None


class ReturnPathMessage(NamedTuple):
    """``value`` is the u32 of SHUT, PONG and RESUME_ACK; ``payload`` is everything after the header."""

    kind: ReturnPath
    payload: bytes

    @property
    def value(self) -> int | None:
        if len(self.payload) != _U32.size:
            return None
        number: int = _U32.unpack(self.payload)[0]
        return number


def encode_message(kind: ColoMessage, value: int | None = None) -> bytes:
    """One COLO message; ``value`` goes with those in :data:`~colo.wire.MESSAGE_VALUE_BYTES`, and with no other.

    :raises ValueError: a value where there is none, none where there is one, or one that does not fit.
    """
    length = MESSAGE_VALUE_BYTES.get(kind, 0)
    if not length:
        if value is not None:
            raise ValueError(f"{kind.name} carries no value, got {value}")
        return _U32.pack(kind)
    least = 1 if kind is ColoMessage.VMSTATE_SIZE else 0
    if value is None or not least <= value < 1 << 8 * length:
        raise ValueError(f"{kind.name} carries {_VALUES[kind]}, {least} to 2**{8 * length} - 1, got {value}")
    return _U32.pack(kind) + value.to_bytes(length, "big")


_VALUES = {
    ColoMessage.VMSTATE_SIZE: "the size of the device state in bytes",
    ColoMessage.EXTENSIONS: "the bits of the extensions taken",
    ColoMessage.CHECKPOINT_DIGEST: "a digest",
}


def message_missing_bytes(data: bytes | bytearray | memoryview) -> int:
    """How many bytes after ``data`` the message that it begins still needs; 0 when it is whole."""
    if len(data) < _U32.size:
        return _U32.size - len(data)
    length = _VALUE_BYTES.get(_U32.unpack_from(data)[0], 0)
    return max(0, _U32.size + length - len(data))


_VALUE_BYTES = {int(kind): length for kind, length in MESSAGE_VALUE_BYTES.items()}


def decode_message(
    data: bytes | bytearray | memoryview,
    *,
    device_limit_bytes: int = DEVICE_LIMIT_BYTES,
    offset: int | None = None,
) -> Message:
    """The one COLO message that ``data`` is.

    :param device_limit_bytes: most that VMSTATE_SIZE may announce.
    :param offset: where in the connection the message begins, for the errors.
    :raises Truncated: it is not whole.
    :raises StreamError: an unknown number, a VMSTATE_SIZE of 0, or bytes after the message.
    :raises LimitExceeded: VMSTATE_SIZE over its limit.
    """
    missing = message_missing_bytes(data)
    if missing:
        raise Truncated(
            f"{missing} bytes are missing", where=_WHERE, offset=offset, value=bytes(data[:12]).hex()
        )
    number: int = _U32.unpack_from(data)[0]
    try:
        kind = ColoMessage(number)
    except ValueError:
        raise StreamError(
            f"{number} ({number:#x}) is no COLO message: 0 to {ColoMessage.VMSTATE_LOADED} are, and between two "
            f"colo ends {ColoMessage.EXTENSIONS:#x} and {ColoMessage.CHECKPOINT_DIGEST:#x}",
            where=_WHERE,
            offset=offset,
            value=number,
        ) from None
    size = _U32.size + MESSAGE_VALUE_BYTES.get(kind, 0)
    if len(data) > size:
        raise StreamError(
            f"{len(data) - size} bytes follow {kind.name} in what should be one message",
            where=_WHERE,
            offset=offset,
            value=len(data),
        )
    if size == _U32.size:
        return Message(kind)
    value = int.from_bytes(data[_U32.size :], "big")
    if kind is ColoMessage.VMSTATE_SIZE:
        at = None if offset is None else offset + _U32.size
        if value == 0:
            raise StreamError("VMSTATE_SIZE of 0: there is no device state", where=_WHERE, offset=at, value=0)
        if value > device_limit_bytes:
            raise LimitExceeded(
                f"VMSTATE_SIZE of {value} bytes is over the limit of {device_limit_bytes}",
                where=_WHERE,
                offset=at,
                value=value,
            )
    return Message(kind, value)


def message_event(kind: ColoMessage) -> Event:
    """The event that receiving ``kind`` is."""
    return _MESSAGE_EVENTS[kind]


_MESSAGE_EVENTS = {kind: Event[kind.name] for kind in ColoMessage}


def encode_return_path(kind: ReturnPath, value: int | None = None, *, payload: bytes | None = None) -> bytes:
    """One message of the return path: with a u32 ``value`` (SHUT, PONG, RESUME_ACK), or a ``payload`` as is.

    :raises ValueError: the payload has not a length that this message may have, or both were given.
    """
    if value is not None and payload is not None:
        raise ValueError("give a value or a payload, not both")
    if value is not None:
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{kind.name}: the value is a u32, got {value}")
        payload = _U32.pack(value)
    body = payload or b""
    least, most = RETURN_PATH_PAYLOAD_BYTES[kind]
    if not least <= len(body) <= most:
        raise ValueError(f"{kind.name} carries {_span(least, most)} bytes, got {len(body)}")
    return _RETURN_PATH_HEADER.pack(kind, len(body)) + body


def return_path_missing_bytes(data: bytes | bytearray | memoryview) -> int:
    """How many bytes after ``data`` the return path message that it begins still needs; 0 when it is whole.

    Never asks for more than the message's type allows: a length out of bounds counts as whole, for
    :func:`decode_return_path` to refuse.
    """
    if len(data) < _RETURN_PATH_HEADER.size:
        return _RETURN_PATH_HEADER.size - len(data)
    length: int
    number, length = _RETURN_PATH_HEADER.unpack_from(data)
    least, most = _return_path_bounds(number)
    if not least <= length <= most:
        return 0
    return max(0, _RETURN_PATH_HEADER.size + length - len(data))


def decode_return_path(
    data: bytes | bytearray | memoryview, *, offset: int | None = None
) -> ReturnPathMessage:
    """The one return path message that ``data`` is.

    :raises Truncated: it is not whole.
    :raises StreamError: an unknown type, a length that does not go with it, or bytes after the message.
    """
    missing = return_path_missing_bytes(data)
    if missing:
        raise Truncated(
            f"{missing} bytes are missing",
            where=_WHERE_RETURN_PATH,
            offset=offset,
            value=bytes(data[:12]).hex(),
        )
    number, length = _RETURN_PATH_HEADER.unpack_from(data)
    try:
        kind = ReturnPath(number)
    except ValueError:
        raise StreamError(
            f"{number} is no message of the return path: 1 to {max(ReturnPath)} are"
            + (" (a COLO message before the return path was shut?)" if number == 0 else ""),
            where=_WHERE_RETURN_PATH,
            offset=offset,
            value=number,
        ) from None
    least, most = RETURN_PATH_PAYLOAD_BYTES[kind]
    if not least <= length <= most:
        raise StreamError(
            f"{kind.name} of {length} bytes: it carries {_span(least, most)}",
            where=_WHERE_RETURN_PATH,
            offset=None if offset is None else offset + 2,
            value=length,
        )
    payload = bytes(data[_RETURN_PATH_HEADER.size :])
    if len(payload) != length:
        raise StreamError(
            f"{len(payload) - length} bytes follow {kind.name} in what should be one message",
            where=_WHERE_RETURN_PATH,
            offset=offset,
            value=len(data),
        )
    return ReturnPathMessage(kind, payload)


def _return_path_bounds(number: int) -> tuple[int, int]:
    try:
        return RETURN_PATH_PAYLOAD_BYTES[ReturnPath(number)]
    except ValueError:
        return (1, 0)  # no length is right


def _span(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def return_path_event(message: ReturnPathMessage) -> Event:
    """The event that receiving ``message`` is.

    :raises ProtocolError: postcopy's and other messages that have no place in COLO.
    """
    if message.kind is ReturnPath.PONG:
        return Event.PONG
    if message.kind is ReturnPath.SHUT:
        return Event.SHUT if message.value == 0 else Event.SHUT_FAILED
    raise ProtocolError(
        f"{message.kind.name} on the return path is not for COLO: switch postcopy and switchover-ack off",
        got=message.kind.name,
        expected=("PONG", "SHUT"),
    )


_COMMAND_EVENTS = {
    Command.OPEN_RETURN_PATH: Event.OPEN_RETURN_PATH,
    Command.PING: Event.PING,
    Command.ENABLE_COLO: Event.ENABLE_COLO,
    Command.SWITCHOVER_START: Event.SWITCHOVER_START,
}


def capability_behind(command: Command, payload: bytes) -> str:
    """The capability that makes a source send this command, one of postcopy's: an ADVISE without a payload comes from
    dirty-bitmaps."""
    return "dirty-bitmaps" if command is Command.POSTCOPY_ADVISE and not payload else "postcopy-ram"


def command_event(command: Command, payload: bytes = b"") -> Event:
    """The event that a COMMAND in the section stream is.

    :raises ProtocolError: postcopy's commands, which have no place in COLO, and that of dirty-bitmaps.
    """
    try:
        return _COMMAND_EVENTS[command]
    except KeyError:
        raise ProtocolError(
            f"command {command.name} has no place in COLO: switch the capability {capability_behind(command, payload)} off",
            got=command.name,
            expected=tuple(each.name for each in _COMMAND_EVENTS),
        ) from None
