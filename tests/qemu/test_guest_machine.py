"""The guest in real machines: it boots from ROM and from disk, and stands at an exact instant whenever
stopped.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from colo.qemu.guest import (
    GuestParams,
    TornState,
    check_guest_memory,
    make_guest_image,
    make_guest_rom,
    serial_counters,
)
from colo.qemu.process import QemuProcess
from tests.qemu.tiny_machine import wait_for_lines

pytestmark = pytest.mark.qemu

PARAMS = GuestParams(pages=200, words=7, stride_pages=3, steps_per_tick=9)


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("medium", ["rom", "disk"])
def test_boots_and_is_exact_at_every_stop(qemu_binary: str, run_dir: Path, machine: str, medium: str) -> None:
    ram, serial = run_dir / "ram", run_dir / "serial"
    if medium == "rom":
        make_guest_rom(run_dir / "rom", PARAMS)
        boot = ["-bios", str(run_dir / "rom")]
    else:
        make_guest_image(run_dir / "disk", PARAMS)
        boot = ["-drive", f"if=virtio,readonly=on,format=raw,file={run_dir}/disk"]
    argv = [qemu_binary, "-nodefaults", "-display", "none", "-machine", f"{machine},memory-backend=pc.ram"]
    argv += ["-object", f"memory-backend-file,id=pc.ram,share=on,size=32M,mem-path={ram}", "-m", "32"]
    with QemuProcess.start([*argv, *boot, "-serial", f"file:{serial}"], run_dir / "q") as qemu:
        wait_for_lines(serial, 1, timeout_s=30)
        counters = []
        for _ in range(5):
            qemu.qmp.execute("stop")
            counters.append(check_guest_memory(ram, PARAMS).counter)
            qemu.qmp.execute("cont")
            time.sleep(0.05)
        assert counters == sorted(counters)
        assert counters[-1] > counters[0]
        assert serial_counters(serial.read_bytes())[-1] <= check_after_stop(qemu, ram)


def check_after_stop(qemu: QemuProcess, ram: Path) -> int:
    qemu.qmp.execute("stop")
    return check_guest_memory(ram, PARAMS).counter


@pytest.mark.parametrize("damage", ["a walked page", "the counter"])
def test_cries_out_when_its_memory_is_from_another_instant(
    qemu_binary: str, run_dir: Path, damage: str
) -> None:
    ram, serial = run_dir / "ram", run_dir / "serial"
    make_guest_rom(run_dir / "rom", PARAMS)
    argv = [
        qemu_binary,
        "-nodefaults",
        "-display",
        "none",
        "-machine",
        "pc,memory-backend=pc.ram",
        "-m",
        "32",
    ]
    argv += ["-object", f"memory-backend-file,id=pc.ram,share=on,size=32M,mem-path={ram}"]
    argv += ["-bios", str(run_dir / "rom"), "-serial", f"file:{serial}"]
    with QemuProcess.start(argv, run_dir / "q") as qemu:
        wait_for_lines(serial, 3)
        qemu.qmp.execute("stop")
        state = check_guest_memory(ram, PARAMS)
        page = (state.counter + 5) % PARAMS.pages
        at = (PARAMS.first_page + page * PARAMS.stride_pages) * 4096 if damage == "a walked page" else 0x1000
        fd = os.open(ram, os.O_RDWR)
        old = os.pread(fd, 1, at)[0]
        os.pwrite(fd, bytes([old ^ 1]), at)
        os.close(fd)
        qemu.qmp.execute("cont")
        deadline = time.monotonic() + 10
        while b"TORN" not in serial.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.05)
        with pytest.raises(TornState, match="stopped"):
            serial_counters(serial.read_bytes())
        with pytest.raises(TornState, match=r"itself|step"):
            check_guest_memory(ram, PARAMS)
