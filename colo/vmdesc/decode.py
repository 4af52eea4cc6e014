"""Any device section as named fields, by the vmdesc alone: no declaration needed.

Integers, booleans, timers, bitmaps and buffers come as Python values; what a device encodes by code of its
own (``pci config``, ``virtio`` …) comes as its bytes. All bytes are accounted for: a size that does not add
up is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from colo.errors import LimitExceeded, StreamError, Truncated
from colo.vmdesc.cursor import Cursor, Fault, as_bytes_view
from colo.vmdesc.encoding import CODES, DEPTH_MAX, NO_TIMER, NULL_MARKER, reversed_words, subsection_head
from colo.vmdesc.records import VmdescField, VmdescStruct
from colo.vmdesc.schema import Schema
from colo.wire import IDSTR_MAX_BYTES

EMPTY_ELEMENTS_MAX = 4096
"""Elements of no bytes an array may claim: nothing in the section bounds them."""

NOTHING = VmdescStruct("", 0, (), ())
"""A struct of which the vmdesc says nothing."""

Value = Any
"""int, bool, float, bytes, None (no timer, null pointer), a DecodedStruct, or a list of one of them."""


@dataclass(frozen=True, slots=True)
class DecodedField:
    """A field: ``offset`` and ``size`` in bytes in the section's body, ``index`` in its array if told one by
    one.
    """

    name: str
    type: str
    offset: int
    size: int
    value: Value
    index: int | None = None

    @property
    def label(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


@dataclass(frozen=True, slots=True)
class DecodedStruct:
    """The fields of one description, in the order of the stream."""

    name: str
    version: int
    offset: int
    size: int
    fields: tuple[DecodedField, ...]
    subsections: tuple[DecodedStruct, ...] = ()

    def __getitem__(self, label: str) -> Value:
        """A field's value by name (``name[index]`` where elements are told one by one), or a subsection by
        its.
        """
        for field in self.fields:
            if field.label == label:
                return field.value
        for sub in self.subsections:
            if sub.name == label:
                return sub
        raise KeyError(label)

    def walk(self, prefix: str = "") -> Iterator[tuple[str, DecodedField]]:
        """Every field that is no structure, with its path, in the order of the stream."""
        for field in self.fields:
            path = f"{prefix}.{field.label}" if prefix else field.label
            inner = field.value if isinstance(field.value, list) else [field.value]
            if not any(isinstance(item, DecodedStruct) for item in inner):
                yield path, field
                continue
            for n, item in enumerate(inner):
                if isinstance(item, DecodedStruct):
                    yield from item.walk(f"{path}[{n}]" if isinstance(field.value, list) else path)
        for sub in self.subsections:
            yield from sub.walk(f"{prefix}({sub.name})")

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name; a subsection stands under its own name."""

        def plain(value: Value) -> Any:
            if isinstance(value, DecodedStruct):
                return value.as_dict()
            return [plain(item) for item in value] if isinstance(value, list) else value

        told = {field.label: plain(field.value) for field in self.fields}
        return told | {sub.name: sub.as_dict() for sub in self.subsections}


@dataclass(frozen=True, slots=True)
class Shown:
    """How much of each array is decoded; the rest is passed over.

    ``elements`` of an array of structs that all have one layout. Of any other the first alone: a vmdesc describes an array
    by its first element, so where the others' fields lie is a guess. ``values`` of all other arrays.
    """

    elements: int
    values: int


def decode_section(body: object, device: VmdescStruct | dict[str, Any]) -> DecodedStruct:
    """The fields of a section's ``body`` (any buffer) as ``device`` tells them: a record, or an entry of a vmdesc's
    "devices".

    Raises StreamError, Truncated or LimitExceeded with path and offset if body and vmdesc do not fit each other:
    sizes, subsections, nesting over 32, bytes left over.
    """
    if isinstance(device, VmdescStruct):
        root, state = device.vmsd_name or "section", device
    else:
        root = str(device.get("name", device.get("vmsd_name", "section")))
        state = Schema(root).struct(device)
    cursor = Cursor(as_bytes_view(body))
    try:
        tree = _Decoder().struct(cursor, state, 1)
        if cursor.at != cursor.end:
            raise Fault(
                f"{cursor.end - cursor.at} bytes are left that the vmdesc does not tell of",
                offset=cursor.at,
                value=bytes(cursor.peek(16)).hex(),
            )
    except Fault as fault:
        raise fault.error(root) from fault.__cause__
    return tree


def decode_shown(body: object, state: VmdescStruct, shown: Shown) -> tuple[DecodedStruct, StreamError | None]:
    """As much of the fields as ``shown`` asks for, and what is wrong where they end too early; bytes may be left over."""
    cursor = Cursor(as_bytes_view(body))
    try:
        return _Decoder(shown).struct(cursor, state, 1), None
    except Fault as fault:
        return cast(DecodedStruct, fault.reached), fault.error(f"vmstate '{state.vmsd_name}'")


class _Decoder:
    """Goes through a section field by field. A fault carries what had been read before it."""

    def __init__(self, shown: Shown | None = None) -> None:
        self.shown = shown

    def struct(self, cursor: Cursor, told: VmdescStruct, depth: int) -> DecodedStruct:
        start = cursor.at
        fields: list[DecodedField] = []
        subsections: list[DecodedStruct] = []
        try:
            if depth > DEPTH_MAX:
                raise Fault(f"nested deeper than {DEPTH_MAX}", kind=LimitExceeded, offset=start, value=depth)
            for field in told.fields:
                fields.append(self.field(cursor, field, depth))
            for sub in told.subsections:
                subsections.append(self.subsection(cursor, sub, depth))
        except Fault as fault:
            if isinstance(fault.reached, DecodedField):
                fields.append(fault.reached)
            elif isinstance(fault.reached, DecodedStruct):
                subsections.append(fault.reached)
            fault.reached = _decoded(told, start, cursor, fields, subsections)
            raise
        return _decoded(told, start, cursor, fields, subsections)

    def subsection(self, cursor: Cursor, told: VmdescStruct, depth: int) -> DecodedStruct:
        name, at = told.vmsd_name, cursor.at
        length = len(name.encode())
        head = subsection_head(name, told.version) if length <= IDSTR_MAX_BYTES else b""
        found = bytes(cursor.take(min(6 + length, cursor.end - at)))
        if found != head:
            raise Fault(
                f"subsection {name!r} version {told.version} should be here",
                kind=Truncated if len(found) < 6 + length else StreamError,
                offset=at,
                value=found[:16].hex(),
            )
        try:
            return self.struct(cursor, told, depth + 1)
        except Fault as fault:
            fault.inside(f"({name})")
            raise

    def field(self, cursor: Cursor, told: VmdescField, depth: int) -> DecodedField:
        start = cursor.at
        try:
            value = self.array(cursor, told, depth) if told.is_array else self.value(cursor, told, depth)
        except Fault as fault:
            fault.inside(told.name)
            if fault.reached is not None:
                fault.reached = DecodedField(told.name, told.type, start, cursor.at - start, fault.reached, told.index)
            raise
        return DecodedField(told.name, told.type, start, cursor.at - start, value, told.index)

    def array(self, cursor: Cursor, told: VmdescField, depth: int) -> Value:
        count, size = told.count, told.size_bytes
        start, left = cursor.at, cursor.end - cursor.at
        if size == 0 and count > EMPTY_ELEMENTS_MAX:
            raise Fault(f"{count} elements of no bytes", kind=LimitExceeded, offset=start, value=count)
        if size and count > left // size:
            raise Fault(
                f"{count} elements of {size} bytes are told, {left} bytes are left",
                kind=Truncated,
                offset=start,
                value=count,
            )
        wanted = min(count, self.most(told))
        code = CODES.get(told.type)
        elements: list[Value] = []
        if told.struct is None and code is not None and struct.calcsize(">" + code) == size:
            elements += struct.unpack(f">{wanted}{code}", cursor.take(wanted * size))
            if told.type == "timer":
                elements = [None if time == NO_TIMER else time for time in elements]
        else:
            self.elements(cursor, told, wanted, elements, depth)
        cursor.at = start + count * size
        return elements

    def elements(self, cursor: Cursor, told: VmdescField, wanted: int, into: list[Value], depth: int) -> None:
        try:
            for _ in range(wanted):
                into.append(self.value(cursor, told, depth))
        except Fault as fault:
            fault.inside(f"[{len(into)}]")
            fault.reached = into if fault.reached is None else [*into, fault.reached]
            raise

    def most(self, told: VmdescField) -> int:
        """Elements of an array that are decoded."""
        if self.shown is None:
            return told.count
        if told.struct is None:
            return self.shown.values
        return self.shown.elements if told.struct.uniform else 1

    def value(self, cursor: Cursor, told: VmdescField, depth: int) -> Value:
        start, size, kind = cursor.at, told.size_bytes, told.type
        if size > cursor.end - start:
            raise cursor.short(size)
        if told.struct is not None:
            return self.inner(cursor, told.struct, size, depth)
        if told.merged is not None:
            return self.merged(cursor, told, told.merged, depth)
        raw = cursor.take(size)
        code = CODES.get(kind)
        if code is not None:
            if struct.calcsize(">" + code) != size:
                raise Fault(f"a {kind} of {size} bytes", offset=start, value=size)
            (value,) = struct.unpack(">" + code, raw)
            return None if kind == "timer" and value == NO_TIMER else value
        if kind == "nullptr":
            if size != 1 or raw[0] != NULL_MARKER:
                raise Fault(f"no null marker ({NULL_MARKER:#04x})", offset=start, value=bytes(raw[:16]).hex())
            return None
        if kind == "bitmap":
            if size % 8:
                raise Fault(f"a bitmap of {size} bytes: no whole words", offset=start, value=size)
            return int.from_bytes(reversed_words(raw), "little")
        return bytes(raw)

    def inner(self, cursor: Cursor, told: VmdescStruct, size: int, depth: int) -> DecodedStruct | None:
        """A struct of ``size`` bytes."""
        start = cursor.at
        if size == 1 and told == NOTHING and cursor.data[start] == NULL_MARKER:
            cursor.at += 1  # QEMU before 10.0 tells a null pointer as an empty struct
            return None
        within = Cursor(cursor.data, start, start + size)
        tree = self.struct(within, told, depth + 1)
        if within.at != within.end:
            raise Fault(f"its fields take {within.at - start} bytes, it {size}", offset=start, value=size)
        cursor.at = within.end
        return tree

    def merged(self, cursor: Cursor, told: VmdescField, members: tuple[VmdescStruct, ...], depth: int) -> Value:
        """A field whose entry holds a description's members itself.

        Its encoding around them is a device's own, or lost where a parser dropped repeated keys: where the
        members do not account for the bytes, it is the bytes.
        """
        start, size = cursor.at, told.size_bytes
        if depth >= DEPTH_MAX:
            raise Fault(f"nested deeper than {DEPTH_MAX}", kind=LimitExceeded, offset=start, value=depth)
        cursor.at = start + size
        within = Cursor(cursor.data, start, start + size)
        try:
            if told.type == "qtailq":
                elements = []
                for element in members:
                    if within.take(1)[0] != 1:
                        break
                    elements.append(self.struct(within, element, depth + 1))
                if within.take(1)[0] == 0 and within.at == within.end:
                    return elements
            elif len(members) == 1:
                tree = self.struct(within, members[0], depth + 1)
                if within.at == within.end:
                    return tree
        except Fault as fault:
            if fault.kind is LimitExceeded:
                raise
        return bytes(cursor.data[start : start + size])


def _decoded(
    told: VmdescStruct, start: int, cursor: Cursor, fields: list[DecodedField], subsections: list[DecodedStruct]
) -> DecodedStruct:
    return DecodedStruct(told.vmsd_name, told.version, start, cursor.at - start, tuple(fields), tuple(subsections))
