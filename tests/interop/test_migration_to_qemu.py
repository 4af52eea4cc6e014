"""A real QEMU's VM migrates into a VM of ours, and from there, written to meanwhile, into another real QEMU."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.abc import BlockMemory, SteppedMachine
from colo.errors import ChannelError, ColoError
from colo.qemu.guest import check_guest_memory
from colo.qemu.process import QemuProcess
from colo.session.migration import (
    MigrationDestination,
    MigrationDestinationConfig,
    MigrationSource,
    MigrationSourceConfig,
    VmPlace,
)
from tests.interop.binaries import binary
from tests.interop.test_versions import Versioned
from tests.qemu.tiny_machine import GUEST, RAM_MIB, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]
SCRIBBLED = slice(24 << 20, 30 << 20)
"""Of pc.ram: the guest does not use it."""


class HeldVm(SteppedMachine):
    """Memory and device state of a ``pc`` that some QEMU had. While it "runs", it writes to memory that its guest leaves
    alone."""

    def __init__(self, blocks: dict[str, int]) -> None:
        super().__init__(BlockMemory.allocate(blocks))
        self.ram = self.memory["pc.ram"]
        self.state = b""
        self.turn = 0

    def step(self) -> None:
        self.turn += 1
        for n in range(20):
            at = SCRIBBLED.start + (self.turn * 20 + n) * 2654435761 % (SCRIBBLED.stop - SCRIBBLED.start - 8)
            self.ram[at : at + 8] = self.turn.to_bytes(8, "little")
        time.sleep(0.0005)

    def save_state(self) -> bytes:
        return self.state

    def load_state(self, state: memoryview) -> None:
        self.state = bytes(state)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_status(qemu: QemuProcess, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while (status := qemu.status()) != wanted:
        assert time.monotonic() < deadline, f"{status}, not {wanted}: {qemu.said()}"
        time.sleep(0.02)


class Rig:
    def __init__(self, version: str, work: Path) -> None:
        self.work = work
        self.command = Versioned(binary(version), work)
        self.started: list[QemuProcess] = []

    def start(self, name: str, *extra: str) -> QemuProcess:
        ram = self.work / f"{name}.ram"
        argv = self.command(
            "-machine", "memory-backend=pc.ram", "-object",
            f"memory-backend-file,id=pc.ram,share=on,size={RAM_MIB}M,mem-path={ram}", *extra,
            serial=self.work / f"{name}.serial")
        qemu = QemuProcess.start(argv, self.work / name)
        self.started.append(qemu)
        return qemu

    def held(self, *, return_path: bool = False, xbzrle: bool = False) -> tuple[HeldVm, str]:
        """A VM of ours that a real QEMU migrated into, and its machine type."""
        source = self.start("source")
        wait_for_lines(self.work / "source.serial", 1)
        blocks = {
            name: int(used, 16)
            for name, used in re.findall(r"^\s*(\S+)\s+4 KiB\s+0x\S+\s+(0x\S+)", source.qmp.hmp("info ramblock"), re.M)}
        vm = HeldVm(blocks)
        for view in (block.view() for block in vm.memory.blocks):
            view[:] = b"\xa5" * len(view)
        with MigrationDestination(vm, MigrationDestinationConfig("tcp:127.0.0.1:0", resume=False)) as destination:
            arrived: list[Any] = []
            thread = threading.Thread(target=lambda: arrived.append(destination.run()), daemon=True)
            thread.start()
            if return_path or xbzrle:
                source.qmp.execute("migrate-set-capabilities", {"capabilities": [
                    {"capability": name, "state": True}
                    for name, wanted in (("return-path", return_path), ("xbzrle", xbzrle)) if wanted]})
            source.qmp.execute("migrate", {"uri": destination.address})
            thread.join(20)
            assert arrived, destination.status()
            assert arrived[0].confirmed == return_path
            assert destination.status()["status"] == "completed"
        wait_for_status(source, "postmigrate")
        assert bytes(vm.ram) == (self.work / "source.ram").read_bytes()
        check_guest_memory(bytes(vm.ram), GUEST)
        source.kill()
        return vm, arrived[0].machine

    def incoming(self, *extra: str) -> tuple[QemuProcess, str]:
        qemu = self.start("target", "-incoming", "defer", *extra)
        to = f"tcp:127.0.0.1:{free_port()}"
        qemu.qmp.execute("migrate-incoming", {"uri": to})
        return qemu, to

    def close(self) -> None:
        for qemu in self.started:
            with contextlib.suppress(ColoError):
                qemu.kill()


@pytest.fixture
def rig(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Rig]:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    each = Rig(getattr(request, "param", "7.2"), run_dir)
    yield each
    each.close()


PLAIN: dict[str, Any] = {}
CASES = [
    *((version, return_path, PLAIN) for version in ("7.2", "10.0", "11.1") for return_path in (True, False)),
    ("7.2", True, {"xbzrle": "shadow"}), ("11.1", True, {"xbzrle": 16 << 20, "tracker": "shadow"}),
]


@pytest.mark.parametrize(("rig", "return_path", "options"), CASES, indirect=["rig"])
def test_a_vm_goes_from_qemu_to_us_to_qemu(rig: Rig, return_path: bool, options: dict[str, Any]) -> None:
    vm, machine = rig.held(return_path=return_path, xbzrle="xbzrle" in options)
    target, to = rig.incoming("-S")
    vm.resume()
    # Some rounds: the link is just faster than the VM writes.
    settings = MigrationSourceConfig(
        to, machine=machine, sections=True, return_path=return_path, downtime_limit_ms=40,
        max_bandwidth_bytes_per_s=120 << 20, **options)
    with MigrationSource(vm, settings) as migration:
        outcome = migration.run()
        assert outcome.vm is VmPlace.THERE
        assert not vm.running
        status = migration.status()
    assert status["status"] == "completed"
    assert status["ram"]["dirty-sync-count"] >= 2
    assert vm.turn > 0
    if options.get("xbzrle") == "shadow":
        assert status["xbzrle-cache"]["pages"] > 100
    wait_for_status(target, "paused")
    assert target.qmp.execute("query-migrate")["status"] == "completed"
    assert (rig.work / "target.ram").read_bytes() == bytes(vm.ram)
    before = check_guest_memory(bytes(vm.ram), GUEST).counter
    target.qmp.execute("cont")
    wait_for_status(target, "running")
    time.sleep(0.3)
    target.qmp.execute("stop")
    assert check_guest_memory((rig.work / "target.ram").read_bytes(), GUEST).counter > before
    vm.close()


@pytest.mark.parametrize("rig", ["7.2", "11.1"], indirect=True)
def test_qemu_runs_the_vm_as_soon_as_it_has_it(rig: Rig) -> None:
    vm, machine = rig.held()
    target, to = rig.incoming()
    vm.resume()
    with MigrationSource(vm, MigrationSourceConfig(to, machine=machine, pause_before_switchover=True)) as migration:
        migration.start()
        deadline = time.monotonic() + 20
        while migration.status()["status"] != "pre-switchover":
            assert time.monotonic() < deadline, migration.status()
            time.sleep(0.01)
        assert not vm.running
        assert target.status() == "inmigrate"
        time.sleep(1.2)  # QEMU takes what keeps the connection alive
        migration.continue_()
        assert migration.wait(20).vm is VmPlace.THERE
    wait_for_status(target, "running")
    vm.close()


@pytest.mark.parametrize("return_path", [True, False])
@pytest.mark.parametrize("rig", ["7.2", "11.1"], indirect=True)
def test_a_qemu_that_refuses_the_devices_leaves_the_vm_here(rig: Rig, return_path: bool) -> None:
    vm, machine = rig.held()
    target, to = rig.incoming()
    at = vm.state.index(b"i8254")
    vm.state = vm.state[:at] + b"i8255" + vm.state[at + 5 :]
    vm.resume()
    with MigrationSource(vm, MigrationSourceConfig(to, machine=machine, return_path=return_path)) as migration:
        migration.start()
        if return_path:
            # Noticed before the end of the stream was handed out: there is no doubt about who runs.
            with pytest.raises(ChannelError):
                migration.wait(30)
            assert vm.running
            assert migration.status()["vm"] == "here"
        else:
            # Nobody tells: as far as this side knows the VM is there, or may be. It does not run here by itself.
            with contextlib.suppress(ColoError):
                migration.wait(30)
            assert target.wait(10) is not None
            assert vm.running == (migration.status()["vm"] == "here")
    vm.close()


def test_a_qemu_killed_in_a_round_leaves_the_vm_running_here(rig: Rig) -> None:
    vm, machine = rig.held()
    target, to = rig.incoming()
    vm.resume()
    with MigrationSource(vm, MigrationSourceConfig(to, machine=machine, max_bandwidth_bytes_per_s=4 << 20)) as migration:
        migration.start()
        while migration.status().get("ram", {}).get("transferred", 0) < 2 << 20:
            time.sleep(0.01)
        target.kill()
        with pytest.raises(ChannelError):
            migration.wait(20)
        assert vm.running
        turn = vm.turn
        time.sleep(0.1)
        assert vm.turn > turn
        assert migration.status()["status"] == "failed"
    vm.close()
