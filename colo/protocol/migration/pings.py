"""What PINGs and their PONGs mean in a migration: two colo ends say in them what QEMU's protocol has no word for.

A QEMU answers every PING with its own number, and its own PINGs ask for nothing else. The numbers are in :mod:`colo.wire`.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

from colo.errors import ProtocolError
from colo.protocol.messages import ReturnPathMessage
from colo.protocol.migration.words import Event
from colo.wire import (
    DEVICES_PING,
    HELLO,
    HELLO_ARBITER,
    HELLO_COLO,
    HELLO_MASK,
    LAST_WORD_MIN,
    ROUND_PING,
    Command,
    ReturnPath,
)


class Ping(NamedTuple):
    """A PING of a colo source, by its number: ``received`` is what it is to a colo destination, ``answered`` what its PONG is
    to the source (that of HELLO says more, :func:`pong_event`)."""

    name: str
    first: int
    last: int
    received: Event
    answered: Event
    says: str


PINGS = (
    Ping("ROUND", ROUND_PING, HELLO - 1, Event.PING, Event.ROUND_ANSWERED,
         "behind round n, as ROUND + n: has the destination read it? A colo one begins its digest anew"),
    Ping("HELLO", HELLO, HELLO, Event.PING_HELLO, Event.QEMU_ANSWERED,
         "who is there? A QEMU answers as any PING; a colo destination adds bit 0, and bit 1 when it asks an arbiter"),
    Ping("DEVICES", DEVICES_PING, DEVICES_PING, Event.PING, Event.DEVICES_ANSWERED,
         "to a QEMU, behind the device sections, which it loads one by one: it has refused none"),
    Ping("word", LAST_WORD_MIN, 0xFFFFFFFF, Event.PING_WORD, Event.WORD_ANSWERED,
         "to a colo destination, the next after HELLO: the random number that the last word begins with"),
)
"""Every PING that a colo source sends. A QEMU's may have any number, and ask for nothing but their PONG."""


def _meaning(number: int) -> Ping | None:
    return next((each for each in PINGS if each.first <= number <= each.last), None)


def new_word() -> int:
    """A number for the last word, that no device's data can hold by chance or on purpose."""
    return LAST_WORD_MIN | secrets.randbits(31)


def round_ping(number: int) -> int:
    """The number of the PING behind round ``number``, 1 being the first."""
    return ROUND_PING + number % (HELLO - ROUND_PING)


def ping_event(number: int) -> Event:
    """What a PING of ``number`` is to a destination."""
    meaning = _meaning(number)
    return Event.PING if meaning is None else meaning.received


def hello_answer(*, arbiter: bool) -> int:
    """The number with which a colo destination answers HELLO; ``arbiter``: it asks one before it runs the VM."""
    return HELLO | HELLO_COLO | (HELLO_ARBITER if arbiter else 0)


def pong_event(number: int, asked: int | None) -> Event:
    """What a PONG of ``number`` is to a source, ``asked`` being its PING that is not answered yet.

    Raises ProtocolError when it answers none.
    """
    if asked is not None and asked == HELLO == number & ~HELLO_MASK:
        if not number & HELLO_COLO:
            return Event.QEMU_ANSWERED
        return Event.COLO_WITH_ARBITER_ANSWERED if number & HELLO_ARBITER else Event.COLO_ANSWERED
    if asked is None or number != asked:
        raise ProtocolError(f"PONG {number:#x} answers no PING", got="PONG")
    meaning = _meaning(number)
    assert meaning is not None
    return meaning.answered


def answer_event(message: ReturnPathMessage, asked: int | None) -> Event:
    """What a message on the return path is to a source. Raises ProtocolError for postcopy's and others."""
    value = message.value or 0
    if message.kind is ReturnPath.PONG:
        return pong_event(value, asked)
    if message.kind is ReturnPath.SHUT:
        return Event.SHUT_FAILED if value else Event.SHUT
    raise ProtocolError(
        f"{message.kind.name} on the return path: there is no postcopy here", got=message.kind.name,
        expected=("PONG", "SHUT"))


_COMMANDS = {
    Command.OPEN_RETURN_PATH: Event.OPEN_RETURN_PATH,
    Command.SWITCHOVER_START: Event.SWITCHOVER_START,
}


def command_event(command: Command, value: int) -> Event | None:
    """What a COMMAND in the stream is to a destination, ``value`` being a PING's number. None: it has no place here."""
    return ping_event(value) if command is Command.PING else _COMMANDS.get(command)
