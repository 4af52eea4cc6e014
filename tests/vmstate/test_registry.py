"""Sections of a registry: names, instances, order; a blob that is not what it should be."""

from __future__ import annotations

from types import SimpleNamespace as Obj
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import StreamError, Truncated
from colo.vmstate import (
    U8,
    U16,
    Description,
    Registry,
    decode_section,
    device_state_bytes,
    pack_section_footer,
    pack_section_head,
    parse_vmdesc,
    render_vmdesc,
    split_sections,
)

NIC: Description[Any] = Description("nic", version=2, minimum_version=1, fields=[U8("a"), U16("b", since=2)])
IRQ: Description[Any] = Description("irq", fields=[U8("a")], priority=10)
RARE: Description[Any] = Description("rare", fields=[U8("a")], needed=lambda o: o.a)


def section(idstr: str, instance: int, version: int, body: bytes, section_id: int = 0) -> bytes:
    return pack_section_head(idstr, instance, version, section_id) + body + pack_section_footer(section_id)


def filled() -> tuple[Registry, list[Any]]:
    registry, objects = Registry(), [Obj(a=1, b=2), Obj(a=3, b=4), Obj(a=5), Obj(a=0)]
    for description, obj in zip((NIC, NIC, IRQ, RARE), objects, strict=True):
        registry.register(description, obj)
    return registry, objects


def test_sections_go_by_priority_then_registration_and_number_their_instances() -> None:
    registry, objects = filled()
    assert [str(s) for s in registry] == [
        "section 'irq' instance 0",
        "section 'nic' instance 0",
        "section 'nic' instance 1",
        "section 'rare' instance 0",
    ]
    expected = (
        section("irq", 0, 1, b"\5", 2)
        + section("nic", 0, 2, b"\1\0\2", 0)
        + section("nic", 1, 2, b"\3\0\4", 1)
    )
    assert registry.save() == expected + b"\0"
    objects[3].a = 9
    assert registry.save() == expected + section("rare", 0, 1, b"\x09", 3) + b"\0"


def test_a_blob_loads_in_its_own_order_and_names_what_it_held() -> None:
    registry, objects = filled()
    blob = section("nic", 1, 2, b"\x0b\0\x0c", 77) + section("irq", 0, 1, b"\x0d", 5) + b"\0"
    loaded = registry.load(blob)
    assert [(s.idstr, s.instance_id) for s in loaded] == [("nic", 1), ("irq", 0)]
    assert (objects[0].a, objects[1].a, objects[1].b, objects[2].a) == (1, 11, 12, 13)


def test_an_old_version_of_a_section_loads() -> None:
    registry, objects = filled()
    registry.load(section("nic", 0, 1, b"\x09") + b"\0")
    assert (objects[0].a, objects[0].b) == (9, 2)


def test_duplicates_are_refused_when_registered() -> None:
    registry, _ = filled()
    with pytest.raises(ValueError, match="section 'nic' instance 1 is registered already"):
        registry.register(NIC, Obj(), instance_id=1)
    registry.register(NIC, Obj(), instance_id=7, alias_id=20)
    assert registry.register(NIC, Obj()).instance_id == 8
    with pytest.raises(ValueError, match="instance 20 is registered already"):
        registry.register(NIC, Obj(), instance_id=20)
    with pytest.raises(ValueError, match="instance 1 is registered already"):
        registry.register(NIC, Obj(), instance_id=30, alias_id=1)
    for bad in (-1, 1 << 32):
        with pytest.raises(ValueError, match="is no u32"):
            registry.register(NIC, Obj(), instance_id=bad)
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        registry.register(NIC, Obj(), path="x" * 252)


def test_an_alias_is_another_instance_it_answers_to() -> None:
    registry, nic = Registry(), Obj()
    registry.register(NIC, nic, instance_id=3, alias_id=0)
    registry.load(section("nic", 0, 1, b"\x09") + b"\0")
    assert nic.a == 9
    nic.b = 1
    assert b"nic\0\0\0\3" in registry.save()


def test_a_path_makes_the_name_and_the_bare_name_still_loads() -> None:
    registry, first, second = Registry(), Obj(a=1, b=1), Obj(a=2, b=2)
    registry.register(NIC, first, path="0000:00:03.0")
    registry.register(NIC, second, path="0000:00:04.0")
    assert [(s.idstr, s.instance_id) for s in registry] == [("0000:00:03.0/nic", 0), ("0000:00:04.0/nic", 0)]
    registry.load(section("nic", 1, 1, b"\x09") + section("0000:00:03.0/nic", 0, 1, b"\x08") + b"\0")
    assert (first.a, second.a) == (8, 9)


def test_an_unregistered_section_is_gone_and_its_id_not_used_again() -> None:
    registry = Registry()
    first = registry.register(NIC, Obj())
    registry.unregister(first)
    assert len(registry) == 0
    assert registry.register(NIC, Obj()).section_id == 1
    with pytest.raises(ValueError, match="not registered"):
        registry.unregister(first)


@pytest.mark.parametrize(
    ("blob", "kind", "message", "offset"),
    [
        (b"", Truncated, "the next section or the EOF byte", 0),
        (section("nic", 0, 2, b"\1\0\2"), Truncated, "the next section or the EOF byte", 25),
        (
            section("nix", 0, 2, b"\1\0\2") + b"\0",
            StreamError,
            r"'nix'.*no such section .*near to it: nic",
            0,
        ),
        (section("nic", 9, 2, b"\1\0\2") + b"\0", StreamError, "no such instance here, only 0, 1", 0),
        (
            section("nic", 0, 3, b"\1\0\2") + b"\0",
            StreamError,
            "version 3 of 'nic' is too new: .* 1 to 2",
            17,
        ),
        (section("nic", 0, 0, b"\1\0\2") + b"\0", StreamError, "version 0 of 'nic' is too old", 17),
        (section("nic", 0, 2, b"\1\0\2\7") + b"\0", StreamError, "no footer after its body, but 0x07", 20),
        (section("nic", 0, 2, b"\1\0") + b"\0", StreamError, "no footer after its body, but 0x00", 20),
        (
            section("nic", 0, 2, b"\1\0\2\5\5irq/x") + b"\0",
            StreamError,
            "a subsection 'irq/x', which is none of 'nic'",
            20,
        ),
        (
            pack_section_head("nic", 0, 2, 1) + b"\1\0\2" + pack_section_footer(2) + b"\0",
            StreamError,
            "footer is of section id 2, it has 1",
            20,
        ),
        (section("nic", 0, 2, b"\1\0\2") + b"\0\0", StreamError, "1 bytes follow the EOF byte", 26),
        (b"\x01" + section("nic", 0, 2, b"\1\0\2")[1:] + b"\0", StreamError, "section type 0x01", 0),
        (b"\x04\0\0\0\0\x03\xff\xfe\xfd" + bytes(8), StreamError, "no UTF-8", 0),
        (
            section("nic", 0, 2, b"\1\0\2") + section("nic", 0, 2, b"\1\0\2") + b"\0",
            StreamError,
            "in the blob twice",
            25,
        ),
    ],
)
def test_what_is_wrong_with_a_blob_is_told_with_its_place(
    blob: bytes, kind: type[StreamError], message: str, offset: int
) -> None:
    registry, _ = filled()
    with pytest.raises(kind, match=message) as got:
        registry.load(blob)
    assert got.value.where
    assert got.value.offset == offset


def test_a_blob_cut_at_any_byte_is_an_error() -> None:
    registry, _ = filled()
    blob, vmdesc = registry.save_described()
    for length in range(len(blob)):
        with pytest.raises(StreamError) as got:
            registry.load(blob[:length])
        assert got.value.where
        with pytest.raises(StreamError):
            registry.load(blob[:length], vmdesc)


def test_with_a_vmdesc_a_damaged_blob_touches_no_object() -> None:
    registry, objects = filled()
    blob, vmdesc = registry.save_described()
    objects[2].a = 99
    for damaged in (blob[:-1], blob[:-4], blob + b"\0", blob.replace(b"nic", b"nid")):
        with pytest.raises(StreamError):
            registry.load(damaged, vmdesc)
        assert objects[2].a == 99


def test_its_vmdesc_cuts_and_decodes_its_blob() -> None:
    registry, _ = filled()
    blob, vmdesc = registry.save_described()
    told = parse_vmdesc(render_vmdesc(vmdesc))
    assert told == vmdesc
    assert device_state_bytes(told) == len(blob)
    sections = split_sections(blob, told)
    values = [decode_section(s.body, d).as_dict() for s, d in zip(sections, told["devices"], strict=True)]
    assert values == [{"a": 5}, {"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop(), "the vmdesc does not tell of it"),
        (lambda d: d.append(d[0]), "the blob ends before it"),
        (lambda d: d.reverse(), "here is 'irq' instance 0 instead"),
        (lambda d: d[1].update(version=7), "version 2 here, 7 in the vmdesc"),
        (lambda d: d[0]["fields"][0].update(size=2), "no footer after its body"),
        (lambda d: d[0]["fields"][0].update(size=1 << 40), "bytes are needed"),
        (lambda d: d[0]["fields"][0].update(size=1 << 62), r"devices\[0\]\.fields\[0\]\.size is not an integer"),
        (lambda d: d[0]["fields"][0].update(size=-1), "size is not an integer"),
        (lambda d: d[0].update(fields=7), "fields is not an array"),
        (lambda d: d[0].update(name=None), "name is not a name"),
    ],
)
def test_a_vmdesc_that_does_not_fit_is_told(change: Any, message: str) -> None:
    registry, _ = filled()
    blob, vmdesc = registry.save_described()
    change(vmdesc["devices"])
    with pytest.raises(StreamError, match=message):
        split_sections(blob, vmdesc)


def test_a_value_that_does_not_fit_names_section_and_field() -> None:
    registry, objects = filled()
    objects[1].b = 1 << 16
    for save in (registry.save, registry.save_described):
        with pytest.raises(StreamError, match=r"section 'nic' instance 1 b: 65536 is no uint16"):
            save()


@given(st.data())
def test_random_damage_is_an_error_or_other_values(data: st.DataObject) -> None:
    registry, _ = filled()
    blob = bytearray(registry.save())
    for _ in range(data.draw(st.integers(1, 5))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    error = None
    try:
        registry.load(blob)
    except StreamError as exc:
        error = exc
    assert error is None or error.where
