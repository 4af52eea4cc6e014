"""A vmdesc and a blob, both a peer's: the vmdesc is the input up to its first NUL, the blob what follows."""

from __future__ import annotations

import json
from collections.abc import Iterator

from _vectors import offset_is_in
from vmstate_load import registry

from colo.errors import StreamError
from colo.vmstate import decode_section, parse_vmdesc, split_sections


def seeds() -> Iterator[bytes]:
    blob, vmdesc = registry()[0].save_described()
    yield json.dumps(vmdesc).encode() + b"\0" + blob
    field = {"name": "f", "type": "timer", "size": 8, "array_len": 2}
    devices = [{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [field]}]
    body = b"\x04\0\0\0\1\1d\0\0\0\0\0\0\0\1" + bytes(16) + b"\x7e\0\0\0\1\0"
    yield json.dumps({"devices": devices}).encode() + b"\0" + body


def fuzz_one(data: bytes) -> None:
    text, _, blob = data.partition(b"\0")
    try:
        vmdesc = parse_vmdesc(text)
    except StreamError:
        return
    try:
        sections = split_sections(blob, vmdesc)
    except StreamError as error:
        offset_is_in(error, blob)
        return
    assert len(sections) == len(vmdesc["devices"])
    for section, told in zip(sections, vmdesc["devices"], strict=True):
        try:
            tree = decode_section(section.body, told)
        except StreamError:
            continue
        assert tree.size == len(section.body)
