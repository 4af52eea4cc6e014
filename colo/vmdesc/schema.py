"""Plain objects, as JSON gives them, to the records of a vmdesc: each value is checked, and a wrong one named by its path.

::

    {"page_size": 4096, "devices": [DEVICE...], "configuration"?: {...}}
    DEVICE     {"name", "instance_id", "vmsd_name", "version", "fields": [FIELD...], "subsections"?: [DESCRIBED...]}
               {"name", "instance_id", "size", "fields": [{"name": "data", "type": "buffer", "size"}]}   (no vmstate)
    DESCRIBED  {"vmsd_name", "version", "fields", "subsections"?}
    FIELD      {"name", "array_len"? or "index"?, "type", "struct"?: DESCRIBED, "size"}

``size`` is in bytes: of one element where there is an ``array_len``. Three types hold a DESCRIBED's members in the FIELD
itself, beside its own: ``tmp`` and ``vstruct``, and ``qtailq``, which repeats them for each element. Written by QEMU
migration/savevm.c:vmstate_save and migration/vmstate.c:vmsd_desc_field_start.
"""

from __future__ import annotations

from typing import Any

from colo.errors import LimitExceeded, StreamError
from colo.vmdesc.encoding import DEPTH_MAX
from colo.vmdesc.records import VmdescDevice, VmdescField, VmdescStruct
from colo.vmdesc.text import ELEMENTS, WHERE
from colo.wire import IDSTR_MAX_BYTES

_SIZE_MAX = 1 << 40

Path = tuple[Any, ...]
"""Where a value is: (path of what it is in, key), or (path, key, index). Only an error spells it out."""
ROOT: Path = ()


def _spell(path: Path) -> str:
    if not path:
        return "$"
    return f"{_spell(path[0])}.{path[1]}" + (f"[{path[2]}]" if len(path) > 2 else "")


class Schema:
    """Checks each value where it is used; an error names its JSON path, from the value that was given, and ``where``."""

    def __init__(self, where: str = WHERE, offset: int | None = None) -> None:
        self.where = where
        self.offset = offset

    def wrong(self, path: Path, wanted: str, value: object) -> StreamError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return StreamError(
            f"{_spell(path)} is not {wanted}: {shown}", where=self.where, offset=self.offset, value=value
        )

    def mapping(self, value: object, path: Path) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(path, "an object", value)
        return value

    def sequence(self, value: object, path: Path, key: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong((path, key), "an array", value)
        return value

    def number(self, value: object, path: Path, key: str, high: int) -> int:
        if type(value) is not int or not 0 <= value <= high:
            raise self.wrong((path, key), f"an integer from 0 to {high}", value)
        return value

    def name(self, value: object, path: Path, key: str) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.wrong((path, key), "a name", value)
        return value

    def devices(self, top: dict[str, Any], path: Path = ROOT) -> tuple[VmdescDevice, ...]:
        """The devices of a whole vmdesc."""
        devices = self.sequence(top.get("devices"), path, "devices")
        return tuple(self.device(device, (path, "devices", i)) for i, device in enumerate(devices))

    def device(self, value: object, path: Path) -> VmdescDevice:
        device = self.mapping(value, path)
        idstr = self.name(device.get("name"), path, "name")
        if len(idstr.encode()) > IDSTR_MAX_BYTES:
            raise self.wrong((path, "name"), f"at most {IDSTR_MAX_BYTES} bytes", idstr)
        instance = self.number(device.get("instance_id"), path, "instance_id", 0xFFFFFFFF)
        # A device of the old kind (no vmstate declaration) has no vmsd_name, and one field of all its bytes.
        state = self.struct(device, path, default_name=idstr)
        return VmdescDevice(idstr, instance, state, "vmsd_name" in device)

    def struct(self, value: object, path: Path = ROOT, default_name: str = "", depth: int = 1) -> VmdescStruct:
        struct = self.mapping(value, path)
        if depth > DEPTH_MAX:
            raise LimitExceeded(
                f"{_spell(path)} is nested deeper than {DEPTH_MAX}", where=self.where, offset=self.offset, value=depth)
        if ELEMENTS in struct:
            raise self.wrong(path, "a description that has each of its members once", sorted(struct))
        fields = self.sequence(struct.get("fields", []), path, "fields")
        subsections = self.sequence(struct.get("subsections", []), path, "subsections")
        name = struct.get("vmsd_name", default_name)
        return VmdescStruct(
            self.name(name, path, "vmsd_name") if name else "",
            self.number(struct.get("version", 0), path, "version", 0xFFFFFFFF),
            tuple([self.field(item, (path, "fields", i), depth) for i, item in enumerate(fields)]),
            tuple([self.struct(item, (path, "subsections", i), "", depth + 1) for i, item in enumerate(subsections)]),
        )

    def field(self, value: object, path: Path, depth: int = 1) -> VmdescField:
        field = self.mapping(value, path)
        kind = field.get("type", "")
        if not isinstance(kind, str) or not kind.isprintable():
            raise self.wrong((path, "type"), "a string of printable characters", kind)
        index = field.get("index")
        return VmdescField(
            self.name(field.get("name"), path, "name"),
            kind,
            self.number(field.get("size"), path, "size", _SIZE_MAX),
            self.number(field.get("array_len", 1), path, "array_len", _SIZE_MAX),
            None if index is None else self.number(index, path, "index", _SIZE_MAX),
            self.struct(field["struct"], (path, "struct"), "", depth + 1) if "struct" in field else None,
            self.merged(field, path, depth + 1) if "struct" not in field else None,
            "array_len" in field,
        )

    def merged(self, field: dict[str, Any], path: Path, depth: int) -> tuple[VmdescStruct, ...] | None:
        """The descriptions that stand in a field's entry itself."""
        if ELEMENTS in field:
            elements = self.sequence(field[ELEMENTS], path, ELEMENTS)
            return tuple([self.struct(item, (path, ELEMENTS, i), "", depth) for i, item in enumerate(elements)])
        if "fields" in field:
            return (self.struct(field, path, "", depth),)
        return () if field.get("type") == "qtailq" else None
