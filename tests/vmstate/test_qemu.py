"""Against a real QEMU: its sections decoded, loaded, saved again, and given back to it."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colo.errors import StreamError, Truncated
from colo.vmstate import (
    Description,
    Registry,
    decode_section,
    pack_section_footer,
    pack_section_head,
    render_vmdesc,
)
from tests.vmstate.qemu_devices import ALL, PCKBD, PIC, PIT, RTC, Pckbd, Pic, Pit, Rtc
from tests.vmstate.qemu_machine import PC, Captured, Machine, capture

pytestmark = pytest.mark.qemu

MANY_DEVICES = (  # noqa: SIM905
    "-device qemu-xhci,id=x -device usb-tablet,bus=x.0 -device usb-ehci,id=e -device usb-kbd,bus=e.0 "
    "-device virtio-net-pci -device virtio-rng-pci -device virtio-balloon-pci -device virtio-serial-pci "
    "-device virtio-scsi-pci -device virtio-keyboard-pci -device vmxnet3 "
    "-device pcie-root-port,id=r1,chassis=1,slot=1 -device e1000e -device rtl8139 -device pcnet "
    "-device lsi53c895a -device megasas -device pvscsi "
    "-device sdhci-pci -device i6300esb -device ne2k_pci -device tulip -device piix3-usb-uhci,id=u "
    "-device usb-hub,bus=u.0 -device i82550 -device pvpanic"
).split()


def body(captured: Captured, name: str, instance: int = 0) -> bytes:
    (section,) = [s for s in captured.sections if (s.idstr, s.instance_id) == (name, instance)]
    return bytes(section.body)


def rebuilt(captured: Captured, new: dict[tuple[str, int], bytes]) -> bytes:
    """The captured state with some bodies replaced."""
    out = b""
    for s in captured.sections:
        out += pack_section_head(s.idstr, s.instance_id, s.version, s.section_id)
        out += new.get((s.idstr, s.instance_id), bytes(s.body)) + pack_section_footer(s.section_id)
    return out + b"\0"


def loaded(description: Description[Any], captured: Captured, instance: int = 0) -> Any:
    assert description.factory is not None
    obj = description.factory()
    description.load(obj, body(captured, description.name, instance))
    return obj


def test_every_section_of_a_pc_decodes_to_its_last_byte(pc: Captured) -> None:
    assert rebuilt(pc, {}) == pc.blob
    for section, device in zip(pc.sections, pc.vmdesc["devices"], strict=True):
        tree = decode_section(section.body, device)
        at = 0
        for _path, field in tree.walk():
            # Between two fields there is nothing, or the head of a subsection.
            if field.offset != at:
                assert section.body[at] == 0x05
                assert field.offset - at == 6 + section.body[at + 1]
            at = field.offset + field.size
        assert at == tree.size == len(section.body)


@pytest.mark.parametrize(
    "machine_args", [("q35", ["-smp", "2", *MANY_DEVICES]), ("isapc", []), ("microvm", []), ("none", [])]
)
def test_all_kinds_of_machines_decode(
    machine: Callable[..., Machine], tmp_path: Path, machine_args: tuple[str, list[str]]
) -> None:
    name, args = machine_args
    qemu = machine("-M", name, "-accel", "tcg", "-nodefaults", "-m", "4", *args)
    captured = capture(qemu.migrate(tmp_path / "stream"))
    for section, device in zip(captured.sections, captured.vmdesc["devices"], strict=True):
        assert decode_section(section.body, device).size == len(section.body)
    if name == "q35":
        assert len(captured.sections) >= 50


def test_decoded_values_are_the_machines(pc: Captured) -> None:
    by_name = {d["name"]: d for d in pc.vmdesc["devices"]}
    cpu = decode_section(body(pc, "cpu"), by_name["cpu"])
    assert cpu["env.eip"] == 0xFFF0
    assert cpu["env.segs"][1]["base"] == 0xFFFF0000
    pit = decode_section(body(pc, "i8254"), by_name["i8254"]).as_dict()
    assert [c["gate"] for c in pit["channels"]] == [1, 1, 0]


@pytest.mark.parametrize("description", ALL, ids=lambda d: d.name)
def test_a_declared_device_saves_the_bytes_it_loaded(pc: Captured, description: Description[Any]) -> None:
    instances = [s.instance_id for s in pc.sections if s.idstr == description.name]
    assert instances
    for instance in instances:
        assert description.save(loaded(description, pc, instance)) == body(pc, description.name, instance)


@pytest.mark.parametrize("description", ALL, ids=lambda d: d.name)
def test_a_declared_device_is_described_as_qemu_describes_it(
    pc: Captured, description: Description[Any]
) -> None:
    device = next(d for d in pc.vmdesc["devices"] if d["name"] == description.name)
    data, told = description.save_described(loaded(description, pc))
    assert data == body(pc, description.name)
    assert {"name": description.name, "instance_id": 0, **told} == device


@pytest.mark.parametrize("description", ALL, ids=lambda d: d.name)
def test_a_section_cut_at_any_byte_is_told_with_its_field(
    pc: Captured, description: Description[Any]
) -> None:
    whole = body(pc, description.name)
    for length in range(len(whole)):
        assert description.factory is not None
        error = None
        try:
            description.load(description.factory(), whole[:length])
        except Truncated as exc:
            error = exc
        if error is None:
            # The one cut that is no damage: right before an optional subsection.
            assert whole[length] == 0x05
            continue
        assert error.where.startswith(description.name)
        assert " " in error.where or "subsection" in str(error)
        assert error.offset is not None
        assert error.offset <= length


def test_the_vmdesc_is_written_back_as_it_was(pc: Captured) -> None:
    assert render_vmdesc(pc.vmdesc) == pc.vmdesc_json


def test_qemu_runs_on_from_sections_we_encoded(
    machine: Callable[..., Machine], pc: Captured, tmp_path: Path
) -> None:
    pic: Pic = loaded(PIC, pc, 0)
    rtc: Rtc = loaded(RTC, pc)
    pit: Pit = loaded(PIT, pc)
    pckbd: Pckbd = loaded(PCKBD, pc)
    pic.imr, pic.irq_base, pic.elcr = 0x5A, 0x70, 0x80
    rtc.cmos_data[0x40:0x44] = b"colo"
    pit.channels[2].latched_count = 0x1234
    pckbd.kbd.extended, pckbd.kbd.obdata = True, 0x77
    pckbd.kbd.status |= 0x01
    blob = rebuilt(
        pc,
        {
            ("i8259", 0): PIC.save(pic),
            ("mc146818rtc", 0): RTC.save(rtc),
            ("i8254", 0): PIT.save(pit),
            ("pckbd", 0): PCKBD.save(pckbd),
        },
    )
    stream = tmp_path / "stream"
    stream.write_bytes(pc.stream(blob))
    qemu = machine(*PC, "-incoming", f"exec:cat '{stream}'")
    qemu.settle(lambda: qemu.qmp("query-status")["status"] != "inmigrate")
    assert qemu.qmp("query-migrate")["status"] == "completed"
    assert "imr=5a" in qemu.hmp("info pic").replace(" ", "")
    again = capture(qemu.migrate(tmp_path / "again"))
    assert loaded(PIC, again) == pic
    assert loaded(RTC, again).cmos_data[0x40:0x44] == b"colo"
    assert loaded(PIT, again).channels[2].latched_count == 0x1234
    assert loaded(PCKBD, again).kbd.obdata == 0x77


def test_qemu_refuses_where_we_refuse(machine: Callable[..., Machine], pc: Captured, tmp_path: Path) -> None:
    """A subsection nobody knows: the same stream is an error there and here."""
    unknown = b"\x05\x0ai8259/what" + struct.pack(">I", 1)
    blob = rebuilt(pc, {("i8259", 0): body(pc, "i8259") + unknown})
    stream = tmp_path / "stream"
    stream.write_bytes(pc.stream(blob))
    qemu = machine(*PC, "-incoming", "defer")
    with contextlib.suppress(OSError, json.JSONDecodeError):  # it may be gone before it has answered
        qemu.qmp("migrate-incoming", uri=f"exec:cat '{stream}'")
    assert qemu.process.wait(30) != 0
    assert "i8259" in qemu.process.stderr.read()  # type: ignore[union-attr]
    with pytest.raises(StreamError, match=r"unknown subsection 'i8259/what' \(known here: none\)"):
        PIC.load(Pic(), body(pc, "i8259") + unknown)


def test_a_registry_of_all_declared_devices_takes_qemus_state_and_gives_it_back(pc: Captured) -> None:
    by_name = {d.name: d for d in ALL}
    wanted = [s for s in pc.sections if s.idstr in by_name]
    blob = b"".join(
        pack_section_head(s.idstr, s.instance_id, s.version, n) + bytes(s.body) + pack_section_footer(n)
        for n, s in enumerate(wanted)
    )
    blob += b"\0"
    registry = Registry()
    for section in wanted:
        description = by_name[section.idstr]
        assert description.factory is not None
        registry.register(description, description.factory())
    vmdesc = {"devices": [d for d in pc.vmdesc["devices"] if d["name"] in by_name]}
    assert len(registry.load(blob, vmdesc)) == len(wanted)
    assert registry.save() == blob
    saved, told = registry.save_described()
    assert saved == blob
    assert told["devices"] == vmdesc["devices"]
