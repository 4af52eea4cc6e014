"""The stand-by takes a real QEMU's state over, or says why not."""

from __future__ import annotations

import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.errors import StandbyError
from colo.qemu.capabilities import capability_list
from colo.qemu.command_line import StandbyCommand
from colo.qemu.guest import check_guest_memory
from colo.qemu.process import Qemu, QemuProcess
from colo.qemu.ram_blocks import parse_ramblocks, region_offset
from colo.qemu.standby import Standby
from tests.qemu.tiny_machine import GUEST, Machine, saved, saving_to, wait_for_lines

pytestmark = pytest.mark.qemu


def saved_stream(machine: Machine, run_dir: Path, ram: Path | None) -> tuple[bytes, str, int]:
    """Run the guest, save it as QEMU itself does, and end it: (stream, machine type, the guest's counter
    then).
    """
    ram_path = ram or run_dir / "all.ram"
    with QemuProcess.start(machine(ram=ram, serial=run_dir / "source.serial"), run_dir / "source") as source:
        wait_for_lines(run_dir / "source.serial", 3)
        capabilities = {"events": True, "x-ignore-shared": ram is not None}
        source.qmp.execute("migrate-set-capabilities", {"capabilities": capability_list(capabilities)})
        source.qmp.execute("stop")
        if ram is None:
            source.qmp.execute("pmemsave", {"val": 0, "size": GUEST.end_bytes, "filename": str(ram_path)})
        counter = check_guest_memory(ram_path, GUEST).counter
        with source.qmp.subscribe("MIGRATION") as events:
            source.qmp.execute("cont")
            source.qmp.execute("migrate", {"uri": saving_to(run_dir / "stream")})
            while (event := events.get(10.0)).data["status"] != "completed":
                assert event.data["status"] != "failed"
        return saved(run_dir / "stream"), source.machine_type, counter


@pytest.fixture
def ram(run_dir: Path) -> Path:
    return run_dir / "ram"


@pytest.fixture
def standby(machine: Machine, run_dir: Path, ram: Path) -> Iterator[Standby]:
    with Standby(shared(machine(ram=ram, serial=run_dir / "serial"), ram), run_dir / "sb").start() as waiting:
        yield waiting


def shared(argv: list[str], ram: Path) -> StandbyCommand:
    return StandbyCommand(tuple(argv), {"pc.ram": ram})


def feed(standby: Standby, stream: bytes) -> None:
    with standby.connect() as channel:
        channel.sendall(stream)
        channel.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("options", [(), ("-S",)], ids=["runs by itself", "started with -S"])
def test_takes_over_on_the_shared_ram_file(
    machine: Machine, run_dir: Path, ram: Path, options: tuple[str, ...]
) -> None:
    stream, machine_type, counter = saved_stream(machine, run_dir, ram)
    argv = machine(*options, ram=ram, serial=run_dir / "serial")
    with Standby(shared(argv, ram), run_dir / "sb").start() as standby:
        blocks = [(block.idstr, block.used_bytes) for block in standby.ram_blocks()]
        assert ("pc.ram", 32 << 20) in blocks
        standby.check(machine_type, blocks)
        standby.prepare()
        assert standby.shared_blocks == ("pc.ram",)
        assert standby.block_addresses == {"pc.ram": 0}
        assert stat.S_IMODE(standby.incoming_path.stat().st_mode) & 0o077 == 0
        feed(standby, stream)
        report = standby.finish(10.0)
        assert 0 < report.loaded_ms <= report.total_ms
        assert report.loaded_ms + report.running_ms == pytest.approx(report.total_ms)
        path, pid = standby.hand_over()
        assert pid == standby.process.pid
        standby.close()
        with Qemu.attach(path) as user:
            try:
                assert user.status() == "running"
                assert wait_for_lines(run_dir / "serial", 3)[0] >= counter
                user.qmp.execute("stop")
                assert check_guest_memory(ram, GUEST).counter > counter
            finally:
                user.qmp.execute("quit")
        assert standby.process.wait(5.0) == 0
    assert [path.name for path in (run_dir / "sb").iterdir()] == []


def test_takes_over_by_all_pages(machine: Machine, run_dir: Path) -> None:
    stream, machine_type, counter = saved_stream(machine, run_dir, None)
    with Standby(machine(serial=run_dir / "serial"), run_dir / "sb").start() as standby:
        standby.check(machine_type, [(block.idstr, block.used_bytes) for block in standby.ram_blocks()])
        standby.prepare()
        assert standby.shared_blocks == ()
        feed(standby, stream)
        standby.finish(10.0)
        assert wait_for_lines(run_dir / "serial", 3)[0] >= counter


def test_everything_that_differs_is_said_beforehand(standby: Standby, run_dir: Path, ram: Path) -> None:
    blocks = [(block.idstr, block.used_bytes) for block in standby.ram_blocks()]
    ours = standby.process.machine_type
    standby.check(ours, blocks)
    grown = [(name, size + 4096 if name == "/rom@etc/acpi/tables" else size) for name, size in blocks]
    standby.check(ours, grown)
    with pytest.raises(StandbyError, match=f"machine is {ours}, the primary's is pc-i440fx-2.0"):
        standby.check("pc-i440fx-2.0", blocks)
    with pytest.raises(StandbyError, match=r"'pc.ram' has 33554432 bytes, the primary's 67108864"):
        standby.check(ours, [(name, 64 << 20 if name == "pc.ram" else size) for name, size in blocks])
    with pytest.raises(StandbyError, match=r"no RAM block 'vga.vram'"):
        standby.check(ours, [*blocks, ("vga.vram", 16 << 20)])
    with pytest.raises(StandbyError, match=r"the primary has not: pc\.bios"):
        standby.check(ours, [block for block in blocks if block[0] != "pc.bios"])
    other = run_dir / "other"
    other.write_bytes(bytes(4096))
    standby.command = StandbyCommand((), {"pc.ram": other})
    with pytest.raises(StandbyError, match=r"does not map .*other: give it -object memory-backend-file"):
        standby.check(ours, blocks)
    standby.command = StandbyCommand((), {"pc.rom": ram})
    with pytest.raises(StandbyError, match=r"RAM block pc\.rom is not in a file"):
        standby.check(ours, blocks)


def test_private_memory_is_refused_as_shared(machine: Machine, run_dir: Path, ram: Path) -> None:
    argv = [argument.replace("share=on", "share=off") for argument in machine(ram=ram)]
    with (
        Standby(shared(argv, ram), run_dir / "sb").start() as standby,
        pytest.raises(StandbyError, match="not shared"),
    ):
        standby.check(standby.process.machine_type, [])


def test_a_stream_it_refuses_is_an_error_in_its_own_words(standby: Standby) -> None:
    standby.prepare()
    feed(standby, b"QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x04isapc"[:20])
    with pytest.raises(StandbyError, match=r"(exit code 1|refused).*it said"):
        standby.finish(10.0)


def test_a_stream_cut_short_is_an_error(machine: Machine, run_dir: Path, ram: Path) -> None:
    stream, _machine_type, _counter = saved_stream(machine, run_dir, ram)
    with Standby(shared(machine(ram=ram), ram), run_dir / "sb").start() as standby:
        standby.prepare()
        feed(standby, stream[: len(stream) // 2])
        with pytest.raises(StandbyError, match="it said"):
            standby.finish(10.0)


def test_a_silent_or_dead_standby_is_an_error_within_the_deadline(standby: Standby) -> None:
    with pytest.raises(StandbyError, match="not prepared"):
        standby.connect()
    standby.prepare()
    # Killed before the connection is closed: a QEMU that reads its end exits by itself, and may be first.
    with standby.connect():
        with pytest.raises(StandbyError, match=r"not running 0.2 s after"):
            standby.finish(0.2)
        standby.process.send_signal(signal.SIGKILL)
        assert standby.process.wait(5.0) is not None
    assert not standby.alive
    with pytest.raises(StandbyError, match="SIGKILL"):
        standby.connect()


def test_closing_leaves_no_process_and_no_socket(machine: Machine, run_dir: Path, ram: Path) -> None:
    standby = Standby(machine(ram=ram), run_dir / "sb").start()
    standby.prepare()
    assert len(list((run_dir / "sb").iterdir())) == 2
    standby.close()
    standby.close()
    assert not standby.alive
    assert list((run_dir / "sb").iterdir()) == []


def test_what_does_not_wait_for_a_stream_is_refused(machine: Machine, run_dir: Path) -> None:
    with pytest.raises(StandbyError, match="-incoming defer"):
        Standby(machine("-incoming", "tcp:0:4444"), run_dir / "sb").start()
    with pytest.raises(StandbyError, match="no-such-option"):
        Standby(machine("-no-such-option"), run_dir / "sb").start()


def test_ramblocks_of_old_and_new_qemu_are_read() -> None:
    text = """  Block Name    PSize    Offset    Used    Total    HVA  RO
      pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 0x00007f5be3e00000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000020080000 0x0000000000020000 0x0000000000200000 0x7f5be3a00000
0000:00:02.0/vga.vram    2 MiB  0x0000000020000000 0x0000000001000000 0x0000000001000000
"""
    blocks = parse_ramblocks(text)
    assert [(block.idstr, block.used_bytes, block.total_bytes) for block in blocks] == [
        ("pc.ram", 0x20000000, 0x20000000),
        ("/rom@etc/acpi/tables", 0x20000, 0x200000),
        ("0000:00:02.0/vga.vram", 0x1000000, 0x1000000),
    ]


def test_a_region_s_offset_is_from_its_container() -> None:
    tree = """address-space: memory
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    0000000000000000-000000001fffffff (prio 0, ram): alias low @pc.ram 0
    0000000140000000-000000103fffffff (prio 0, i/o): device-memory
      0000000160000000-000000017fffffff (prio 0, ram): dimm0

memory-region: pc.ram
  0000000000000000-000000001fffffff (prio 0, ram): pc.ram
"""
    assert region_offset(tree, "pc.ram") == 0
    assert region_offset(tree, "dimm0") == 0x20000000
    assert region_offset(tree, "nothing") is None
