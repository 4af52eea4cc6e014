"""The fields of a device section, laid over its bytes by the vmdesc: for people who look into a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from colo.vmdesc.decode import DecodedStruct, Shown, Value, decode_shown
from colo.vmdesc.encoding import CODES, NO_TIMER, SUBSECTION_HEAD_BYTES
from colo.vmdesc.records import VmdescField, VmdescStruct

ELEMENTS_SHOWN = 64
"""Of an array of structs, that many elements are walked into."""
VALUES_SHOWN = 16
"""Of an array of numbers, that many values are decoded; of data without a type, that many bytes shown."""
SHOWN = Shown(ELEMENTS_SHOWN, VALUES_SHOWN)


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

    Raises :class:`StreamError`, with the offset in ``body``, where they do not fit it: behind the last field that does.
    """
    tree, wrong = decode_shown(body, state, SHOWN)
    yield from _walk_struct(state, tree, body, "")
    if wrong is not None:
        raise wrong


def _walk_struct(state: VmdescStruct, tree: DecodedStruct, body: bytes, prefix: str) -> Iterator[FieldValue]:
    # The tree may end early.
    for field, found in zip(state.fields, tree.fields, strict=False):
        path = f"{prefix}{field.name}" + ("" if field.index is None else f"[{field.index}]")
        value = None if field.struct is not None else _shown(field, found.value, body, found.offset)
        yield FieldValue(path, field.type, found.offset, field.size_bytes, field.count, value)
        if field.struct is not None:
            elements = found.value if isinstance(found.value, list) else [found.value]
            for i, element in enumerate(elements):
                if isinstance(element, DecodedStruct):
                    inner = f"{path}[{i}]." if field.count > 1 else f"{path}."
                    yield from _walk_struct(field.struct, element, body, inner)
    for sub, part in zip(state.subsections, tree.subsections, strict=False):
        path = f"{prefix}<{sub.vmsd_name}>"
        head = SUBSECTION_HEAD_BYTES + len(sub.vmsd_name.encode())
        yield FieldValue(path, "subsection", part.offset - head, head + sub.size_bytes, 1, None)
        yield from _walk_struct(sub, part, body, f"{path}.")


def _shown(field: VmdescField, value: Value, body: bytes, offset: int) -> int | list[int] | str | None:
    size = field.size_bytes * field.count
    if size == 0:
        return None
    if CODES.get(field.type, "d") == "d":  # no integer: as its bytes
        return body[offset : offset + min(size, VALUES_SHOWN)].hex() + ("…" if size > VALUES_SHOWN else "")
    if isinstance(value, list):
        return [_number(each) for each in value] if field.count != 1 else _number(value[0])
    return _number(value)


def _number(value: Value) -> int:
    return NO_TIMER if value is None else int(value)
