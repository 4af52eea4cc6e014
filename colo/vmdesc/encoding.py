"""How a device section is encoded (QEMU migration/vmstate.c, vmstate-types.c): numbers by the type a vmdesc names,
subsections, null pointers, bitmaps.
"""

from __future__ import annotations

import struct
from array import array

from colo.wire import SectionType

DEPTH_MAX = 32
"""Descriptions inside descriptions."""

NULL_MARKER = 0x30
"""Stands for a null pointer in an array of pointers (QEMU: VMS_NULLPTR_MARKER)."""

SUBSECTION_HEAD_BYTES = 1 + 1 + 4
"""Type byte, length byte of the name, version: the name's bytes come on top."""

NO_TIMER = -1
"""A timer that is not armed."""

CODES = {
    "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
    # QEMU's name of the unsigned 64-bit one lacks its u.
    "uint8 equal": "B", "uint16 equal": "H", "uint32 equal": "I", "int64 equal": "Q", "uint64 equal": "Q",
    "int8 equal": "b", "int16 equal": "h", "int32 equal": "i", "int32 le": "i",
    "CPU_Double_U": "d", "timer": "q",
}  # fmt: skip
"""Numbers, by their letter in :mod:`struct`; big-endian. All other types are bytes."""

_SUBSECTION_HEAD = struct.Struct(">BB")
_VERSION = struct.Struct(">I")


def subsection_head(name: str, version: int) -> bytes:
    """What precedes a subsection's fields: 0x05, u8 length, name, u32 version. The name has 255 bytes at most."""
    told = name.encode()
    return _SUBSECTION_HEAD.pack(SectionType.SUBSECTION, len(told)) + told + _VERSION.pack(version)


def reversed_words(raw: bytes | memoryview) -> bytes:
    """Big-endian 64-bit words, lowest bits in the first, as one little-endian number; or the other way round."""
    words = array("Q")
    words.frombytes(raw)
    words.byteswap()
    return words.tobytes()
