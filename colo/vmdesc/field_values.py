"""The fields of a device section, laid over its bytes by the vmdesc: for people who look into a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from colo.errors import StreamError
from colo.vmdesc.document import VmdescField, VmdescStruct
from colo.wire import SectionType

ELEMENTS_SHOWN = 64
"""Of an array of structs, that many elements are walked into."""
VALUES_SHOWN = 16
"""Of an array of numbers, that many values are decoded; of data without a type, that many bytes shown."""

_INTEGER = re.compile(r"(u?)int(8|16|32|64)\b")


@dataclass(frozen=True, slots=True)
class FieldValue:
    """One field: where it lies in the section's body, and what it says.

    ``value`` is a number, a list of at most :data:`VALUES_SHOWN` numbers for an array, hexadecimal text of at
    most as many bytes for other data, and None for a struct (whose fields follow), a subsection, or data that
    is not there.
    """

    path: str
    type: str
    offset: int
    size_bytes: int
    count: int
    value: int | list[int] | str | None


def walk_fields(state: VmdescStruct, body: bytes) -> Iterator[FieldValue]:
    """The fields of ``body`` in order, structs before their own fields; subsections as type ``subsection``.

    Raises :class:`StreamError`, with the offset in ``body``, where a subsection's header is not in its place.
    """
    return _walk_struct(state, body, 0, "")


def _walk_struct(state: VmdescStruct, body: bytes, offset: int, prefix: str) -> Iterator[FieldValue]:
    for field in state.fields:
        path = f"{prefix}{field.name}" + ("" if field.index is None else f"[{field.index}]")
        yield from _walk_field(field, body, offset, path)
        offset += field.size_bytes * field.count
    for sub in state.subsections:
        name = sub.vmsd_name.encode()
        header = bytes((SectionType.SUBSECTION, len(name) & 0xFF)) + name + sub.version.to_bytes(4, "big")
        found = body[offset : offset + len(header)]
        if found != header:
            raise StreamError(
                f"the header of subsection '{sub.vmsd_name}' version {sub.version} is not where the vmdesc "
                "has it",
                where=f"vmstate '{state.vmsd_name}'",
                offset=offset,
                value=found,
            )
        size = len(header) + sub.size_bytes
        path = f"{prefix}<{sub.vmsd_name}>"
        yield FieldValue(path, "subsection", offset, size, 1, None)
        yield from _walk_struct(sub, body, offset + len(header), f"{path}.")
        offset += size


def _walk_field(field: VmdescField, body: bytes, offset: int, path: str) -> Iterator[FieldValue]:
    kind = field.type
    value = None if field.struct is not None else _decode(field, body, offset)
    yield FieldValue(path, kind, offset, field.size_bytes, field.count, value)
    if field.struct is None:
        return
    # Only where all elements have one layout can those behind the first be walked into.
    walked = min(field.count, ELEMENTS_SHOWN) if field.struct.uniform else min(field.count, 1)
    for i in range(walked):
        start = offset + i * field.size_bytes
        if start + field.size_bytes > len(body):
            return
        element = f"{path}[{i}]." if field.count > 1 else f"{path}."
        yield from _walk_struct(field.struct, body, start, element)


def _decode(field: VmdescField, body: bytes, offset: int) -> int | list[int] | str | None:
    size = field.size_bytes
    if size == 0 or offset + size > len(body):
        return None
    integer = _INTEGER.match(field.type)
    known = integer is not None and size * 8 == int(integer[2])
    if not known and not (field.type in ("bool", "timer") and size in (1, 8)):
        shown = body[offset : offset + min(size * field.count, VALUES_SHOWN)].hex()
        return shown + ("…" if size * field.count > VALUES_SHOWN else "")
    signed = field.type == "timer" or (integer is not None and not integer[1])
    count = min(field.count, VALUES_SHOWN, (len(body) - offset) // size)
    starts = range(offset, offset + count * size, size)
    values = [int.from_bytes(body[start : start + size], "big", signed=signed) for start in starts]
    return values[0] if field.count == 1 else values
