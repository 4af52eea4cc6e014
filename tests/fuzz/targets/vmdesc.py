"""The vmdesc's JSON, and its fields laid over device data."""

from __future__ import annotations

import json
from collections.abc import Iterator

from _vectors import offset_is_in, vector

from colo.errors import StreamError
from colo.stream import StreamLimits, parse_vmdesc
from colo.vmdesc.field_values import walk_fields

LIMITS = StreamLimits(vmdesc_bytes=1 << 20, vmdesc_values=20_000)
BODY = bytes(range(256)) * 16


def seeds() -> Iterator[bytes]:
    for name in ("7.2-none", "7.2-microvm"):
        stream = vector(name)
        yield stream[stream.rindex(b'{"page_size"') :]
    for encoding in ("utf-16-le", "utf-16", "utf-32-be"):  # brackets and quotes that a count of bytes mistakes
        yield ('["\u0122", ' + "[" * 100).encode(encoding)
    inner = {
        "vmsd_name": "s",
        "version": 1,
        "fields": [{"name": "g", "type": "uint16", "index": 1, "size": 2}],
    }
    fields = [{"name": "f", "type": "struct", "size": 4, "array_len": 3, "struct": inner}]
    subsections = [{"vmsd_name": "a/b", "version": 1, "fields": []}]
    device = {"name": "a", "instance_id": 0, "version": 1, "fields": fields, "subsections": subsections}
    yield json.dumps({"configuration": inner, "page_size": 4096, "devices": [device]}).encode()


def fuzz_one(data: bytes) -> None:
    try:
        vmdesc = parse_vmdesc(data, limits=LIMITS)
    except StreamError as error:
        offset_is_in(error, data)
        return
    for device in vmdesc.devices:
        assert device.state.size_bytes >= 0
        try:
            for field in walk_fields(device.state, BODY):
                assert field.offset >= 0
        except StreamError:
            pass
