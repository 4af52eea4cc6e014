"""COMMAND items: a number, a length and a payload whose size the number fixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colo.errors import StreamError
from colo.protocol.messages import capability_behind
from colo.stream.sections import CommandItem
from colo.wire import COMMAND_PAYLOAD_BYTES, Command, SectionType

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer


def read_command(buf: ReadBuffer) -> CommandItem:
    """Read what follows the type byte. Raises StreamError for an unknown number or a payload of a wrong size.

    QEMU: migration/savevm.c:loadvm_process_command. A PACKAGED command's wrapped stream is not read here.
    """
    offset = buf.position - 1
    number, length = buf.read_u16(), buf.read_u16()
    try:
        command = Command(number)
    except ValueError:
        raise StreamError(
            f"unknown command {number} (with {length} bytes of payload)",
            where="COMMAND",
            offset=offset,
            value=number,
        ) from None
    if not payload_fits(command, length):
        allowed = " or ".join(map(str, COMMAND_PAYLOAD_BYTES[command] or ()))
        raise StreamError(
            f"payload of {length} bytes, it has {allowed}",
            where=f"COMMAND {command.name}",
            offset=offset,
            value=length,
        )
    return CommandItem(offset, command, buf.read_exact(length))


def meaning_of(item: CommandItem) -> str:
    """What a command says beside its name, where its payload decides: "" if nothing."""
    if item.command is Command.POSTCOPY_ADVISE:
        return capability_behind(item.command, item.payload)
    return ""


def payload_fits(command: Command, length_bytes: int) -> bool:
    """Whether ``command`` may have a payload of that length."""
    allowed = COMMAND_PAYLOAD_BYTES[command]
    return allowed is None or length_bytes in allowed


def command(number: Command, payload: bytes = b"") -> bytes:
    """A COMMAND item. Raises ValueError if the payload's length does not fit the command."""
    if len(payload) > 0xFFFF or not payload_fits(number, len(payload)):
        raise ValueError(f"{number.name} cannot have a payload of {len(payload)} bytes")
    head = bytes((SectionType.COMMAND,)) + number.to_bytes(2, "big") + len(payload).to_bytes(2, "big")
    return head + payload


def ping(value: int) -> bytes:
    """PING: the receiver answers PONG with the same number on the return path."""
    return command(Command.PING, value.to_bytes(4, "big"))


def packaged(stream: bytes) -> bytes:
    """PACKAGED: ``stream`` (sections and commands, no header) wrapped, so that the receiver reads it whole
    first."""
    return command(Command.PACKAGED, len(stream).to_bytes(4, "big")) + stream
