"""QEMU's answers are not believed: what is taken from one has the type that it must have, or the command is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colo.qemu.qmp.errors import QmpReplyError


class Record:
    """A JSON object in an answer of ``command``; every member is of the type that is asked for, or QmpReplyError is raised.

    A member that is missing or null is the ``default``, where one is given.
    """

    def __init__(self, members: Mapping[str, Any], command: str) -> None:
        self.members = members
        self.command = command

    @classmethod
    def of(cls, value: object, command: str, what: str = "the answer") -> Record:
        """``value`` as a record."""
        if not isinstance(value, dict):
            raise _wrong(command, what, "an object", value)
        return cls(value, command)

    def _get(self, name: str, kind: type | tuple[type, ...], wanted: str, default: Any) -> Any:
        value = self.members.get(name)
        if value is None:
            if default is not _NEEDED:
                return default
            raise QmpReplyError(f"QEMU's answer to `{self.command}` has no '{name}'", command=self.command)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _wrong(self.command, f"'{name}'", wanted, value)
        return value

    def string(self, name: str, default: str | None = None) -> str:
        """A string; it has to be there without a ``default``."""
        return str(self._get(name, str, "a string", _NEEDED if default is None else default))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """true or false."""
        return bool(self._get(name, bool, "true or false", _NEEDED if default is None else default))

    def whole(self, name: str, default: int | None = None) -> int:
        """An integer of at most 64 bits."""
        value = int(self._get(name, int, "an integer", _NEEDED if default is None else default))
        if not -(1 << 63) <= value < 1 << 64:
            raise _wrong(self.command, f"'{name}'", "an integer of 64 bits", value)
        return value

    def items(self, name: str) -> list[Any]:
        """A list, empty where there is none."""
        return list(self._get(name, list, "a list", []))

    def record(self, name: str) -> Record | None:
        """An object, or None where there is none."""
        value = self._get(name, dict, "an object", None)
        return None if value is None else Record(value, self.command)


_NEEDED = object()


def reply_records(value: object, command: str) -> list[Record]:
    """An answer that is a list of objects. Raises QmpReplyError."""
    if not isinstance(value, list):
        raise _wrong(command, "the answer", "a list", value)
    return [Record.of(each, command, "an item of the answer") for each in value]


def reply_string(value: object, command: str) -> str:
    """An answer that is a string. Raises QmpReplyError."""
    if not isinstance(value, str):
        raise _wrong(command, "the answer", "a string", value)
    return value


def event_whole(data: Mapping[str, Any], name: str) -> int:
    """An integer in an event, 0 where there is none: an event is not refused for it."""
    value = data.get(name)
    return value if type(value) is int and -(1 << 63) <= value < 1 << 63 else 0


def _wrong(command: str, what: str, wanted: str, value: object) -> QmpReplyError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return QmpReplyError(f"QEMU's answer to `{command}`: {what} is not {wanted}: {shown}", command=command)
