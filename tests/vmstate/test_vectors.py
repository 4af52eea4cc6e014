"""Captured device state of three QEMU releases: decoded to the last byte, loaded, saved and described the
same.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import StreamError
from colo.vmstate import Description, decode_section, render_vmdesc, split_sections
from tests.vmstate.qemu_devices import ALL
from tests.vmstate.qemu_machine import Captured, capture

VECTORS = sorted((Path(__file__).parent / "vectors").glob("*.xz"))
CAPTURED = {path.stem: capture(lzma.decompress(path.read_bytes())) for path in VECTORS}


@pytest.fixture(params=CAPTURED)
def captured(request: pytest.FixtureRequest) -> Captured:
    return CAPTURED[request.param]


def test_every_section_decodes_to_its_last_byte(captured: Captured) -> None:
    assert len(captured.prefix) == 0
    for section, device in zip(captured.sections, captured.vmdesc["devices"], strict=True):
        tree = decode_section(section.body, device)
        assert tree.size == len(section.body)
        at = 0
        for _path, field in tree.walk():
            if field.offset != at:  # the head of a subsection is between
                assert section.body[at] == 0x05
                assert field.offset - at == 6 + section.body[at + 1]
            at = field.offset + field.size
        assert at == len(section.body)


def test_the_vmdesc_is_written_back_as_it_was(captured: Captured) -> None:
    assert render_vmdesc(captured.vmdesc) == captured.vmdesc_json


@pytest.mark.parametrize("description", ALL, ids=lambda d: d.name)
def test_declared_devices_save_and_describe_what_they_loaded(
    captured: Captured, description: Description[Any]
) -> None:
    for section, device in zip(captured.sections, captured.vmdesc["devices"], strict=True):
        if section.idstr != description.name:
            continue
        assert description.factory is not None
        obj = description.factory()
        description.load(obj, section.body, section.version)
        assert description.save(obj) == section.body
        data, told = description.save_described(obj)
        assert data == section.body
        for field in told["fields"]:
            if field["name"] == "num_timers" and device["fields"][3]["name"] == "num_timers_save":
                field["name"] = "num_timers_save"  # what QEMU 10 calls it: names do not travel in the section
        assert {"name": section.idstr, "instance_id": section.instance_id, **told} == device


@given(st.data())
def test_a_damaged_blob_is_cut_right_or_refused(data: st.DataObject) -> None:
    captured = CAPTURED["pc-7.2"]
    blob = bytearray(captured.blob)
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(len(blob) - 8, len(blob)))]
    error = None
    try:
        sections = split_sections(blob, captured.vmdesc)
        for section, device in zip(sections, captured.vmdesc["devices"], strict=True):
            decode_section(section.body, device)
    except StreamError as exc:
        error = exc
    assert error is None or error.where
