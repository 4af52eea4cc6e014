"""The items a section stream is made of, as records: what the reader yields and the writer is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from colo.wire import Command, SectionType

if TYPE_CHECKING:
    from colo.vmdesc.records import Vmdesc


@dataclass(frozen=True, slots=True)
class FileHeader:
    """``QEVM`` and the version."""

    offset: int
    version: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """The machine the stream is from. A field is None, or empty, when its subsection was not sent."""

    offset: int
    machine: str
    capabilities: tuple[str, ...] = ()
    page_bits: int | None = None
    uuid: bytes | None = None
    extensions: int | None = None
    """Bits of :class:`~colo.wire.Extension` that a colo offers."""


@dataclass(frozen=True, slots=True)
class CommandItem:
    """A COMMAND with its payload, whose length has been checked."""

    offset: int
    command: Command
    payload: bytes

    @property
    def value(self) -> int:
        """A payload of one integer (PING's number, PACKAGED's length)."""
        return int.from_bytes(self.payload, "big")


@dataclass(frozen=True, slots=True)
class Packaged:
    """A stream wrapped by PACKAGED: its items, and how many bytes it had."""

    offset: int
    length_bytes: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class LiveSection:
    """START, PART or END of a live section. Its body follows in the buffer: the consumer reads it before it
    asks on."""

    offset: int
    type: SectionType
    section_id: int
    idstr: str
    instance_id: int
    version_id: int


@dataclass(frozen=True, slots=True)
class DeviceSection:
    """One FULL section inside a :class:`DeviceState`'s blob. ``offset`` is the body's, counted from the
    blob's start."""

    section_id: int
    idstr: str
    instance_id: int
    version_id: int
    offset: int
    length_bytes: int

    @property
    def key(self) -> tuple[str, int]:
        """What QEMU finds the device by when it loads: idstr and instance."""
        return self.idstr, self.instance_id


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A run of FULL sections as received.

    ``blob`` starts at the first section's type byte, at ``offset`` in the stream; it ends with the EOF byte
    when ``complete``, otherwise with the last footer (sections sent early, before the ``ram`` section goes
    on). ``ambiguous`` tells that the bytes could be split in more than one way and no vmdesc came to settle
    it.
    """

    offset: int
    blob: bytes
    sections: tuple[DeviceSection, ...]
    complete: bool
    vmdesc: Vmdesc | None
    ambiguous: bool = False


@dataclass(frozen=True, slots=True)
class EndOfStream:
    """The EOF item; ``offset`` is its byte, or where the data of a PACKAGED stream ended."""

    offset: int
    vmdesc: Vmdesc | None


Item = FileHeader | Configuration | CommandItem | Packaged | LiveSection | DeviceState | EndOfStream
