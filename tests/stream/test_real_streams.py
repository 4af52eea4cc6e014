"""Streams of real QEMUs are read to their last byte, and split where their vmdesc says."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from colo.errors import StreamError
from colo.stream import (
    CommandItem,
    Configuration,
    DeviceCheck,
    DeviceState,
    EndOfStream,
    FileHeader,
    LiveSection,
    StreamReader,
    check_device_blob,
)
from colo.stream.writer import configuration, file_header, ram_start_section
from colo.wire import ColoMessage, Command, SectionType

NAMES = sorted(
    path.name.removesuffix(".stream.xz")
    for path in (Path(__file__).resolve().parents[1] / "vectors").glob("*.stream.xz")
)
COLO = [name for name in NAMES if "colo" in name]
PLAIN = [name for name in NAMES if "colo" not in name]


def test_there_are_vectors():
    assert len(PLAIN) >= 9
    assert len(COLO) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_sections_are_split_where_the_vmdesc_says(name, vector, consume):
    state = consume(vector(name)).device_state()
    assert state.complete
    assert state.blob[-1] == 0
    assert vector(name)[state.offset :].startswith(state.blob)
    if "suppress" in name:
        assert state.vmdesc is None
        assert not state.ambiguous
    else:
        described = [(d.key, d.state.size_bytes) for d in state.vmdesc.devices]
        assert [(s.key, s.length_bytes) for s in state.sections] == described


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_left_behind_the_end(name, vector, consume):
    consumer = consume(vector(name))
    items = list(consumer.items())
    assert consumer.buf.at_end()
    assert isinstance(items[0], FileHeader)
    assert isinstance(items[1], Configuration)
    assert isinstance(items[-1], EndOfStream)
    kinds = [item.type for item in items if isinstance(item, LiveSection)]
    assert kinds[0] is SectionType.START
    assert kinds[-1] is SectionType.END
    assert sum(info.used_length for info in consumer.infos) == sum(b.used_length for b in consumer.blocks)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_read_is_written_with_the_same_bytes(name, vector, consume):
    data = vector(name)
    consumer = consume(data)
    items = list(consumer.items())
    head = items[1]
    made = file_header() + configuration(
        head.machine, capabilities=head.capabilities, page_bits=head.page_bits, uuid=head.uuid
    )
    assert data.startswith(made)
    [start] = [i for i in items if isinstance(i, LiveSection) and i.type is SectionType.START]
    assert data[start.offset :].startswith(ram_start_section(start.section_id, consumer.infos))


def test_configuration_subsections_and_addresses_of_an_ignore_shared_stream(vector, consume):
    consumer = consume(vector("7.2-pc-ignore-shared"))
    config = list(consumer.items())[1]
    assert config.machine == "pc-i440fx-7.2"
    assert config.capabilities == ("x-ignore-shared",)
    assert config.uuid == UUID("5a0f1c8e-9b3d-4a57-8c21-0d6e7f4b9a10").bytes
    assert {info.idstr: info.address for info in consumer.infos}["pc.bios"] == 0xFFFF0000


def test_two_devices_of_one_name_and_instance_are_both_kept(vector, consume):
    keys = [section.key for section in consume(vector("7.2-isapc")).device_state().sections]
    assert keys.count(("isa-ide", 0)) == 2


@pytest.mark.parametrize("name", COLO)
def test_colo_channel_checkpoints(name, vector, consume):
    consumer = consume(vector(name))
    buf = consumer.buf
    reader = StreamReader(buf)
    items = list(consumer.items(reader))
    commands = [item.command for item in items if isinstance(item, CommandItem)]
    first = next(item for item in items if isinstance(item, DeviceState))
    expected = {
        "7.2": [Command.ENABLE_COLO],
        "10.0": [Command.ENABLE_COLO],
        "11.1": [Command.OPEN_RETURN_PATH, Command.PING],
    }[name.split("-")[0]]
    assert [command for command in commands if command in expected] == expected
    check = DeviceCheck(first.sections)
    for _ in range(3):
        assert buf.read_u32() == ColoMessage.CHECKPOINT_REQUEST
        assert buf.read_u32() == ColoMessage.VMSTATE_SEND
        live = list(consumer.items(StreamReader.live_state(buf, started=reader.live_sections)))
        assert any(isinstance(item, LiveSection) and item.idstr == "ram" for item in live)
        assert isinstance(live[-1], EndOfStream)
        assert buf.read_u32() == ColoMessage.VMSTATE_SIZE
        blob = buf.read_exact(buf.read_u64())
        sections = check.check(blob)
        assert [s.key for s in sections] == [s.key for s in first.sections]
        assert check_device_blob(blob) == sections
        assert check_device_blob(blob, {s.idstr for s in first.sections}) == sections
        assert check_device_blob(blob, expect_devices={s.key for s in first.sections}) == sections
    assert buf.at_end()


def test_a_checkpoint_without_a_device_of_the_first_stream_is_refused(vector, consume):
    state = consume(vector("7.2-pc")).device_state()
    lost = state.sections[5]
    header = 1 + 4 + 1 + len(lost.idstr) + 8
    blob = state.blob[: lost.offset - header] + state.blob[lost.offset + lost.length_bytes + 5 :]
    assert len(check_device_blob(blob)) == len(state.sections) - 1
    with pytest.raises(StreamError, match=f"missing.*{lost.idstr}"):
        DeviceCheck(state.sections).check(blob)
    with pytest.raises(StreamError, match=f"missing.*{lost.idstr}"):
        check_device_blob(blob, {s.idstr for s in state.sections})
