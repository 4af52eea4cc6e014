"""vmdesc: the JSON that says what the device state in a stream consists of.

QEMU sends it after the stream's end (section type 0x06)::

    {"page_size": 4096, "devices": [DEVICE...], "configuration"?: {...}}
    DEVICE     {"name", "instance_id", "vmsd_name", "version", "fields": [FIELD...], "subsections"?:
    [DESCRIBED...]}
               {"name", "instance_id", "size", "fields": [{"name": "data", "type": "buffer", "size"}]}   (no
               vmstate)
    DESCRIBED  {"vmsd_name", "version", "fields", "subsections"?}
    FIELD      {"name", "array_len"? or "index"?, "type", "struct"?: DESCRIBED, "size"}

``size`` is in bytes: of one element where there is an ``array_len``. Three types hold a DESCRIBED's members
in the FIELD itself, beside its own: ``tmp`` and ``vstruct``, and ``qtailq``, which repeats them for each
element: JSON with repeated keys, kept here as a list ``elements``. Written by QEMU
migration/savevm.c:vmstate_save and migration/vmstate.c:vmsd_desc_field_start.
"""

from __future__ import annotations

import json
from typing import Any

from colo.errors import LimitExceeded, StreamError, Truncated
from colo.wire import TARGET_PAGE_BYTES

from .cursor import as_bytes_view
from .fields import DEPTH_MAX

VmDesc = dict[str, Any]

VMDESC_MAX_BYTES = 64 << 20
SECTION_HEAD_BYTES = 1 + 4 + 1 + 4 + 4
"""A FULL section before its body, without the idstr."""
SECTION_FOOTER_BYTES = 1 + 4

_DESCRIBED = ("vmsd_name", "version", "fields", "subsections")


def parse_vmdesc(text: object) -> VmDesc:
    """A vmdesc from its JSON (str or any buffer), repeated keys kept. StreamError if it is no vmdesc."""
    raw = text if isinstance(text, str) else bytes(as_bytes_view(text))
    if len(raw) > VMDESC_MAX_BYTES:
        raise LimitExceeded(f"it is over {VMDESC_MAX_BYTES} bytes long", where="vmdesc", value=len(raw))
    try:
        # As text: given bytes, the parser would guess UTF-16 and UTF-32 too.
        told = json.loads(raw if isinstance(raw, str) else raw.decode(), object_pairs_hook=_object)
    except json.JSONDecodeError as exc:
        kind = Truncated if exc.pos >= len(raw) else StreamError
        raise kind(f"no JSON: {exc.msg}", where="vmdesc", offset=exc.pos) from exc
    except UnicodeDecodeError as exc:
        raise StreamError("no UTF-8 text", where="vmdesc", offset=exc.start) from exc
    except RecursionError as exc:
        raise LimitExceeded("its objects are nested too deep", where="vmdesc") from exc
    except ValueError as exc:  # a number of thousands of digits
        raise LimitExceeded(f"a value is too long: {exc}", where="vmdesc") from exc
    if not isinstance(told, dict) or not isinstance(told.get("devices"), list):
        raise StreamError("an object with a list 'devices' is needed", where="vmdesc")
    return told


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) == len(pairs):
        return told
    told = {}
    elements: list[dict[str, Any]] = []
    for key, value in pairs:
        if key not in _DESCRIBED:
            told[key] = value
            continue
        if not elements or key in elements[-1]:
            elements.append({})
        elements[-1][key] = value
    told["elements"] = elements
    return told


def render_vmdesc(told: VmDesc) -> bytes:
    """The JSON of a vmdesc, ``elements`` written as QEMU does, with repeated keys."""
    return _render(told).encode()


def _render(value: Any) -> str:
    if isinstance(value, dict):
        members: list[str] = []
        for key, inner in value.items():
            if key == "elements":
                members += [f"{json.dumps(k)}: {_render(v)}" for element in inner for k, v in element.items()]
            else:
                members.append(f"{json.dumps(key)}: {_render(inner)}")
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_render, value)) + "]"
    return json.dumps(value)


def make_vmdesc(devices: list[dict[str, Any]], page_size_bytes: int = TARGET_PAGE_BYTES) -> VmDesc:
    """A vmdesc of devices as :meth:`Registry.save_described` tells them."""
    return {"page_size": page_size_bytes, "devices": devices}


def size_of(told: dict[str, Any], key: str, where: str) -> int:
    """A size, count or number of a vmdesc: an int of 0 to 2**63, or a StreamError."""
    value = told.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise StreamError(f"vmdesc: {key!r} is no count", where=where, value=value)
    return value


def list_of(told: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """A list of objects of a vmdesc, empty if it is not there."""
    value = told.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise StreamError(f"vmdesc: {key!r} is no list of objects", where=where, value=type(value).__name__)
    return value


def text_of(told: dict[str, Any], key: str, where: str) -> str:
    value = told.get(key)
    # A lone surrogate, which JSON can spell, is in no name: it cannot be encoded.
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise StreamError(f"vmdesc: {key!r} is no text", where=where, value=value)
    return value


def body_bytes(device: dict[str, Any], where: str = "vmdesc", depth: int = 1) -> int:
    """The length in bytes of a device's section body: its fields, and its subsections with their heads."""
    if depth > DEPTH_MAX:
        raise LimitExceeded(f"vmdesc: nested deeper than {DEPTH_MAX}", where=where, value=depth)
    total = 0
    for field in list_of(device, "fields", where):
        total += size_of(field, "size", where) * (
            size_of(field, "array_len", where) if "array_len" in field else 1
        )
    for sub in list_of(device, "subsections", where):
        # 0x05, u8 length, name, u32 version, and a subsection's subsections inside it.
        total += (
            1 + 1 + len(text_of(sub, "vmsd_name", where).encode()) + 4 + body_bytes(sub, where, depth + 1)
        )
    return total


def device_state_bytes(told: VmDesc) -> int:
    """The length in bytes of all device sections of a vmdesc with heads and footers, and of the EOF byte.

    In a migration stream they end right before the vmdesc, so this finds where they begin.
    """
    total = 1
    for device in list_of(told, "devices", "vmdesc"):
        idstr = text_of(device, "name", "vmdesc").encode()
        total += SECTION_HEAD_BYTES + len(idstr) + body_bytes(device) + SECTION_FOOTER_BYTES
    return total
