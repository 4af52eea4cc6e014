"""Versions, conditions, subsections and hooks of a description."""

from __future__ import annotations

from types import SimpleNamespace as Obj
from typing import Any

import pytest

from colo.errors import StreamError, Truncated
from colo.vmstate import U8, U16, U32, Description, Struct, Unused


def test_an_old_version_loads_into_a_new_declaration() -> None:
    old = Description("dev", version=1, fields=[U8("a"), U8("gone")])
    new = Description(
        "dev",
        version=3,
        minimum_version=1,
        fields=[U8("a"), Unused(size=1), U16("b", since=2), U32("c", since=3)],
    )
    target = Obj(a=0, b=7, c=8)
    new.load(target, old.save(Obj(a=5, gone=1)), 1)
    assert (target.a, target.b, target.c) == (5, 7, 8)
    new.load(target, bytes.fromhex("06 00 0102"), 2)
    assert (target.a, target.b, target.c) == (6, 0x102, 8)
    assert new.save(target) == bytes.fromhex("06 00 0102 00000008")
    assert new.save(target, version=2) == bytes.fromhex("06 00 0102")
    with pytest.raises(StreamError, match="only as 1 to 3"):
        new.save(target, version=4)


@pytest.mark.parametrize(("version", "word"), [(1, "old"), (4, "new"), (1 << 31, "new")])
def test_other_versions_are_refused_with_both_numbers(version: int, word: str) -> None:
    description = Description("dev", version=3, minimum_version=2, fields=[U8("a")])
    with pytest.raises(
        StreamError, match=rf"version {version} of 'dev' is too {word}: this side loads 2 to 3"
    ) as got:
        description.load(Obj(), b"\0", version)
    assert got.value.value == version


def test_a_condition_sees_what_was_loaded_before_it_and_the_version() -> None:
    asked: list[tuple[int, int]] = []

    def wide(obj: Any, version: int) -> bool:
        asked.append((obj.mode, version))
        return bool(obj.mode)

    description = Description("dev", version=2, fields=[U8("mode"), U16("extra", exists=wide), U8("end")])
    for data, extra in ((b"\x00\x09", 1), (b"\x01\x00\x05\x09", 5)):
        target = Obj(mode=9, extra=1, end=0)
        description.load(target, data)
        assert (target.extra, target.end) == (extra, 9)
        assert description.save(target) == data
    assert asked == [(0, 2), (0, 2), (1, 2), (1, 2)]


MORE = Description("dev/more", version=2, minimum_version=1, fields=[U8("x")], needed=lambda o: o.x)
OTHER = Description(
    "dev/other",
    version=1,
    fields=[U8("y")],
    needed=lambda o: o.y,
    subsections=[Description("dev/other/deep", version=1, fields=[U8("z")], needed=lambda o: o.z)],
)
DEV: Description[Any] = Description("dev", version=1, fields=[U8("a")], subsections=[MORE, OTHER])


def sub(name: str, version: int, body: bytes) -> bytes:
    return bytes([5, len(name)]) + name.encode() + version.to_bytes(4, "big") + body


def test_needed_subsections_are_framed_and_loaded() -> None:
    assert DEV.save(Obj(a=1, x=0, y=0, z=0)) == b"\x01"
    full = (
        b"\x01"
        + sub("dev/more", 2, b"\x02")
        + sub("dev/other", 1, b"\x03" + sub("dev/other/deep", 1, b"\x04"))
    )
    assert DEV.save(Obj(a=1, x=2, y=3, z=4)) == full
    target = Obj(a=0, x=0, y=0, z=0)
    DEV.load(target, full)
    assert vars(target) == {"a": 1, "x": 2, "y": 3, "z": 4}
    _, told = DEV.save_described(target)
    assert [s["vmsd_name"] for s in told["subsections"]] == ["dev/more", "dev/other"]
    assert told["subsections"][1]["subsections"][0]["version"] == 1


def test_a_missing_subsection_leaves_its_fields_alone_and_order_does_not_matter() -> None:
    target = Obj(a=0, x=9, y=9, z=9)
    DEV.load(target, b"\x01" + sub("dev/other", 1, b"\x03"))
    assert vars(target) == {"a": 1, "x": 9, "y": 3, "z": 9}
    DEV.load(target, b"\x01" + sub("dev/other", 1, b"\x04") + sub("dev/more", 1, b"\x05"))
    assert (target.x, target.y) == (5, 4)


def test_an_unknown_subsection_is_named_with_its_place() -> None:
    with pytest.raises(
        StreamError, match=r"unknown subsection 'dev/new' \(known here: dev/more, dev/other\)"
    ) as got:
        DEV.load(Obj(), b"\x01" + sub("dev/new", 1, b""))
    assert (got.value.offset, got.value.value) == (1, "dev/new")


def test_a_subsection_may_be_named_without_a_slash_and_names_that_only_begin_alike_are_anothers() -> None:
    inner: Description[Any] = Description(
        "dev", fields=[U8("a")], subsections=[Description("dev_x", fields=[U8("b")])]
    )
    outer: Description[Any] = Description(
        "device", fields=[Struct("i", inner)], subsections=[Description("device/y", fields=[U8("c")])]
    )
    target = Obj(i=Obj(), c=0)
    outer.load(target, b"\x01" + sub("dev_x", 1, b"\x02") + sub("device/y", 1, b"\x03"))
    assert (target.i.b, target.c) == (2, 3)
    with pytest.raises(StreamError, match="look like a subsection 'device_z'"):
        outer.load(target, b"\x01" + sub("device_z", 1, b"\x02"))


def test_a_subsection_of_another_version_is_refused_with_its_name() -> None:
    with pytest.raises(StreamError, match=r"dev \(dev/more\) .*version 3 of 'dev/more' is too new"):
        DEV.load(Obj(), b"\x01" + sub("dev/more", 3, b"\x02"))
    with pytest.raises(Truncated, match=r"dev \(dev/more\).x"):
        DEV.load(Obj(), b"\x01" + sub("dev/more", 2, b""))


def test_a_subsection_of_nobody_is_told() -> None:
    with pytest.raises(StreamError, match=r"look like a subsection 'nic/rx', which is none of 'dev'"):
        DEV.load(Obj(), b"\x01" + sub("nic/rx", 1, b""))
    with pytest.raises(Truncated, match="cut-off head of a subsection"):
        DEV.load(Obj(), b"\x01\x05\x08dev")


def test_an_inner_structure_leaves_the_subsections_of_the_outer_one() -> None:
    outer: Description[Any] = Description(
        "device",
        fields=[Struct("inner", DEV)],
        subsections=[Description("device/late", fields=[U8("late")], needed=lambda o: o.late)],
    )
    source = Obj(inner=Obj(a=1, x=2, y=0, z=0), late=7)
    saved = outer.save(source)
    assert saved.endswith(sub("device/late", 1, b"\x07"))
    target = Obj(inner=Obj(a=0, x=0, y=0, z=0), late=0)
    outer.load(target, saved)
    assert target == source


def test_data_that_only_looks_like_a_subsection_is_data() -> None:
    """A structure that ends, followed by a field whose first byte is 5."""
    outer: Description[Any] = Description("o", fields=[Struct("i", DEV), U32("n")])
    target = Obj(i=Obj())
    outer.load(target, b"\x01\x05\x04devx"[:5])
    assert target.n == 0x05046465


def test_hooks_run_in_their_order_and_see_the_version() -> None:
    calls: list[Any] = []
    description: Description[Any] = Description(
        "dev",
        version=3,
        minimum_version=1,
        fields=[U8("a")],
        subsections=[
            Description(
                "dev/s",
                fields=[U8("b")],
                pre_save=lambda _o: calls.append("sub pre_save"),
                post_load=lambda _o, v: calls.append(("sub post_load", v)),
            )
        ],
        pre_save=lambda o: calls.append("pre_save") or vars(o).update(a=7),  # type: ignore[func-returns-value]
        post_save=lambda _o: calls.append("post_save"),
        pre_load=lambda _o: calls.append("pre_load"),
        post_load=lambda o, v: calls.append(("post_load", v, o.a, o.b)),
    )
    saved = description.save(Obj(a=0, b=1))
    assert saved[0] == 7
    description.load(Obj(), saved, 2)
    assert calls == [
        "pre_save", "sub pre_save", "post_save", "pre_load", ("sub post_load", 1), ("post_load", 2, 7, 1),
    ]  # fmt: skip


def test_a_hook_refuses_by_raising() -> None:
    def bad(_o: Any, _v: int) -> None:
        raise RuntimeError("queue is full")

    inner = Description("inner", fields=[U8("a")], post_load=bad, factory=Obj)
    with pytest.raises(
        StreamError, match=r"dev s at byte 0 .*post_load of 'inner' refused it: RuntimeError: queue is full"
    ) as got:
        Description("dev", fields=[Struct("s", inner)]).load(Obj(), b"\x01")
    assert isinstance(got.value.__cause__, RuntimeError)


def test_post_save_runs_when_saving_fails() -> None:
    calls: list[str] = []
    description: Description[Any] = Description(
        "dev",
        fields=[U8("a")],
        pre_save=lambda _o: calls.append("pre"),
        post_save=lambda _o: calls.append("post"),
    )
    with pytest.raises(StreamError):
        description.save(Obj(a=-1))
    assert calls == ["pre", "post"]


def test_trailing_bytes_are_an_error_with_their_place() -> None:
    with pytest.raises(StreamError, match=r"dev at byte 1 .*2 bytes are left after the last field") as got:
        Description("dev", fields=[U8("a")]).load(Obj(), b"\x01\x02\x03")
    assert got.value.value == "0203"


def test_a_struct_of_chosen_version() -> None:
    inner = Description("in", version=2, minimum_version=1, fields=[U8("a"), U8("b", since=2)], factory=Obj)
    outer: Description[Any] = Description("out", fields=[Struct("s", inner, version=1)])
    data, told = outer.save_described(Obj(s=Obj(a=3, b=4)))
    assert data == b"\x03"
    assert told["fields"][0]["type"] == "vstruct"
    assert told["fields"][0]["version"] == 1
