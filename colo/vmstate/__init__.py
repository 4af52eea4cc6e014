"""Device state: declared once, saved and loaded in QEMU's encoding, and any QEMU section read by its vmdesc.

::

    @dataclass
    class Pit:
        count: Annotated[int, U32()] = 0
        mode: Annotated[int, U8()] = 0
        next_ns: Annotated[int | None, Timer(since=2)] = None

    PIT = Description.of(Pit, "pit", version=2, minimum_version=1)
    registry = Registry()
    registry.register(PIT, pit)
    blob = registry.save()
"""

from __future__ import annotations

from colo.vmdesc.decode import DecodedField, DecodedStruct, decode_section
from colo.vmdesc.encoding import DEPTH_MAX
from colo.vmstate.description import Description
from colo.vmstate.fields import (
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bitmap,
    Bool,
    Buffer,
    Field,
    I32AtMost,
    Pointers,
    Queue,
    Scalar,
    Struct,
    Structs,
    Timer,
    Unused,
    Validate,
)
from colo.vmstate.plain_vmdesc import VmDesc, device_state_bytes, make_vmdesc, parse_vmdesc, render_vmdesc
from colo.vmstate.registry import (
    Registration,
    Registry,
    Section,
    pack_section_footer,
    pack_section_head,
    split_sections,
)

__all__ = [
    "DEPTH_MAX",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Bitmap",
    "Bool",
    "Buffer",
    "DecodedField",
    "DecodedStruct",
    "Description",
    "Field",
    "I32AtMost",
    "Pointers",
    "Queue",
    "Registration",
    "Registry",
    "Scalar",
    "Section",
    "Struct",
    "Structs",
    "Timer",
    "Unused",
    "Validate",
    "VmDesc",
    "decode_section",
    "device_state_bytes",
    "make_vmdesc",
    "pack_section_footer",
    "pack_section_head",
    "parse_vmdesc",
    "render_vmdesc",
    "split_sections",
]
