"""Real QEMUs with the tiny guest. A machine without QEMU or KVM skips these tests, unless
COLO_REQUIRE_QEMU is set.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.qemu.guest import make_guest_rom
from tests.qemu.tiny_machine import GUEST, RAM_MIB, Machine


def _absent(what: str) -> None:
    if os.environ.get("COLO_REQUIRE_QEMU"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def qemu_binary() -> str:
    path = shutil.which(os.environ.get("COLO_QEMU", "qemu-system-x86_64"))
    if path is None:
        _absent("no qemu-system-x86_64: apt-get install qemu-system-x86")
    assert path is not None
    return path


@pytest.fixture(scope="session")
def kvm() -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        _absent("no access to /dev/kvm")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A private directory with a short path (unix sockets), on tmpfs."""
    directory = Path(tempfile.mkdtemp(prefix="colo-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def machine(qemu_binary: str, run_dir: Path) -> Machine:
    """Makes command lines of a small ``pc`` with the guest as firmware; ``ram=PATH`` keeps its RAM in a
    shared file.
    """
    rom = run_dir / "guest.rom"
    make_guest_rom(rom, GUEST)

    def command(
        *extra: str,
        accel: str = "tcg",
        ram: Path | None = None,
        serial: Path | None = None,
        ram_mib: int = RAM_MIB,
    ) -> list[str]:
        backend = ",memory-backend=pc.ram" if ram else ""
        argv = [qemu_binary, "-nodefaults", "-display", "none", "-machine", f"pc{backend}", "-accel", accel]
        argv += ["-m", str(ram_mib), "-bios", str(rom)]
        if ram:
            argv += ["-object", f"memory-backend-file,id=pc.ram,share=on,size={ram_mib}M,mem-path={ram}"]
        if serial:
            argv += ["-serial", f"file:{serial}"]
        return [*argv, *extra]

    return command
