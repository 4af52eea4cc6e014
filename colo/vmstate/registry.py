"""The registered sections of a VM: saved as one device blob, loaded from one.

The blob is what COLO sends after VMSTATE_SIZE, and what ends an ordinary migration stream::

    per section   0x04, u32 section_id, u8 len, idstr, u32 instance_id, u32 version_id, body, 0x7e, u32
    section_id at the end    0x00

A section carries no length: a registered one ends where its description says. To cut a blob whose sections
are not all declared there is :func:`split_sections`, by the vmdesc.
"""

from __future__ import annotations

import difflib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from colo.errors import StreamError
from colo.vmdesc.cursor import Cursor, Fault, as_bytes_view
from colo.vmdesc.schema import Schema
from colo.vmstate.description import Description
from colo.vmstate.plain_vmdesc import VmDesc, make_vmdesc
from colo.wire import IDSTR_MAX_BYTES, SectionType

T = TypeVar("T")

_HEAD = struct.Struct(">BIB")
_IDS = struct.Struct(">II")
_FOOTER = struct.Struct(">BI")


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """One object whose state is a section. ``section_id`` is unique in its registry, never used again."""

    description: Description[Any]
    obj: Any
    idstr: str
    instance_id: int
    section_id: int
    alias_id: int | None = None
    old_idstr: str | None = None
    old_instance_id: int = 0

    def __str__(self) -> str:
        return f"section {self.idstr!r} instance {self.instance_id}"

    def answers(self, idstr: str, instance_id: int) -> bool:
        """Whether a section so named is ours (QEMU migration/savevm.c:find_se)."""
        if idstr == self.idstr:
            return instance_id in (self.instance_id, self.alias_id)
        return idstr == self.old_idstr and instance_id in (self.old_instance_id, self.alias_id)


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a blob. ``offset`` is its first byte's, ``body_offset`` the body's, in the blob."""

    idstr: str
    instance_id: int
    version: int
    section_id: int
    offset: int
    body_offset: int
    body: memoryview


class Registry:
    """Sections by name and instance, in QEMU's order: higher priority first, then as registered.

    Not thread-safe. Matches QEMU migration/savevm.c: vmstate_register_with_alias_id,
    savevm_state_handler_insert, vmstate_save, qemu_loadvm_section_start_full.
    """

    def __init__(self) -> None:
        self._sections: list[Registration] = []
        self._next_section_id = 0

    def __iter__(self) -> Iterator[Registration]:
        """In the order they are saved."""
        return iter(self._sections)

    def __len__(self) -> int:
        return len(self._sections)

    def register(
        self,
        description: Description[T],
        obj: T,
        *,
        instance_id: int | None = None,
        path: str | None = None,
        alias_id: int | None = None,
        idstr: str | None = None,
    ) -> Registration:
        """Make ``obj`` a section named after its description, or ``idstr``.

        ``instance_id`` None takes one more than the highest of that name. ``path`` (QEMU: the device's bus
        path) is put before the name, with ``/``; the section is then found under the bare name too, counted
        among those of that name, as an older sender would. ``alias_id`` is another instance it answers to.
        ValueError if name and instance are taken, or do not fit the wire.
        """
        bare = description.name if idstr is None else idstr
        name = bare if path is None else f"{path}/{bare}"
        if not 0 < len(name.encode()) <= IDSTR_MAX_BYTES:
            raise ValueError(f"section {name!r}: a name has 1 to {IDSTR_MAX_BYTES} bytes")
        old_instance = 0
        if path is not None:
            old_instance = self._free_old_instance(bare) if instance_id is None else instance_id
            if instance_id:
                # In QEMU, too, an instance told beside a path is that of the bare name; the path is unique
                # itself.
                instance_id = None
        if instance_id is None:
            instance_id = max((s.instance_id + 1 for s in self._sections if s.idstr == name), default=0)
        for number in (instance_id, 0 if alias_id is None else alias_id):
            if not 0 <= number < (1 << 32) - 1:
                raise ValueError(
                    f"section {name!r}: instance {number} is no u32, or is the one that means 'any'"
                )
        for wanted in {instance_id, alias_id} - {None}:
            taken = next((s for s in self._sections if s.answers(name, wanted or 0)), None)
            if taken is not None:
                raise ValueError(f"section {name!r} instance {wanted} is registered already")
        section = Registration(
            description,
            obj,
            name,
            instance_id,
            self._next_section_id,
            alias_id,
            None if path is None else bare,
            old_instance,
        )
        self._next_section_id += 1
        at = next(
            (i for i, s in enumerate(self._sections) if s.description.priority < description.priority),
            len(self._sections),
        )
        self._sections.insert(at, section)
        return section

    def _free_old_instance(self, bare: str) -> int:
        taken = [s.old_instance_id for s in self._sections if s.old_idstr == bare]
        return max((n + 1 for n in taken), default=0)

    def unregister(self, section: Registration) -> None:
        """Forget a section. ValueError if it is not registered here."""
        try:
            self._sections.remove(section)
        except ValueError:
            raise ValueError(f"{section} is not registered here") from None

    # Saving.

    def save(self) -> bytes:
        """The device blob: all sections that are needed, and EOF.

        StreamError naming section and field if a value does not fit. What a hook raises comes through.
        """
        out = bytearray()
        for section in self._needed():
            out += self._head(section)
            try:
                section.description.save_into(section.obj, out, section.description.version)
            except Fault as fault:
                raise fault.error(str(section)) from fault.__cause__
            out += _FOOTER.pack(SectionType.FOOTER, section.section_id)
        out.append(SectionType.EOF)
        return bytes(out)

    def save_described(self) -> tuple[bytes, VmDesc]:
        """The same blob, and its vmdesc (:func:`render_vmdesc` makes it JSON). Slower than :meth:`save`."""
        out, devices = bytearray(), []
        for section in self._needed():
            out += self._head(section)
            try:
                told = section.description.describe_into(section.obj, out, section.description.version)
            except Fault as fault:
                raise fault.error(str(section)) from fault.__cause__
            out += _FOOTER.pack(SectionType.FOOTER, section.section_id)
            devices.append({"name": section.idstr, "instance_id": section.instance_id, **told})
        out.append(SectionType.EOF)
        return bytes(out), make_vmdesc(devices)

    def _needed(self) -> Iterator[Registration]:
        for section in self._sections:
            needed = section.description.needed
            if needed is None or needed(section.obj):
                yield section

    @staticmethod
    def _head(section: Registration) -> bytes:
        return pack_section_head(
            section.idstr, section.instance_id, section.description.version, section.section_id
        )

    # Loading.

    def load(self, blob: object, vmdesc: VmDesc | None = None) -> tuple[Registration, ...]:
        """Load a blob (any buffer) into the registered objects; returns the sections it held, in its order.

        A registered section the blob lacks is left as it is, as in QEMU. With the sender's ``vmdesc`` the
        whole blob is first checked against it: framing that is damaged or truncated is then found before any
        object is touched. StreamError, Truncated or LimitExceeded with section, field path, byte offset in
        the blob and value, else.
        """
        view = as_bytes_view(blob)
        if vmdesc is not None:
            split_sections(view, vmdesc)
        cursor = Cursor(view)
        loaded: list[Registration] = []
        while not _at_end(cursor):
            loaded.append(self._load_one(cursor, loaded))
        return tuple(loaded)

    def _load_one(self, cursor: Cursor, loaded: list[Registration]) -> Registration:
        start = cursor.at
        idstr, instance_id, version, section_id = _read_head(cursor)
        section = next((s for s in self._sections if s.answers(idstr, instance_id)), None)
        where = f"section {idstr!r} instance {instance_id}"
        if section is None:
            raise StreamError(self._unknown(idstr), where=where, offset=start, value=(idstr, instance_id))
        if section in loaded:
            raise StreamError(
                "it is in the blob twice", where=where, offset=start, value=(idstr, instance_id)
            )
        try:
            section.description.load_from(section.obj, cursor, version)
        except Fault as fault:
            raise fault.error(where) from fault.__cause__
        _read_footer(cursor, section_id, where, section.description)
        return section

    def _unknown(self, idstr: str) -> str:
        instances = [s.instance_id for s in self._sections if s.idstr == idstr]
        if instances:
            return f"no such instance here, only {', '.join(map(str, instances))}"
        names = [s.idstr for s in self._sections]
        near = difflib.get_close_matches(idstr, names, n=3)
        told = f"near to it: {', '.join(near)}" if near else f"registered: {', '.join(names[:8]) or 'none'}"
        return f"no such section is registered here ({told}); both ends need the same devices"


def pack_section_head(idstr: str, instance_id: int, version: int, section_id: int) -> bytes:
    """A FULL section up to its body."""
    name = idstr.encode()
    return _HEAD.pack(SectionType.FULL, section_id, len(name)) + name + _IDS.pack(instance_id, version)


def pack_section_footer(section_id: int) -> bytes:
    """What follows a section's body."""
    return _FOOTER.pack(SectionType.FOOTER, section_id)


def split_sections(blob: object, vmdesc: VmDesc) -> tuple[Section, ...]:
    """The sections of a blob, cut by its vmdesc; each must be where, and as long as, the vmdesc says.

    StreamError, Truncated or LimitExceeded naming the section and offset if blob and vmdesc do not fit.
    """
    cursor = Cursor(as_bytes_view(blob))
    sections: list[Section] = []
    for device in Schema("vmdesc").devices(vmdesc):
        name, instance, told = device.idstr, device.instance_id, device.state
        where = f"section {name!r} instance {instance}"
        start = cursor.at
        if _at_end(cursor):
            raise StreamError("the blob ends before it, the vmdesc tells of it", where=where, offset=start)
        idstr, instance_id, version, section_id = _read_head(cursor)
        if (idstr, instance_id) != (name, instance):
            raise StreamError(
                f"here is {idstr!r} instance {instance_id} instead", where=where, offset=start, value=idstr
            )
        if device.declared and version != told.version:
            raise StreamError(
                f"version {version} here, {told.version} in the vmdesc",
                where=where,
                offset=start,
                value=version,
            )
        body_offset = cursor.at
        try:
            body = cursor.take(told.size_bytes)
        except Fault as fault:
            raise fault.error(where) from None
        _read_footer(cursor, section_id, where, None)
        sections.append(Section(idstr, instance_id, version, section_id, start, body_offset, body))
    if not _at_end(cursor):
        idstr = _read_head(cursor)[0]
        raise StreamError(
            "the vmdesc does not tell of it", where=f"section {idstr!r}", offset=cursor.at, value=idstr
        )
    return tuple(sections)


def _at_end(cursor: Cursor) -> bool:
    """Whether the blob ends here: with an EOF, and nothing behind it."""
    at = cursor.at
    if at >= cursor.end:
        raise cursor.short(1).error("device state: the next section or the EOF byte")
    kind = cursor.data[at]
    if kind != SectionType.EOF:
        return False
    if at + 1 != cursor.end:
        raise StreamError(
            f"{cursor.end - at - 1} bytes follow the EOF byte",
            where="device state",
            offset=at + 1,
            value=cursor.end,
        )
    return True


def _read_head(cursor: Cursor) -> tuple[str, int, int, int]:
    """(idstr, instance_id, version, section_id) of the FULL section ahead."""
    start = cursor.at
    try:
        kind, section_id, length = _HEAD.unpack(cursor.take(_HEAD.size))
        if kind != SectionType.FULL:
            raise Fault(
                f"section type {kind:#04x}: device state has FULL sections ({SectionType.FULL:#04x}) only",
                offset=start,
                value=kind,
            )
        raw = bytes(cursor.take(length))
        instance_id, version = _IDS.unpack(cursor.take(_IDS.size))
    except Fault as fault:
        raise fault.error("section head") from None
    try:
        return raw.decode(), instance_id, version, section_id
    except UnicodeDecodeError as exc:
        raise StreamError(
            "its name is no UTF-8", where="section head", offset=start, value=raw.hex()
        ) from exc


def _read_footer(cursor: Cursor, section_id: int, where: str, of: Description[Any] | None) -> None:
    at = cursor.at
    try:
        kind, told_id = _FOOTER.unpack(cursor.take(_FOOTER.size))
    except Fault as fault:
        raise fault.error(f"{where} footer") from None
    if kind != SectionType.FOOTER:
        message = f"no footer after its body, but {kind:#04x}"
        if kind == SectionType.SUBSECTION and of is not None:
            name = bytes(cursor.data[at + 2 : min(at + 2 + cursor.data[at + 1], cursor.end)])
            message += (
                f": a subsection {name.decode(errors='backslashreplace')!r}, which is none of {of.name!r}"
            )
        elif of is not None:
            message += f": it is longer than {of!r} says"
        raise StreamError(message, where=where, offset=at, value=kind)
    if told_id != section_id:
        raise StreamError(
            f"its footer is of section id {told_id}, it has {section_id}",
            where=where,
            offset=at,
            value=told_id,
        )
