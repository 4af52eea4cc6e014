"""What ``save_state`` returns, on its way: wrapped into a section, or as the sections it is."""

from __future__ import annotations

from typing import Any

import pytest

from colo.errors import StreamError, VmError
from colo.limits import StreamLimits
from colo.stream import check_device_blob
from colo.stream.writer import device_section, end_of_stream
from colo.vm.saved_state import STATE_IDSTR, StateForm, decode_state

LIMITS = StreamLimits()


def sections(*bodies: bytes, first_id: int = 0) -> bytes:
    made = [device_section(first_id + n, f"device{n}", body, version_id=n + 1) for n, body in enumerate(bodies)]
    return b"".join(made) + end_of_stream()


@pytest.mark.parametrize("state", [b"", b"x", bytes(range(256)), b"\x7e\x00\x00\x00\x01\x00", b"\x04", sections(b"a")[:-1]])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_come_back_as_they_were(state: bytes, kind: Any) -> None:
    blob = StateForm(LIMITS).encode(kind(state))
    assert bytes(decode_state(blob, LIMITS)) == state
    assert [section.idstr for section in check_device_blob(blob)] == [STATE_IDSTR]


def test_sections_travel_as_they_are_and_are_told_apart_by_their_first_byte_and_form() -> None:
    blob = sections(b"abc", b"", b"\x00" * 9)
    form = StateForm(LIMITS)
    assert form.encode(blob) == blob
    assert bytes(decode_state(blob, LIMITS)) == blob
    assert [(s.idstr, s.length_bytes) for s in form.sections_of(blob)] == [("device0", 3), ("device1", 0), ("device2", 9)]


def test_the_first_state_decides_for_the_session() -> None:
    form = StateForm(LIMITS)
    form.encode(sections(b"abc", b"d"))
    assert form.encode(sections(b"", b"much longer")) == sections(b"", b"much longer")
    for other in (b"bytes", sections(b"abc"), sections(b"abc", b"d", b"e"), sections(b"abc", b"d")[:-1], b""):
        with pytest.raises(VmError, match="no device sections as before"):
            form.encode(other)
    form = StateForm(LIMITS)
    form.encode(b"bytes")
    blob = form.encode(sections(b"abc"))
    assert bytes(decode_state(blob, LIMITS)) == sections(b"abc")
    assert [s.idstr for s in form.sections_of(blob)] == [STATE_IDSTR]


def test_sections_may_come_in_another_layout_as_long_as_they_are_the_same_devices() -> None:
    form = StateForm(LIMITS)
    form.encode(sections(b"abc", b"d"))
    moved = device_section(9, "device1", b"d", version_id=2) + device_section(3, "device0", b"abc", version_id=1) + end_of_stream()
    assert form.encode(moved) == moved
    assert {s.section_id for s in form.sections_of(moved)} == {3, 9}


def test_each_checkpoints_sections_are_found_without_a_scan_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    form = StateForm(LIMITS, sections=True)
    form.encode(sections(b"abc", bytes(1000)))

    def scanned(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a full scan")

    monkeypatch.setattr("colo.vm.saved_state.check_device_blob", scanned)
    monkeypatch.setattr("colo.stream.devices.check_device_blob", scanned)
    for length in range(40):
        blob = sections(bytes(length), b"z" * (100 - length))
        assert form.encode(blob) == blob
        assert [s.length_bytes for s in form.sections_of(blob)] == [length, 100 - length]


def test_what_is_said_to_be_sections_and_is_not_is_refused_at_once() -> None:
    with pytest.raises(VmError, match="no device sections"):
        StateForm(LIMITS, sections=True).encode(b"bytes")
    blob = StateForm(LIMITS, sections=False).encode(sections(b"abc"))
    assert bytes(decode_state(blob, LIMITS)) == sections(b"abc")


@pytest.mark.parametrize("garbage", [None, "text", 7, [b"x"]])
def test_what_is_no_bytes_is_refused(garbage: Any) -> None:
    with pytest.raises(VmError, match=f"save_state returned {type(garbage).__name__}"):
        StateForm(LIMITS).encode(garbage)


def test_more_than_the_secondary_takes_is_refused() -> None:
    limits = StreamLimits(device_state_bytes=100)
    with pytest.raises(VmError, match="returned 101 bytes, at most 100"):
        StateForm(limits).encode(bytes(101))


def test_a_wrapped_state_that_was_damaged_is_refused() -> None:
    blob = StateForm(LIMITS).encode(b"state")
    for cut in (1, 3, 6):
        with pytest.raises(StreamError):
            decode_state(blob[:-cut], LIMITS)
