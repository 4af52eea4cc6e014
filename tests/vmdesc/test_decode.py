"""A vmdesc that lies, and sections that do not fit theirs."""

from __future__ import annotations

import json
from types import SimpleNamespace as Obj
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import LimitExceeded, StreamError, Truncated
from colo.vmstate import (
    U8,
    U16,
    Description,
    Pointers,
    Queue,
    Structs,
    decode_section,
    device_state_bytes,
    parse_vmdesc,
    render_vmdesc,
)


def device(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "dev", "instance_id": 0, "vmsd_name": "dev", "version": 1, "fields": list(fields), **more}


def one(kind: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": "f", "type": kind, "size": size, **more}


@pytest.mark.parametrize(
    ("field", "body", "value"),
    [
        (one("uint32", 4), b"\0\0\1\0", 256),
        (one("int16", 2), b"\xff\xfe", -2),
        (one("int64 equal", 8), b"\xff" * 8, (1 << 64) - 1),
        (one("bool", 1), b"\x02", True),
        (one("timer", 8), b"\xff" * 8, None),
        (one("timer", 8, array_len=2), b"\xff" * 8 + bytes(8), [None, 0]),
        (one("bitmap", 16), bytes(7) + b"\1" + bytes(7) + b"\2", 1 | 1 << 65),
        (one("nullptr", 1), b"0", None),
        (one("struct", 1, struct={}), b"0", None),
        (one("uint8", 1, array_len=3), b"abc", [97, 98, 99]),
        (one("pci config", 3), b"abc", b"abc"),
        (one("buffer", 2, array_len=2), b"abcd", [b"ab", b"cd"]),
        (one("struct", 0, array_len=3, struct={"vmsd_name": "e", "version": 1, "fields": []}), b"", ...),
    ],
)
def test_values(field: dict[str, Any], body: bytes, value: Any) -> None:
    tree = decode_section(body, device(field))
    assert tree.size == len(body)
    if value is not ...:
        assert tree["f"] == value


@pytest.mark.parametrize(
    ("told", "body", "kind", "message"),
    [
        (device(one("uint32", 4)), b"\0\0\0", Truncated, "dev f at byte 0 .*4 bytes are needed, 3 are left"),
        (device(one("uint32", 3)), b"\0\0\0", StreamError, "a uint32 of 3 bytes"),
        (device(one("uint8", 1)), b"\0\0", StreamError, "dev at byte 1 .*1 bytes are left"),
        (device(one("uint8", 1, array_len=1 << 40)), b"\0", Truncated, "1099511627776 elements"),
        (device(one("uint8", 1, array_len=1 << 60)), b"\0", StreamError, "array_len is not an integer from 0 to 1099511627776"),
        (device(one("struct", 0, array_len=1 << 40, struct={"fields": []})), b"", LimitExceeded, "no bytes"),
        (device(one("uint8", -1)), b"", StreamError, r"dev: \$\.fields\[0\]\.size is not an integer from 0 to 1099511627776: -1"),
        (device(one("uint8", True)), b"\0", StreamError, "size is not an integer"),
        (device(one("uint8", 1, array_len=None)), b"\0", StreamError, "array_len is not an integer"),
        (device({"name": "f"}), b"", StreamError, r"fields\[0\]\.size is not an integer"),
        (device({"name": "f", "type": 7, "size": 1}), b"\0", StreamError, "type is not a string"),
        (device(7), b"", StreamError, r"\$\.fields\[0\] is not an object: 7"),  # type: ignore[arg-type]
        (device(one("struct", 2, struct=[])), b"\0\0", StreamError, r"\$\.fields\[0\]\.struct is not an object"),
        (
            device(one("struct", 2, struct={"fields": [one("uint8", 1)]})),
            b"\0\0",
            StreamError,
            "its fields take 1 bytes, it 2",
        ),
        (
            device(one("struct", 1, struct={"fields": [one("uint16", 2)]})),
            b"\0\0",
            Truncated,
            r"dev f\.f at byte 0 .*2 bytes are needed, 1 are left",
        ),
        (device(one("bitmap", 7)), bytes(7), StreamError, "no whole words"),
        (device(one("nullptr", 1)), b"1", StreamError, "no null marker"),
        (
            device(subsections=[{"vmsd_name": "dev/s", "version": 1, "fields": []}]),
            b"\5\5dev/t\0\0\0\1",
            StreamError,
            "subsection 'dev/s' version 1 should be here",
        ),
        (
            device(subsections=[{"vmsd_name": "dev/s", "version": 1, "fields": []}]),
            b"\5\5dev",
            Truncated,
            "subsection 'dev/s'",
        ),
    ],
)
def test_what_does_not_fit_is_told(told: Any, body: bytes, kind: type[StreamError], message: str) -> None:
    with pytest.raises(kind, match=message):
        decode_section(body, told)


def test_nesting_has_its_limit() -> None:
    inner: dict[str, Any] = {"fields": []}
    for _ in range(40):
        inner = {"fields": [one("struct", 0, struct=inner)]}
    with pytest.raises(LimitExceeded, match="nested deeper than 32"):
        decode_section(b"", {"name": "dev", **inner})
    merged: dict[str, Any] = {"fields": []}
    for _ in range(40):
        merged = {"fields": [one("tmp", 0, **merged)]}
    with pytest.raises(LimitExceeded, match="nested deeper than 32"):
        decode_section(b"", {"name": "dev", **merged})


def test_a_lone_surrogate_is_no_name() -> None:
    with pytest.raises(StreamError, match="is not a name"):
        device_state_bytes(parse_vmdesc(b'{"devices": [{"name": "\\ud800", "fields": []}]}'))


def test_subsections_of_subsections_have_the_same_limit() -> None:
    deep: dict[str, Any] = {"vmsd_name": "s", "version": 1, "fields": []}
    for _ in range(400):
        deep = {"vmsd_name": "s", "version": 1, "fields": [], "subsections": [deep]}
    with pytest.raises(LimitExceeded, match="nested deeper than 32"):
        device_state_bytes({"devices": [{"name": "dev", "instance_id": 0, **deep}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b'{"devices": [', "not JSON"),
        (b"[]", "'devices'"),
        (b'{"devices": 7}', "'devices'"),
        (b'{"devices": "\xff"}', "not UTF-8"),
        ('{"devices": []}'.encode("utf-16-le"), "not JSON"),
        ('{"devices": []}'.encode("utf-16"), "not UTF-8"),
        (b'{"devices": ' + b"[" * 100_000, "nested deeper than"),
        (b'{"devices": [' + b"9" * 5000 + b"]}", "a number that cannot be"),
    ],
)
def test_text_that_is_no_vmdesc(text: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        parse_vmdesc(text)


POINT: Description[Any] = Description("point", fields=[U8("x"), U16("y")], factory=Obj)


def test_a_queue_is_told_with_repeated_keys_as_qemu_does_and_read_back() -> None:
    description: Description[Any] = Description("dev", fields=[Queue("q", POINT, max_count=9), U8("end")])
    for count in (0, 1, 3):
        body, told = description.save_described(Obj(q=[Obj(x=i, y=i) for i in range(count)], end=7))
        text = render_vmdesc({"devices": [{"name": "dev", "instance_id": 0, **told}]})
        assert text.count(b'"vmsd_name": "point"') == count
        tree = decode_section(body, parse_vmdesc(text)["devices"][0])
        assert [p["y"] for p in tree["q"]] == list(range(count))
        assert tree["end"] == 7
    # A parser that keeps the last of repeated keys loses the others: the bytes are all there is then.
    assert decode_section(body, json.loads(text)["devices"][0])["q"] == body[:-1]


def test_null_pointers_are_told_one_by_one() -> None:
    description: Description[Any] = Description("dev", fields=[Pointers("p", POINT, count=3)])
    body, told = description.save_described(Obj(p=[None, Obj(x=1, y=2), None]))
    assert [f["index"] for f in told["fields"]] == [0, 1, 2]
    tree = decode_section(body, told)
    assert (tree["p[0]"], tree["p[1]"]["y"]) == (None, 2)


def test_elements_of_different_lengths_are_told_one_by_one() -> None:
    varied: Description[Any] = Description("v", fields=[U8("n"), U8("a", count="n", max_count=9)])
    description: Description[Any] = Description("dev", fields=[Structs("v", varied, count=2)])
    body, told = description.save_described(Obj(v=[Obj(n=1, a=[1]), Obj(n=2, a=[2, 3])]))
    tree = decode_section(body, told)
    assert tree["v[1]"]["a"] == [2, 3]
    assert [path for path, _ in tree.walk()] == ["v[0].n", "v[0].a", "v[1].n", "v[1].a"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 1 << 70)
    | st.sampled_from(["struct", "uint8", "qtailq", "tmp", "f"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "type",
                    "size",
                    "fields",
                    "struct",
                    "array_len",
                    "index",
                    "vmsd_name",
                    "version",
                    "subsections",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(json_values, st.binary(max_size=20))
def test_any_json_is_decoded_or_refused(told: Any, body: bytes) -> None:
    if not isinstance(told, dict):
        told = {"fields": told}
    try:
        tree = decode_section(body, told)
    except StreamError:
        return
    assert tree.size == len(body)
