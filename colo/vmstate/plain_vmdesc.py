"""A vmdesc as plain objects: what is told of the device state that is saved here, and the JSON of it.

What a vmdesc consists of is in :mod:`colo.vmdesc.schema`. QEMU sends it after the stream's end (section type 0x06).
"""

from __future__ import annotations

import json
from typing import Any

from colo.errors import StreamError
from colo.limits import StreamLimits
from colo.vmdesc.cursor import as_bytes_view
from colo.vmdesc.encoding import DEPTH_MAX
from colo.vmdesc.schema import Schema
from colo.vmdesc.text import ELEMENTS, read_text
from colo.wire import TARGET_PAGE_BYTES

VmDesc = dict[str, Any]

VMDESC_MAX_BYTES = 64 << 20
LIMITS = StreamLimits(vmdesc_bytes=VMDESC_MAX_BYTES, vmdesc_depth=4 * DEPTH_MAX, vmdesc_values=VMDESC_MAX_BYTES // 16)
"""Each description inside another takes three brackets."""
SECTION_HEAD_BYTES = 1 + 4 + 1 + 4 + 4
"""A FULL section before its body, without the idstr."""
SECTION_FOOTER_BYTES = 1 + 4


def parse_vmdesc(text: object) -> VmDesc:
    """A vmdesc from its JSON (str or any buffer), repeated keys kept. Raises StreamError, Truncated or LimitExceeded if it is
    none."""
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else bytes(as_bytes_view(text))
    told = read_text(raw, limits=LIMITS)
    if not isinstance(told, dict) or not isinstance(told.get("devices"), list):
        raise StreamError("an object with a list 'devices' is needed", where="vmdesc")
    return told


def render_vmdesc(told: VmDesc) -> bytes:
    """The JSON of a vmdesc, ``elements`` written as QEMU does, with repeated keys."""
    return _render(told).encode()


def _render(value: Any) -> str:
    if isinstance(value, dict):
        members: list[str] = []
        for key, inner in value.items():
            if key == ELEMENTS:
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


def device_state_bytes(told: VmDesc) -> int:
    """The length in bytes of all device sections of a vmdesc with heads and footers, and of the EOF byte.

    In a migration stream they end right before the vmdesc, so this finds where they begin.
    """
    return 1 + sum(
        SECTION_HEAD_BYTES + len(device.idstr.encode()) + device.state.size_bytes + SECTION_FOOTER_BYTES
        for device in Schema("vmdesc").devices(told)
    )
