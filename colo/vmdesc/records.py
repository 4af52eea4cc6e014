"""What a vmdesc says, as records: devices with their fields, in the order they were sent.

It is the only place where the length of a device section can be read: the sum of its fields, and of its subsections with
their heads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from colo.vmdesc.encoding import SUBSECTION_HEAD_BYTES

_SCALAR = re.compile(r"u?int(8|16|32|64)\b|bool$|timer$|float64$|cpudouble$")


@dataclass(frozen=True, slots=True)
class VmdescField:
    """A field as sent: ``count`` elements of ``size_bytes`` each; ``struct`` describes one element's own fields.

    ``merged``: the descriptions whose members stand in the field's entry itself, beside its own, or None. ``tmp`` and
    ``vstruct`` have one; ``qtailq`` has one for each element, told by repeated keys.
    """

    name: str
    type: str
    size_bytes: int
    count: int
    index: int | None
    struct: VmdescStruct | None
    merged: tuple[VmdescStruct, ...] | None = None
    is_array: bool = False
    """Whether its entry has an ``array_len``; else ``count`` is 1."""


@dataclass(frozen=True, slots=True)
class VmdescStruct:
    """A vmstate: of a device, of a struct inside one, or of a subsection."""

    vmsd_name: str
    version: int
    fields: tuple[VmdescField, ...]
    subsections: tuple[VmdescStruct, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the body: fields, then subsections with their headers."""
        return sum(field.size_bytes * field.count for field in self.fields) + sum(
            SUBSECTION_HEAD_BYTES + len(sub.vmsd_name.encode()) + sub.size_bytes for sub in self.subsections
        )

    @property
    def exact(self) -> bool:
        """Whether :attr:`size_bytes` is surely what was sent.

        QEMU describes an array by its first element. One of null pointers, or of structs that hold arrays or
        data of no fixed length, may have had elements of another length. A first element that is a null pointer
        can show as a struct without fields that yet has a byte.
        """
        return all(sub.exact for sub in self.subsections) and all(
            field.type != "nullptr"
            and (
                field.struct is None
                or (
                    field.struct.size_bytes == field.size_bytes
                    and (field.struct.exact if field.count <= 1 else field.struct.uniform)
                )
            )
            for field in self.fields
        )

    @property
    def uniform(self) -> bool:
        """Whether every instance of this struct has the same length."""
        return not self.subsections and all(
            field.count == 1 and (field.struct.uniform if field.struct else bool(_SCALAR.match(field.type)))
            for field in self.fields
        )


@dataclass(frozen=True, slots=True)
class VmdescDevice:
    """A device section: idstr and instance, as in its section header, and what is in it.

    ``declared`` is False for a device of the old kind, without a vmstate declaration: it has one field of all its bytes, and
    no version is told.
    """

    idstr: str
    instance_id: int
    state: VmdescStruct
    declared: bool = True

    @property
    def key(self) -> tuple[str, int]:
        return self.idstr, self.instance_id


@dataclass(frozen=True, slots=True)
class Vmdesc:
    """The whole description; ``offset`` is that of the JSON text in the stream, ``text`` the JSON as
    received."""

    offset: int
    text: bytes
    page_size: int | None
    configuration: VmdescStruct | None
    devices: tuple[VmdescDevice, ...]
