"""Device state loaded into declared devices of every kind of field: what loads, saves to a blob that loads to the same
again; what is refused is refused with a place in it. The first byte picks the device, 255 a registry of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from _vectors import offset_is_in

from colo.errors import StreamError
from colo.vmstate import (
    F64,
    I8,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bitmap,
    Bool,
    Buffer,
    Description,
    I32AtMost,
    Pointers,
    Queue,
    Registry,
    Struct,
    Structs,
    Timer,
    Unused,
    decode_section,
)


@dataclass
class Port:
    number: Annotated[int, U16()] = 0
    level: Annotated[bool, Bool()] = False


PORT = Description.of(Port, "port", version=1)


@dataclass
class All:
    signed: Annotated[int, I8()] = 0
    count: Annotated[int, I32AtMost()] = 8
    scale: Annotated[float, F64()] = 0.0
    words: Annotated[list[int], U32(count=3)] = field(default_factory=lambda: [0, 0, 0])
    data: Annotated[bytes, Buffer(size=5)] = bytes(5)
    gap: Annotated[None, Unused(size=3)] = None
    timer: Annotated[int | None, Timer()] = None
    bits: Annotated[int, Bitmap(bits=70)] = 0
    port: Annotated[Port, Struct(of=PORT)] = field(default_factory=Port)
    ports: Annotated[list[Port], Structs(of=PORT, count=2)] = field(default_factory=lambda: [Port(), Port()])
    maybe: Annotated[list[Port | None], Pointers(of=PORT, count=3)] = field(default_factory=lambda: [Port(), None, Port()])
    queue: Annotated[list[Port], Queue(of=PORT, max_count=20)] = field(default_factory=list)
    late: Annotated[int, I64(since=2)] = 0
    last: Annotated[int, U8()] = 0
    mask: int = 0


EXTRA: Description[All] = Description("all/extra", version=1, fields=[U64("mask")], needed=lambda one: one.mask != 0)
ALL = Description.of(All, "all", version=2, minimum_version=1, subsections=[EXTRA])


def registry() -> tuple[Registry, All]:
    found, all_kinds = Registry(), All()
    found.register(ALL, all_kinds)
    found.register(PORT, Port())
    found.register(PORT, Port())
    return found, all_kinds


def seeds() -> Iterator[bytes]:
    filled = All(timer=7, queue=[Port(1, True), Port(2)], late=-3, bits=1 << 69, mask=5)
    for version in (1, 2):
        yield bytes((version,)) + ALL.save(filled, version)
    blob, _ = registry()[0].save_described()
    yield b"\xff" + blob


def described() -> dict[str, Any]:
    return registry()[0].save_described()[1]["devices"][0]


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    way, body = data[0], data[1:]
    if way == 255:
        devices, _ = registry()
        try:
            devices.load(body)
        except StreamError as error:
            offset_is_in(error, body)
            return
        saved = devices.save()
        again, _ = registry()
        again.load(saved)
        assert again.save() == saved
        return
    version = 1 + way % 3
    one = All()
    try:
        ALL.load(one, body, version)
    except StreamError as error:
        if version <= 2:
            offset_is_in(error, body)
        return
    assert version <= 2
    saved = ALL.save(one)
    other = All()
    ALL.load(other, saved)
    assert ALL.save(other) == saved
    body_again, told = ALL.save_described(one)
    assert body_again == saved
    assert decode_section(saved, {"name": "all", "instance_id": 0, **told}).size == len(saved)
