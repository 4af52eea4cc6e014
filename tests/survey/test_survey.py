"""A reader for people: what it does not know is named, and what is behind is read."""

from __future__ import annotations

import json
import random

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import StreamError
from colo.limits import DEFAULT_LIMITS
from colo.stream import CommandItem, Configuration, DeviceState, EndOfStream, LiveSection, RamBlockInfo
from colo.stream.resync import WINDOW_BYTES, pass_over_body
from colo.stream.writer import (
    command,
    configuration,
    device_section,
    end_of_section,
    end_of_stream,
    file_header,
    ram_start_section,
    section_end,
    section_footer,
    section_full,
    section_part,
    section_start,
    vmdescription,
)
from colo.survey.salvage import find_vmdesc
from colo.survey.survey import SurveyReader
from colo.wire import Command

HEAD = file_header() + configuration("pc-i440fx-7.2")
RAM = ram_start_section(2, [RamBlockInfo("pc.ram", 1 << 20)])
RAM_END = section_end(2) + end_of_section() + section_footer(2)
DEVICES = [("timer", 2, b"\0" * 24), ("cpu", 3, bytes(range(200))), ("rtc", 4, b"x" * 17)]


def device(name, number, body):
    return device_section(number, name, body, version_id=1)


def described(devices=DEVICES):
    listed = [
        {
            "name": name, "instance_id": 0, "vmsd_name": name, "version": 1,
            "fields": [{"name": "f", "type": "buffer", "size": len(body)}],
        }
        for name, _, body in devices
    ]  # fmt: skip
    return vmdescription(json.dumps({"page_size": 4096, "devices": listed}).encode())


def tail(devices=None, vmdesc=True):
    sections = b"".join(device(name, 10 + i, body) for i, (name, _, body) in enumerate(DEVICES))
    return (sections if devices is None else devices) + end_of_stream() + (described() if vmdesc else b"")


def survey(data, source=ReadBuffer.from_bytes):
    reader = SurveyReader(source(data))
    items = []
    for item in reader:
        items.append(item)
        if isinstance(item, LiveSection):
            if item.idstr == "ram":
                buf = reader.buf
                while (value := buf.read_u64()) != 0x10:
                    assert value & 0x3FF == 4
                    buf.read_exact(buf.read_u8())
                    buf.read_u64()
            else:
                reader.pass_over(item)
    return reader, items


def device_names(items):
    return [s.idstr for item in items if isinstance(item, DeviceState) for s in item.sections]


ALL = ["timer", "cpu", "rtc"]


def unknown_live(body: bytes, number: int = 7, name: str = "pbs-state") -> tuple[bytes, bytes, bytes]:
    footer = section_footer(number)
    return (
        section_start(number, name, version_id=1) + body + footer,
        section_part(number) + body + footer,
        section_end(number) + body + footer,
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x7e\0\0\0\x07",  # its own footer, with no item behind it
        b"\x7e\0\0\0\x07\x04\0\0\0\x09\0",  # and what is a header without a name
        b"\x7e\0\0\0\x07\x02\0\0\0\x63",  # a part of a section that is none
        random.Random(3).randbytes(3 * WINDOW_BYTES + 17),
        bytes(2 * WINDOW_BYTES - 3),
    ],
    ids=["empty", "footer", "header", "part", "long", "zeros"],
)
def test_unknown_live_sections_are_named_and_passed_over(body):
    start, part, end = unknown_live(body)
    data = HEAD + RAM + start + section_part(2) + end_of_section() + section_footer(2) + part + RAM_END + end + tail()
    reader, items = survey(data)
    assert reader.problems == []
    live = [(item.type.name, item.idstr) for item in items if isinstance(item, LiveSection)]
    assert live == [
        ("START", "ram"), ("START", "pbs-state"), ("PART", "ram"), ("PART", "pbs-state"), ("END", "ram"),
        ("END", "pbs-state"),
    ]  # fmt: skip
    assert device_names(items) == ALL
    assert isinstance(items[-1], EndOfStream)


def test_an_unknown_live_section_that_never_ends_is_told():
    reader, _ = survey(HEAD + RAM + section_start(7, "x", version_id=1) + b"body without an end")
    assert "no end of it follows" in str(reader.problems[0])


def test_early_devices_end_where_a_live_section_of_any_name_starts():
    start, _, end = unknown_live(b"body")
    early = device("early", 1, b"abc")
    reader, items = survey(HEAD + early + start + RAM + RAM_END + end + tail(vmdesc=False))
    assert reader.problems == []
    assert device_names(items) == ["early", *ALL]


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        (b"\x08\x01\x00\x00\x03abc", "unknown command 256"),
        (b"\x08\x00\x02\x00\x03abc", "payload of 3 bytes"),
        (b"\x55garbage", "unknown section type"),
        (b"\x05\x03abc\0\0\0\1", "subsection outside"),
        (section_part(9) + b"body" + section_footer(9), "no such live section"),
    ],
)
def test_what_is_unknown_in_the_middle_does_not_hide_the_rest(middle, says):
    reader, items = survey(HEAD + RAM + middle + command(Command.PING, b"\0\0\0\1") + RAM_END + tail())
    assert says in str(reader.problems[0])
    assert any(isinstance(item, LiveSection) and item.type.name == "END" for item in items) or "PING" in str(items)
    assert device_names(items) == ALL


def test_a_configuration_subsection_that_is_unknown_is_passed_over():
    data = file_header() + configuration("pc") + b"\x05\x05other\0\0\0\1" + b"\xaa" * 9 + RAM + RAM_END + tail()
    reader, items = survey(data)
    assert "subsection 'other'" in str(reader.problems[0])
    assert not any(isinstance(item, Configuration) for item in items)
    assert device_names(items) == ALL


@pytest.mark.parametrize("bits", [10, 14, 16])
def test_page_sizes_are_taken_as_stated(bits):
    _, items = survey(file_header() + configuration("virt", page_bits=bits) + RAM + RAM_END + tail())
    assert items[1].page_bits == bits


def test_a_wrong_footer_of_a_live_section_is_its_own():
    data = HEAD + RAM + section_part(2) + end_of_section() + section_footer(9) + RAM_END + tail()
    reader, items = survey(data)
    assert [str(problem).partition(": ")[2] for problem in reader.problems] == [
        "footer of section 9, expected one of section 2"
    ]
    assert device_names(items) == ALL


class TestDevices:
    def run(self, devices, vmdesc=True):
        reader, items = survey(HEAD + RAM + RAM_END + tail(devices, vmdesc))
        state = next(item for item in items if isinstance(item, DeviceState))
        assert isinstance(items[-1], EndOfStream)
        return reader, state, reader.wrong.get(state.offset, {})

    @pytest.mark.parametrize("vmdesc", [True, False])
    def test_a_wrong_footer_is_that_devices(self, vmdesc):
        cpu = section_full(11, "cpu", version_id=1) + DEVICES[1][2] + section_footer(99)
        reader, state, wrong = self.run(device("timer", 10, bytes(24)) + cpu + device("rtc", 12, b"x" * 17), vmdesc)
        assert [s.idstr for s in state.sections] == ALL
        assert [s.length_bytes for s in state.sections] == [24, 200, 17]
        assert list(wrong) == [1]
        assert "footer of section 99, expected one of section 11" in str(wrong[1])
        assert reader.problems == [wrong[1]]

    def test_a_length_other_than_the_vmdescs_is_that_devices(self):
        _, state, wrong = self.run(device("timer", 10, bytes(24)) + device("cpu", 11, b"short") + device("rtc", 12, b"x" * 17))
        assert [s.idstr for s in state.sections] == ALL
        assert "5 bytes, and the vmdesc has 200" in str(wrong[1])
        assert list(wrong) == [1]

    def test_a_device_that_is_missing_is_told_and_the_others_are_shown(self):
        reader, state, wrong = self.run(device("timer", 10, bytes(24)) + device("rtc", 12, b"x" * 17))
        assert [s.idstr for s in state.sections] == ["timer", "rtc"]
        assert not wrong
        assert "device 'cpu' instance 0" in str(reader.problems[0])

    def test_a_vmdesc_that_is_none_is_its_own_error(self):
        data = HEAD + RAM + RAM_END + tail(vmdesc=False) + vmdescription(b'{"devices": [nonsense]}')
        reader, items = survey(data)
        assert device_names(items) == ALL
        assert [problem.where for problem in reader.problems] == ["VMDESCRIPTION"]

    def test_devices_that_are_cut_off_show_what_came(self):
        whole = HEAD + RAM + RAM_END + tail(vmdesc=False)
        reader, items = survey(whole[:-30])
        assert device_names(items)[:2] == ["timer", "cpu"]
        assert reader.problems


def without_footers(body: bytes) -> bytes:
    return body[:-5]


class TestWithoutFooters:
    """As machine types up to 2.3 send: neither CONFIGURATION nor footers."""

    RAM_PARTS = file_header() + without_footers(RAM) + section_end(2) + end_of_section()

    @pytest.mark.parametrize("vmdesc", [True, False])
    def test_devices_are_told_apart(self, vmdesc):
        devices = b"".join(without_footers(device(name, 10 + i, body)) for i, (name, _, body) in enumerate(DEVICES))
        reader, items = survey(self.RAM_PARTS + devices + end_of_stream() + (described() if vmdesc else b""))
        state = next(item for item in items if isinstance(item, DeviceState))
        assert [s.idstr for s in state.sections] == ALL
        assert [s.length_bytes for s in state.sections] == [24, 200, 17]
        assert state.ambiguous is not vmdesc
        assert reader.problems == []
        assert any("no footers" in note for note in reader.notes)
        assert any("no CONFIGURATION" in note for note in reader.notes)

    def test_an_unknown_live_section_ends_where_another_item_starts(self):
        start, _, end = (part[:-5] for part in unknown_live(b"some body of it"))
        data = file_header() + without_footers(RAM) + start + section_end(2) + end_of_section() + end
        reader, items = survey(data + without_footers(device("timer", 10, bytes(24))) + end_of_stream() + described(DEVICES[:1]))
        assert [item.idstr for item in items if isinstance(item, LiveSection)] == ["ram", "pbs-state", "ram", "pbs-state"]
        assert device_names(items) == ["timer"]
        assert reader.problems == []


def test_devices_without_footers_that_begin_with_no_name():
    reader, _ = survey(TestWithoutFooters.RAM_PARTS + b"\x04\0\0\0\3\5\xff\xfe\0\0\0" + device("timer", 10, bytes(24)))
    assert reader.problems or reader.notes


def test_a_hostile_body_is_gone_through_once():
    """Millions of places that could be an item, none of which is."""
    body = b"\x01\x04\0\x7e\0\0\0\x07\x04" * 300_000
    start, _, _ = unknown_live(body)
    buf = ReadBuffer.from_bytes(start[len(section_start(7, "pbs-state", version_id=1)) :])
    assert not pass_over_body(buf, 7, range(1000), footers=True)
    assert buf.at_end()


def test_a_vmdesc_is_found_among_what_looks_like_one():
    text = described()
    found = find_vmdesc(b"\x06\0\0\0\2{}" + b"\x06\0\0\0\1{" + b"\x06\xff\xff\xff\xff{" + text, 100, DEFAULT_LIMITS)
    assert found is not None
    assert found[1].page_size == 4096
    assert found[1].text == text[5:]
    assert find_vmdesc(b"\x06\0\0\0\2{}" * 1000, 0, DEFAULT_LIMITS) is None


def test_commands_are_kept():
    _, items = survey(HEAD + command(Command.POSTCOPY_ADVISE) + RAM + RAM_END + tail())
    assert [item.command for item in items if isinstance(item, CommandItem)] == [Command.POSTCOPY_ADVISE]


def test_what_has_no_header_is_refused():
    with pytest.raises(StreamError, match="multifd channel"):
        survey(b"\x11\x22\x33\x44" + bytes(60))
