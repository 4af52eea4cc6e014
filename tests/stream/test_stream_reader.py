"""The order and contents of a section stream: what is refused, and what the error names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import LimitExceeded, StreamError, Truncated
from colo.stream import (
    CommandItem,
    Configuration,
    DeviceState,
    EndOfStream,
    LiveSection,
    Packaged,
    RamBlockInfo,
    StreamLimits,
    StreamReader,
)
from colo.stream.writer import (
    command,
    configuration,
    device_section,
    end_of_section,
    end_of_stream,
    file_header,
    packaged,
    ping,
    ram_start_section,
    section_end,
    section_footer,
    section_full,
    section_part,
    section_start,
)
from colo.wire import COMMAND_PAYLOAD_BYTES, Command, SectionType

HEAD = file_header() + configuration("pc")
BLOCKS = [RamBlockInfo("pc.ram", 1 << 20)]
RAM = ram_start_section(2, BLOCKS)
RAM_PART = section_part(2) + end_of_section() + section_footer(2)
RAM_END = section_end(2) + end_of_section() + section_footer(2)
DEVICE = device_section(3, "timer", b"body", version_id=2)
EOF = end_of_stream()


def read(consume, data, **limits):
    return list(consume(data, StreamLimits(quiet_ms=20, **limits)).items())


def test_a_whole_stream_by_the_writer(consume):
    items = read(
        consume,
        HEAD + command(Command.ENABLE_COLO) + ping(7) + RAM + RAM_PART + RAM_PART + RAM_END + DEVICE + EOF,
    )
    assert [type(item) for item in items[1:4]] == [Configuration, CommandItem, CommandItem]
    assert items[3].value == 7
    assert [item.type for item in items if isinstance(item, LiveSection)] == [
        SectionType.START,
        SectionType.PART,
        SectionType.PART,
        SectionType.END,
    ]
    state, end = items[-2:]
    assert isinstance(state, DeviceState)
    assert isinstance(end, EndOfStream)
    assert state.blob == DEVICE + EOF
    assert end.offset == state.offset + len(state.blob) - 1


def test_devices_may_be_sent_before_the_ram_section(consume):
    items = read(consume, HEAD + DEVICE + RAM + RAM_END + device_section(4, "b", b"", version_id=1) + EOF)
    states = [item for item in items if isinstance(item, DeviceState)]
    assert [state.complete for state in states] == [False, True]
    with pytest.raises(StreamError, match="section id 3 is in use"):
        read(consume, HEAD + DEVICE + RAM + RAM_END + device_section(3, "b", b"", version_id=1) + EOF)


def test_live_state_begins_at_the_first_section_and_reads_nothing_behind_eof(consume):
    consumer = consume(command(Command.SWITCHOVER_START) + RAM + RAM_END + EOF + b"\x06rest")
    items = list(consumer.items(StreamReader.live_state(consumer.buf)))
    assert isinstance(items[-1], EndOfStream)
    assert consumer.buf.read_exact(5) == b"\x06rest"


def test_packaged_streams_are_unwrapped(consume):
    inner = command(Command.POSTCOPY_LISTEN) + DEVICE + command(Command.POSTCOPY_RUN)
    items = read(consume, HEAD + RAM + packaged(inner) + RAM_END + EOF)
    [wrapped] = [item for item in items if isinstance(item, Packaged)]
    assert wrapped.length_bytes == len(inner)
    assert [type(item) for item in wrapped.items] == [CommandItem, DeviceState, CommandItem, EndOfStream]
    assert wrapped.items[1].blob == DEVICE


@pytest.mark.parametrize(
    ("stream", "says", "offset"),
    [
        (b"QEVM\0\0\0\2", "version 2", 4),
        (b"\x7fELF\0\0\0\3", "an ELF file", 0),
        (b"hello   ", "not the magic", 0),
        (b"\x11\x22\x33\x44\0\0\0\1", "a multifd channel.*switch the capability multifd off", 0),
        (b"\x16\x03\x01\0\0\0\0\0", "TLS handshake", 0),
        (HEAD + RAM + b"\x05", "subsection outside a vmstate", len(HEAD + RAM)),
        (HEAD + RAM + b"\x06", "vmdesc before EOF", len(HEAD + RAM)),
        (HEAD + RAM + b"\x07", "only follows the file header", len(HEAD + RAM)),
        (HEAD + RAM + b"\x7e\0\0\0\2", "footer outside a section", len(HEAD + RAM)),
        (HEAD + RAM + b"\x55", "unknown section type 0x55", len(HEAD + RAM)),
        (HEAD + b"\x08\0\x63\0\4abcd", "unknown command 99", len(HEAD)),
        (HEAD + b"\x08\0\x02\0\3abc", "payload of 3 bytes, it has 4", len(HEAD)),
        (HEAD + b"\x08\0\x08\0\1a", "payload of 1 bytes, it has 0", len(HEAD)),
        (
            HEAD + section_start(2, "dirty-bitmap", version_id=1),
            "'dirty-bitmap' is not served; only ram",
            len(HEAD),
        ),
        (HEAD + section_start(2, "ram", version_id=3), "version 3, only 4", len(HEAD)),
        (HEAD + RAM + RAM, "section id 2 is in use", len(HEAD + RAM)),
        (HEAD + RAM + section_start(5, "ram", version_id=4), "started twice", len(HEAD + RAM)),
        (HEAD + section_part(9), "no such live section", len(HEAD)),
        (HEAD + RAM + section_end(9), "no such live section", len(HEAD + RAM)),
        (HEAD + RAM + RAM_END + RAM_PART, "'ram' has ended", len(HEAD + RAM + RAM_END)),
        (
            HEAD + RAM + section_part(2) + end_of_section() + section_footer(3),
            "footer of section 3, expected one of section 2",
            len(HEAD + RAM) + 13,
        ),
        (HEAD + RAM + section_part(2) + end_of_section() + b"\0", "where the footer", len(HEAD + RAM) + 13),
        (HEAD + section_full(2, "ram", version_id=4), "not expected here", len(HEAD)),
        (
            HEAD + RAM + RAM_END + device_section(2, "b", b"", version_id=1) + EOF,
            "section id 2 is in use",
            None,
        ),
        (HEAD + RAM + packaged(packaged(b"\0")), "PACKAGED inside PACKAGED", len(HEAD + RAM) + 9),
        (HEAD + RAM + packaged(section_start(2, "ram", version_id=4)), "is not served", len(HEAD + RAM) + 9),
        (HEAD + RAM + packaged(b"\x55"), "in PACKAGED.*unknown section type", len(HEAD + RAM) + 9),
    ],
)
def test_what_breaks_the_format_is_refused_by_name(consume, stream, says, offset):
    with pytest.raises(StreamError, match=says) as caught:
        read(consume, stream)
    if offset is not None:
        assert caught.value.offset == offset


def test_limits_are_checked_before_anything_is_read(consume):
    with pytest.raises(LimitExceeded, match="4294967295 bytes"):
        read(consume, HEAD + RAM + b"\x08\0\x07\0\4\xff\xff\xff\xff")
    with pytest.raises(LimitExceeded, match="4294967295 bytes"):
        read(consume, HEAD + RAM + RAM_END + EOF + b"\x06\xff\xff\xff\xff{")
    with pytest.raises(LimitExceeded, match="4294967295 bytes"):
        read(consume, HEAD + RAM + RAM_END + DEVICE + EOF + b"\x06\xff\xff\xff\xff{")
    with pytest.raises(LimitExceeded, match="name has 4294967295 bytes"):
        read(consume, file_header() + b"\x07\xff\xff\xff\xff")


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (
            b"\x05\x11configuration/new\0\0\0\1....",
            "configuration/new' at byte 15 .*: unknown, and without a length",
        ),
        (
            b"\x05\x1econfiguration/target-page-bits"[:2]
            + b"configuration/target-page-bits\0\0\0\1\0\0\0\x10",
            "2\\^16 bytes",
        ),
        (b"\x05\x12configuration/uuid\0\0\0\2" + bytes(16), "version 2, only 1"),
        (2 * (b"\x05\x12configuration/uuid\0\0\0\1" + bytes(16)), "sent twice"),
        (b"\x05\x1aconfiguration/capabilities\0\0\0\1\xff\xff\xff\xff", "4294967295 capabilities"),
        (b"\x05\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\0", "empty name"),
        (b"\x05\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\4a\0bc", "control characters"),
    ],
)
def test_configuration_subsections_are_checked(tail, says):
    data = file_header() + configuration("pc") + tail + b"\x00"
    with pytest.raises(StreamError, match=says):
        list(StreamReader(ReadBuffer.from_bytes(data)))


def test_truncated_is_told_from_wrong():
    with pytest.raises(Truncated):
        list(StreamReader(ReadBuffer.from_bytes(HEAD)))


NAMES = st.text(
    st.characters(codec="ascii", min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255
)


@given(
    NAMES,
    st.lists(NAMES, max_size=5).map(tuple),
    st.none() | st.just(12),
    st.none() | st.binary(min_size=16, max_size=16),
)
def test_configuration_round_trip(machine, capabilities, page_bits, uuid):
    data = (
        file_header()
        + configuration(machine, capabilities=capabilities, page_bits=page_bits, uuid=uuid)
        + EOF
    )
    _, read_back, end = StreamReader(ReadBuffer.from_bytes(data))
    assert read_back == Configuration(8, machine, capabilities, page_bits, uuid, None)
    assert end.offset == len(data) - 1


IDS = st.integers(0, (1 << 32) - 1)


@given(st.data(), st.lists(st.sampled_from(list(Command)), max_size=6), IDS, st.integers(0, 5))
def test_stream_round_trip(data, commands, ram_id, parts):
    payloads = [
        data.draw(st.binary(max_size=30) if sizes is None else st.sampled_from(sizes).map(bytes))
        for sizes in (COMMAND_PAYLOAD_BYTES[number] for number in commands)
    ]
    stream = HEAD + ram_start_section(ram_id, [])
    for number, payload in zip(commands, payloads, strict=True):
        stream += command(number, payload)
    body = end_of_section() + section_footer(ram_id)
    stream += (section_part(ram_id) + body) * parts + section_end(ram_id) + body + EOF
    buf = ReadBuffer.from_bytes(stream)
    seen = []
    for item in StreamReader(buf):
        if isinstance(item, LiveSection):
            assert item.section_id == ram_id
            buf.skip(8 * (1 + (item.type is SectionType.START)))
        elif isinstance(item, CommandItem):
            seen.append((item.command, item.payload))
    assert seen == list(zip(commands, payloads, strict=True))
    assert buf.at_end()
