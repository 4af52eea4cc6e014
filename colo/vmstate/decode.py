"""Any device section as named fields, by the vmdesc alone: no declaration needed.

Integers, booleans, timers, bitmaps and buffers come as Python values; what a device encodes by code of its
own (``pci config``, ``virtio`` …) comes as its bytes. All bytes are accounted for: a size that does not add
up is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from colo.errors import LimitExceeded, StreamError, Truncated
from colo.wire import SectionType

from .cursor import Cursor, Fault, as_bytes_view
from .fields import DEPTH_MAX, NULL_MARKER
from .spans import reversed_words
from .vmdesc import list_of, size_of, text_of

EMPTY_ELEMENTS_MAX = 4096
"""Elements of no bytes an array may claim: nothing in the section bounds them."""

_CODES = {
    "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
    "uint8 equal": "B", "uint16 equal": "H", "uint32 equal": "I", "int64 equal": "Q", "uint64 equal": "Q",
    "int8 equal": "b", "int16 equal": "h", "int32 equal": "i", "int32 le": "i",
    "CPU_Double_U": "d", "timer": "q",
}  # fmt: skip

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


def decode_section(body: object, device: dict[str, Any]) -> DecodedStruct:
    """The fields of a section's ``body`` (any buffer) as ``device``, an entry of a vmdesc's "devices", tells
    them.

    StreamError, Truncated or LimitExceeded with path and offset if body and vmdesc do not fit each other:
    sizes, subsections, nesting over 32, bytes left over.
    """
    root = str(device.get("name", device.get("vmsd_name", "section")))
    cursor = Cursor(as_bytes_view(body))
    try:
        tree = _struct(cursor, device, 1)
        if cursor.at != cursor.end:
            raise Fault(
                f"{cursor.end - cursor.at} bytes are left that the vmdesc does not tell of",
                offset=cursor.at,
                value=bytes(cursor.peek(16)).hex(),
            )
    except StreamError as exc:
        raise type(exc)(exc.detail, where=root, offset=cursor.at, value=exc.value) from exc
    except Fault as fault:
        raise fault.error(root) from fault.__cause__
    return tree


def _struct(cursor: Cursor, told: dict[str, Any], depth: int) -> DecodedStruct:
    if depth > DEPTH_MAX:
        raise Fault(f"nested deeper than {DEPTH_MAX}", kind=LimitExceeded, offset=cursor.at, value=depth)
    start = cursor.at
    name = told.get("vmsd_name", "")
    fields = tuple(_field(cursor, field, depth) for field in list_of(told, "fields", str(name)))
    subsections = tuple(_subsection(cursor, sub, depth) for sub in list_of(told, "subsections", str(name)))
    version = size_of(told, "version", str(name)) if "version" in told else 0
    return DecodedStruct(str(name), version, start, cursor.at - start, fields, subsections)


def _subsection(cursor: Cursor, told: dict[str, Any], depth: int) -> DecodedStruct:
    name = text_of(told, "vmsd_name", "subsection").encode()
    version = size_of(told, "version", name.decode())
    at = cursor.at
    found = bytes(cursor.take(min(6 + len(name), cursor.end - at)))
    if len(name) > 255 or found != bytes([SectionType.SUBSECTION, len(name)]) + name + version.to_bytes(
        4, "big"
    ):
        raise Fault(
            f"subsection {name.decode()!r} version {version} should be here",
            kind=Truncated if len(found) < 6 + len(name) else StreamError,
            offset=at,
            value=found[:16].hex(),
        )
    try:
        return _struct(cursor, told, depth + 1)
    except Fault as fault:
        fault.inside(f"({name.decode()})")
        raise


def _field(cursor: Cursor, told: dict[str, Any], depth: int) -> DecodedField:
    name, kind = text_of(told, "name", "field"), text_of(told, "type", "field")
    start = cursor.at
    try:
        size = size_of(told, "size", name)
        index = size_of(told, "index", name) if "index" in told else None
        if "array_len" not in told:
            value = _value(cursor, told, kind, size, depth)
        else:
            value = _array(cursor, told, kind, size, depth)
    except Fault as fault:
        fault.inside(name)
        raise
    return DecodedField(name, kind, start, cursor.at - start, value, index)


def _array(cursor: Cursor, told: dict[str, Any], kind: str, size: int, depth: int) -> Value:
    count = size_of(told, "array_len", "field")
    left = cursor.end - cursor.at
    if size == 0 and count > EMPTY_ELEMENTS_MAX:
        raise Fault(f"{count} elements of no bytes", kind=LimitExceeded, offset=cursor.at, value=count)
    if size and count > left // size:
        raise Fault(
            f"{count} elements of {size} bytes are told, {left} bytes are left",
            kind=Truncated,
            offset=cursor.at,
            value=count,
        )
    code = _CODES.get(kind)
    if code is not None and struct.calcsize(">" + code) == size:
        values = list(struct.unpack(f">{count}{code}", cursor.take(count * size)))
        return [None if v == -1 else v for v in values] if kind == "timer" else values
    elements = []
    for n in range(count):
        try:
            elements.append(_value(cursor, told, kind, size, depth))
        except Fault as fault:
            fault.inside(f"[{n}]")
            raise
    return elements


def _value(cursor: Cursor, told: dict[str, Any], kind: str, size: int, depth: int) -> Value:
    start = cursor.at
    if size > cursor.end - start:
        raise cursor.short(size)
    if "struct" in told:
        inner = told["struct"]
        if not isinstance(inner, dict):
            raise Fault("vmdesc: 'struct' is no object", offset=start)
        if not inner and size == 1 and cursor.data[start] == NULL_MARKER:
            cursor.at += 1  # QEMU before 10.0 tells a null pointer as an empty struct
            return None
        within = Cursor(cursor.data, start, start + size)
        tree = _struct(within, inner, depth + 1)
        if within.at != within.end:
            raise Fault(f"its fields take {within.at - start} bytes, it {size}", offset=start, value=size)
        cursor.at = within.end
        return tree
    if "fields" in told or "elements" in told or kind == "qtailq":
        return _merged(cursor, told, kind, size, depth)
    raw = cursor.take(size)
    code = _CODES.get(kind)
    if code is not None:
        if struct.calcsize(">" + code) != size:
            raise Fault(f"a {kind} of {size} bytes", offset=start, value=size)
        (value,) = struct.unpack(">" + code, raw)
        return None if kind == "timer" and value == -1 else value
    if kind == "nullptr":
        if size != 1 or raw[0] != NULL_MARKER:
            raise Fault(f"no null marker ({NULL_MARKER:#04x})", offset=start, value=bytes(raw[:16]).hex())
        return None
    if kind == "bitmap":
        if size % 8:
            raise Fault(f"a bitmap of {size} bytes: no whole words", offset=start, value=size)
        return int.from_bytes(reversed_words(raw), "little")
    return bytes(raw)


def _merged(cursor: Cursor, told: dict[str, Any], kind: str, size: int, depth: int) -> Value:
    """A field whose entry holds a description's members itself.

    Its encoding around them is a device's own, or lost where a parser dropped repeated keys: where the
    members do not account for the bytes, it is the bytes.
    """
    start = cursor.at
    if depth >= DEPTH_MAX:
        raise Fault(f"nested deeper than {DEPTH_MAX}", kind=LimitExceeded, offset=start, value=depth)
    cursor.at = start + size
    within = Cursor(cursor.data, start, start + size)
    try:
        if kind != "qtailq" and "elements" not in told:
            tree = _struct(within, told, depth + 1)
            if within.at == within.end:
                return tree
        else:
            elements = []
            for element in list_of(told, "elements", kind) or ([told] if "fields" in told else []):
                if within.take(1)[0] != 1:
                    break
                elements.append(_struct(within, element, depth + 1))
            if within.take(1)[0] == 0 and within.at == within.end:
                return elements
    except LimitExceeded:
        raise
    except Fault as fault:
        if fault.kind is LimitExceeded:
            raise
    return bytes(cursor.data[start : start + size])
