"""Each kind of field: its bytes, what it loads into, what it refuses."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace as Obj
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import LimitExceeded, StreamError, Truncated
from colo.vmstate import (
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
    Description,
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

SCALARS: list[tuple[type[Scalar], int, int, int]] = [
    (U8, 1, 0, 0xFF),
    (U16, 2, 0, 0xFFFF),
    (U32, 4, 0, 0xFFFFFFFF),
    (U64, 8, 0, (1 << 64) - 1),
    (I8, 1, -0x80, 0x7F),
    (I16, 2, -0x8000, 0x7FFF),
    (I32, 4, -(1 << 31), (1 << 31) - 1),
    (I64, 8, -(1 << 63), (1 << 63) - 1),
]


def of(*fields: Field, **options: Any) -> Description[Any]:
    return Description("dev", fields=fields, **options)


POINT = Description("point", fields=[U8("x"), U16("y")], factory=lambda: Obj(x=0, y=0))


@pytest.mark.parametrize(("kind", "width", "low", "high"), SCALARS)
def test_integers_are_big_endian_and_bounded(kind: type[Scalar], width: int, low: int, high: int) -> None:
    description = of(kind("a"), kind("b"))
    saved = description.save(Obj(a=low, b=high))
    assert saved == low.to_bytes(width, "big", signed=low < 0) + high.to_bytes(width, "big", signed=low < 0)
    target = Obj(a=None, b=None)
    description.load(target, saved)
    assert (target.a, target.b) == (low, high)
    for bad in (low - 1, high + 1, "x", None, 1.5):
        with pytest.raises(StreamError, match=rf"dev b: {bad!r} is no {kind.type_name}"):
            description.save(Obj(a=0, b=bad))


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(StreamError, match=r"dev b: SimpleNamespace object: .*'b'"):
        of(U8("a"), U8("b")).save(Obj(a=1))


def test_any_byte_but_zero_is_true() -> None:
    target = Obj()
    of(Bool("a"), Bool("b"), Bool("c", count=2)).load(target, b"\x00\x37\x00\x02")
    assert (target.a, target.b, target.c) == (False, True, [False, True])


def test_a_float_travels_as_its_bits() -> None:
    assert of(F64("x")).save(Obj(x=1.0)) == bytes.fromhex("3ff0000000000000")


def test_unused_space_is_zeros_out_and_ignored_in() -> None:
    description = of(U8("a"), Unused(size=3), U8("b"))
    assert description.save(Obj(a=1, b=2)) == b"\x01\x00\x00\x00\x02"
    target = Obj()
    description.load(target, b"\x07\xff\xff\xff\x09")
    assert (target.a, target.b) == (7, 9)


@pytest.mark.parametrize(
    "holder", [list, tuple, lambda v: array("H", v), lambda v: np.array(v, dtype=np.uint16)]
)
def test_arrays_in_any_holder_have_the_same_bytes(holder: Any) -> None:
    description = of(U16("a", count=3))
    source, target = Obj(a=holder([1, 0x203, 0xFFFF])), Obj(a=holder([0, 0, 0]))
    saved = description.save(source)
    assert saved == bytes.fromhex("00010203ffff")
    before = target.a
    description.load(target, saved)
    assert list(target.a) == [1, 0x203, 0xFFFF]
    if not isinstance(before, tuple):
        assert target.a is before


def test_a_foreign_item_type_is_converted_not_reinterpreted() -> None:
    description = of(U16("a", count=2))
    assert description.save(Obj(a=np.array([1, 2], dtype=np.int64))) == b"\x00\x01\x00\x02"
    assert description.save(Obj(a=np.array([1, 2], dtype=">u2"))) == b"\x00\x01\x00\x02"
    with pytest.raises(StreamError, match=r"dev a\[1\]"):
        description.save(Obj(a=[1, 70000]))
    with pytest.raises(StreamError, match="cannot take 2 elements of uint16"):
        description.load(Obj(a=np.zeros(2, dtype=np.float32)), bytes(4))


def test_an_array_of_another_length_is_refused() -> None:
    with pytest.raises(StreamError, match="dev a: it has 2 elements, 3 are declared"):
        of(U8("a", count=3)).save(Obj(a=[1, 2]))


def test_a_variable_array_follows_its_length_within_its_limit() -> None:
    description = of(U8("n"), U32("a", count="n", max_count=4))
    saved = description.save(Obj(n=2, a=[1, 2]))
    assert saved == bytes.fromhex("02 00000001 00000002")
    target = Obj(n=0, a=array("I"))
    description.load(target, saved)
    assert list(target.a) == [1, 2]
    with pytest.raises(LimitExceeded, match=r"dev a at byte 1 .*count 5 from 'n' is not in 0..4") as caught:
        description.load(target, b"\x05" + bytes(20))
    assert caught.value.value == 5
    with pytest.raises(LimitExceeded, match="count -1"):
        of(I8("n"), U8("a", count="n", max_count=4)).load(Obj(), b"\xff" * 9)


def test_buffers_load_in_place_where_they_can() -> None:
    description = of(Buffer("a", 4))
    for holder in (bytearray(4), np.zeros(4, np.uint8), memoryview(bytearray(4)), np.zeros((2, 2), np.uint8)):
        target = Obj(a=holder)
        description.load(target, b"\x01\x02\x03\x04")
        assert target.a is holder
        assert bytes(holder) == b"\x01\x02\x03\x04"
        assert description.save(target) == b"\x01\x02\x03\x04"
    target = Obj()
    description.load(target, b"abcd")
    assert target.a == b"abcd"
    for bad in (np.zeros(3, np.uint8), memoryview(b"abcd"), 7):
        with pytest.raises(StreamError, match="dev a"):
            description.load(Obj(a=bad), b"abcd")
    with pytest.raises(StreamError, match="it has 3 bytes, 4 are declared"):
        description.save(Obj(a=b"abc"))


def test_a_variable_buffer_is_bounded() -> None:
    description = of(U32("n"), Buffer("a", "n", max_size=8))
    target = Obj(a=bytearray())
    description.load(target, b"\0\0\0\x03abc")
    assert target.a == bytearray(b"abc")
    assert description.save(target) == b"\0\0\0\x03abc"
    with pytest.raises(LimitExceeded, match=r"dev a .*size 4294967295"):
        description.load(target, b"\xff\xff\xff\xff" + bytes(64))
    with pytest.raises(Truncated, match=r"dev a at byte 4 .*8 bytes are needed, 2 are left"):
        description.load(target, b"\0\0\0\x08ab")


def test_timers() -> None:
    description = of(Timer("a"), Timer("b"), Timer("c", count=2))
    saved = description.save(Obj(a=None, b=123, c=[-1, 5]))
    assert saved == b"\xff" * 8 + (123).to_bytes(8, "big") + b"\xff" * 8 + (5).to_bytes(8, "big")
    target = Obj()
    description.load(target, saved)
    assert (target.a, target.b, target.c) == (None, 123, [None, 5])


def test_bitmaps_are_big_endian_words_lowest_first() -> None:
    description = of(Bitmap("a", 70))
    saved = description.save(Obj(a=1 | 1 << 65))
    assert saved == (1).to_bytes(8, "big") + (2).to_bytes(8, "big")
    target = Obj(a=0)
    description.load(target, saved)
    assert target.a == 1 | 1 << 65
    held = np.zeros(2, np.uint64)
    description.load(Obj(a=held), saved)
    assert description.save(Obj(a=held)) == saved
    assert held[1] == 2
    with pytest.raises(StreamError, match="does not fit 70 bits"):
        description.save(Obj(a=1 << 70))
    with pytest.raises(LimitExceeded, match="bits 200"):
        of(U8("n"), Bitmap("a", "n", max_bits=64)).load(Obj(), b"\xc8" + bytes(64))


def test_equal_fields_compare_and_do_not_write() -> None:
    description = of(U8("n", equal=True, hint="same number of drives"), U8("b"))
    target = Obj(n=2, b=0)
    description.load(target, b"\x02\x01")
    with pytest.raises(
        StreamError, match=r"dev n at byte 0 .*3 there and 2 here; same number of drives"
    ) as caught:
        description.load(target, b"\x03\x01")
    assert caught.value.value == 3
    assert target.n == 2


def test_at_most_takes_less_but_never_more() -> None:
    description = of(I32AtMost("n"))
    target = Obj(n=4)
    description.load(target, b"\0\0\0\x03")
    assert target.n == 3
    for bad in (b"\0\0\0\x04", b"\xff\xff\xff\xff"):
        with pytest.raises(StreamError, match=r"is not in 0..3"):
            description.load(target, bad)


def test_validation_guards_both_ways() -> None:
    description = of(U8("n"), Validate("n in range", check=lambda o, _v: o.n < 4))
    description.load(Obj(), b"\x03")
    with pytest.raises(StreamError, match=r"dev n in range .*not valid"):
        description.load(Obj(), b"\x04")
    with pytest.raises(StreamError, match="not valid"):
        description.save(Obj(n=4))


def test_structures_nest_and_name_their_place() -> None:
    line = Description("line", fields=[Struct("a", POINT), Structs("rest", POINT, count=2)], factory=Obj)
    description = of(U8("n"), Structs("lines", line, count="n", max_count=3))
    saved = bytes([2]) + bytes(range(18))
    target = Obj(n=0, lines=[])
    description.load(target, saved)
    assert target.lines[1].rest[1].x == 15
    assert description.save(target) == saved
    with pytest.raises(
        Truncated, match=r"dev lines\[1\]\.rest\[1\]\.y at byte 17 .*2 bytes are needed, 1 are left"
    ):
        description.load(target, saved[:-1])
    target.lines[0].a.y = 1 << 20
    with pytest.raises(StreamError, match=r"dev lines\[0\]\.a\.y"):
        description.save(target)


def test_a_counted_list_keeps_its_objects_and_grows_by_the_factory() -> None:
    description = of(U8("n"), Structs("p", POINT, count="n", max_count=3))
    first = Obj(x=9, y=9)
    target = Obj(n=1, p=[first])
    description.load(target, bytes.fromhex("02 01 0002 03 0004"))
    assert target.p[0] is first
    assert (first.y, target.p[1].y) == (2, 4)
    description.load(target, bytes.fromhex("01 01 0002"))
    assert len(target.p) == 1


def test_a_count_makes_no_more_elements_than_there_are_bytes() -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(Obj())
        return made[-1]

    description = of(U32("n"), Structs("p", POINT, count="n", max_count=1 << 30, factory=make))
    with pytest.raises(Truncated, match="dev p"):
        description.load(Obj(), (1 << 29).to_bytes(4, "big") + bytes(30))
    assert not made


def test_null_pointers_have_a_marker_and_both_ends_must_agree() -> None:
    description = of(Pointers("p", POINT, count=3))
    saved = description.save(Obj(p=[None, Obj(x=1, y=2), None]))
    assert saved == b"0\x01\x00\x020"
    target = Obj(p=[None, Obj(), None])
    description.load(target, saved)
    assert target.p[1].y == 2
    with pytest.raises(StreamError, match=r"dev p\[1\] at byte 1 .*no null marker"):
        description.load(Obj(p=[None, None, None]), saved)
    with pytest.raises(StreamError, match=r"dev p\[0\]: it is None"):
        of(Structs("p", POINT, count=1)).save(Obj(p=[None]))


def test_queues_tell_each_element() -> None:
    description = of(Queue("q", POINT, max_count=2))
    assert description.save(Obj(q=[])) == b"\0"
    saved = description.save(Obj(q=[Obj(x=1, y=2), Obj(x=3, y=4)]))
    assert saved == bytes.fromhex("01 01 0002 01 03 0004 00")
    held: deque[Any] = deque()
    target = Obj(q=held)
    description.load(target, saved)
    assert target.q is held
    assert [p.x for p in held] == [1, 3]
    with pytest.raises(LimitExceeded, match="more than 2 elements"):
        description.load(target, saved[:-1] + b"\x01\x05\x00\x06\x00")
    with pytest.raises(Truncated, match="dev q"):
        description.load(target, saved[:-1])


def test_dotted_attributes_reach_into_parts() -> None:
    description = of(U8("a", attr="part.a"), U8("b", attr="part.b"), Buffer("c", 1, attr="part.c"))
    target = Obj(part=Obj())
    description.load(target, b"\x01\x02x")
    assert (target.part.a, target.part.b, target.part.c) == (1, 2, b"x")


def test_objects_with_slots_and_properties() -> None:
    class Device:
        __slots__ = ("_level",)

        @property
        def level(self) -> int:
            return self._level

        @level.setter
        def level(self, value: int) -> None:
            if value > 3:
                raise ValueError("level is 0 to 3")
            self._level = value

    device = Device()
    of(U8("level")).load(device, b"\x02")
    assert device.level == 2
    with pytest.raises(StreamError, match=r"dev level at byte 0 .*level is 0 to 3") as caught:
        of(U8("level")).load(device, b"\x04")
    assert caught.value.value == 4
    with pytest.raises(StreamError, match="dev other"):
        of(U8("other")).load(device, b"\x04")


@pytest.mark.parametrize(
    "declare",
    [
        lambda: of(U8()),
        lambda: of(U8("a", count="n")),
        lambda: of(U8("a", count=-1)),
        lambda: of(Buffer("a", "n")),
        lambda: of(Bitmap("a", "n")),
        lambda: of(U8("a", since=2)),
        lambda: of(U8("a", since=1, exists=lambda _o, _v: True)),
        lambda: of(U8("a", count=2, equal=True)),
        lambda: of(Queue("q", POINT)),
        lambda: of(Struct("s")),
        lambda: of(Struct("s", POINT, version=2)),
        lambda: of(Field("f")).plan(1),
        lambda: Description(""),
        lambda: Description("x" * 256),
        lambda: Description("x", version=1, minimum_version=2),
        lambda: Description("x", subsections=[Description("y/z")]),
        lambda: Description("x", subsections=[Description("x/z"), Description("x/z")]),
        lambda: Description.of(int, "x"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused(declare: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        declare()


def test_descriptions_nest_32_deep_and_no_deeper() -> None:
    description: Description[Any] = POINT
    for _ in range(31):
        description = Description("d", fields=[Struct("s", description)], factory=Obj)
    target = Obj()
    description.load(target, b"\1\0\2")
    assert description.save(target) == b"\1\0\2"
    with pytest.raises(ValueError, match="nested deeper than 32"):
        Description("d", fields=[Struct("s", description)])


@dataclass
class Everything:
    flags: Annotated[int, U8()] = 0
    level: Annotated[int, I16()] = 0
    on: Annotated[bool, Bool()] = False
    gap: Annotated[None, Unused(size=2)] = None
    note: str = "not saved"
    n: Annotated[int, U8()] = 0
    table: Annotated[list[int], U32(count="n", max_count=255)] = field(default_factory=list)
    size: Annotated[int, U16()] = 0
    data: Annotated[bytes, Buffer(size="size", max_size=64)] = b""
    deadline: Annotated[int | None, Timer()] = None
    pending: Annotated[int, Bitmap(bits=100)] = 0
    queue: Annotated[list[Any], Queue(of=POINT, max_count=8)] = field(default_factory=list)


EVERYTHING = Description.of(Everything, "everything")

everything = st.builds(
    Everything,
    flags=st.integers(0, 255),
    level=st.integers(-(1 << 15), (1 << 15) - 1),
    on=st.booleans(),
    table=st.lists(st.integers(0, (1 << 32) - 1), max_size=8),
    data=st.binary(max_size=64),
    deadline=st.none() | st.integers(0, 1 << 62),
    pending=st.integers(0, (1 << 100) - 1),
    queue=st.lists(st.builds(Obj, x=st.integers(0, 255), y=st.integers(0, 65535)), max_size=8),
)


@given(everything)
def test_what_was_saved_loads_the_same(source: Everything) -> None:
    source.n, source.size = len(source.table), len(source.data)
    saved = EVERYTHING.save(source)
    target = Everything()
    EVERYTHING.load(target, saved)
    assert target == source
    described, told = EVERYTHING.save_described(source)
    assert described == saved
    sizes = (f["size"] * f.get("array_len", 1) for f in told["fields"])
    assert sum(sizes) == len(saved)


@given(everything, st.data())
def test_damaged_bytes_are_an_error_or_other_values_never_anything_else(
    source: Everything, data: st.DataObject
) -> None:
    source.n, source.size = len(source.table), len(source.data)
    saved = bytearray(EVERYTHING.save(source))
    for _ in range(data.draw(st.integers(1, 4))):
        saved[data.draw(st.integers(0, len(saved) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(saved)))
    target, error = Everything(), None
    try:
        EVERYTHING.load(target, saved[:cut])
    except StreamError as exc:
        error = exc
    if error is None:
        assert len(EVERYTHING.save(target)) == cut
    else:
        assert error.where.startswith("everything")
        assert error.offset is not None
        assert error.offset <= cut
