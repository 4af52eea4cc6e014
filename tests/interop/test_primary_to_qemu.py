"""Our primary leads an unmodified QEMU as its secondary.

The VM is one that a QEMU primary runs: its committed checkpoints are followed into an image, and our own primary session
takes that image for its VM, at each commit. So a real machine's device state and dirty pages go through our stream.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.abc import GuestBlock
from colo.epoch.last_committed import LastCommitted
from colo.epoch.ram_sink import RamSink
from colo.errors import ColoError
from colo.link.follower import Follower
from colo.memory import RamImage
from colo.memory.trackers import open_tracker
from colo.protocol import Dialect, Mode
from colo.protocol.deadlines import Deadlines
from colo.qemu.guest import GuestParams, check_guest_memory, make_guest_rom
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import QemuProcess
from colo.session.primary import Primary, PrimaryConfig
from colo.stream import StreamLimits
from colo.transport import SocketTransport
from tests.interop.binaries import binary

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm cannot be opened"),
]
CHECKPOINTS = 100
MEMORY_MIB = 32
PAGE = 4096
DISTURBED_AT, DISTURBED_PAGES = 24 << 20, 300
WRITTEN_AT, WRITTEN_PAGES = 26 << 20, 1000
"""Of the guest's RAM, what it does not use itself."""
INVERTED = bytes(255 - n for n in range(256))
DIALECTS = {
    "7.2": Dialect(enable_colo=True),
    "10.0": Dialect(enable_colo=True, switchover_start=True),
    "11.1": Dialect(return_path=True, switchover_start=True),
}


class RelayedVm:
    """What has been committed of another primary's VM. It stands still while it is looked at, by construction.

    It seems to run nevertheless: what is copied ahead of a pause differs from what the pause finds (:meth:`disturb`).
    """

    def __init__(self, committed: Any) -> None:
        self.state = committed.device_state
        self.memory = Blocks(tuple(GuestBlock(b.idstr, b.memory_buffer) for b in committed.blocks))
        self.ram = next(block.buffer for block in self.memory.blocks if block.idstr == "pc.ram")
        self.disturbed = False
        self.written = 0

    def disturb(self) -> None:
        """Until the next pause, some pages have other contents: of a byte, and of all bytes. Others are written once."""
        self.disturbed = not self.disturbed
        if self.disturbed:
            self.written = self.written % 255 + 1
            for page in range(WRITTEN_PAGES):
                self.ram[WRITTEN_AT + page * PAGE] = self.written
        for page in range(DISTURBED_PAGES):
            at = DISTURBED_AT + page * PAGE
            end = at + (PAGE if page % 2 else 1)
            self.ram[at:end] = bytes(self.ram[at:end]).translate(INVERTED)

    def pause(self) -> None:
        if self.disturbed:
            self.disturb()

    def resume(self) -> None: ...

    def save_state(self) -> bytes:
        return self.state

    def load_state(self, state: memoryview) -> None:
        raise NotImplementedError


class Blocks:
    def __init__(self, blocks: tuple[GuestBlock, ...]) -> None:
        self.blocks = blocks


class Relay:
    """Follows one QEMU and, inside each commit, leads the other by one checkpoint."""

    def __init__(self, to: str, options: dict[str, Any]) -> None:
        self.to = to
        self.options = options
        self.primary: Primary | None = None
        self.vm: RelayedVm | None = None
        self.follower: Follower | None = None
        self.ram: RamSink
        self.relayed = 0
        self.copied_twice = 0
        self.counters: list[int] = []
        self.error: BaseException | None = None
        self.done = threading.Event()

    def follow(self, listener: socket.socket, image: RamImage) -> None:
        sock, _ = listener.accept()
        self.ram = RamSink(image)
        self.follower = Follower(
            SocketTransport(sock), self.ram, LastCommitted(self.ram, [self.ram]), deadlines=Deadlines(idle_s=30), limits=StreamLimits(),
            on_commit=lambda committed, report: self.commit(committed))
        try:
            self.follower.run()
        except BaseException as error:
            self.error = self.error or error
        finally:
            self.follower.close()
            self.ram.close()
            self.done.set()

    def commit(self, committed: Any) -> None:
        if self.relayed >= CHECKPOINTS:
            self.done.set()
            return
        assert self.follower is not None
        self.ram.settle()
        if self.primary is None:
            self.vm = RelayedVm(committed)
            self.primary = Primary(self.vm, PrimaryConfig(
                self.to, "none", interval_ms=3_600_000, mode=Mode.STRICT, sections=True,
                machine=committed.configuration.machine, connect_s=20,
                # Its memory is files, which others could map and write: nobody but this process does.
                tracker=open_tracker("pagemap", self.vm.memory.blocks, sole_writer=True), **self.options,
            ))
            self.primary.start()
        assert self.vm is not None
        self.vm.state = committed.device_state
        if self.relayed:  # from then on there is a checkpoint to differ from
            self.vm.disturb()
        report = self.primary.checkpoint(30)
        if self.options["sending"] == "copy" and self.relayed:
            self.copied_twice += report.ahead_pages + report.paused_pages - report.dirty_pages
        memory = next(b.memory_buffer for b in committed.blocks if b.idstr == "pc.ram")
        self.counters.append(check_guest_memory(memory).counter if self.relayed else 0)
        self.relayed += 1


@pytest.fixture
def work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="colo-relay-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("options", [{"sending": "direct"}, {"sending": "copy"}, {"sending": "copy", "xbzrle": 16 << 20}],
                         ids=["direct", "copy", "copy-xbzrle"])
@pytest.mark.parametrize("version", DIALECTS)
def test_qemu_takes_a_hundred_checkpoints_and_takes_over(work: Path, version: str, options: dict[str, Any]) -> None:
    qemu = binary(version)
    params = GuestParams(pages=1000, ticks_hz=100, steps_per_tick=10)
    make_guest_rom(work / "guest.rom", params)
    line = [
        qemu, "-nodefaults", "-machine", "pc", "-accel", "kvm", "-m", str(MEMORY_MIB), "-display", "none",
        "-bios", str(work / "guest.rom"), "-serial",
    ]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    to = f"tcp:127.0.0.1:{port}"
    second = QemuProcess.start([*line, f"file:{work}/second.log", "-incoming", "defer"], work / "second")
    first = QemuProcess.start(
        [*line, f"file:{work}/first.log", "-qmp", f"unix:{work}/first.sock,server=on,wait=off"], work / "first")
    try:
        dialect = DIALECTS[version]
        capabilities = [{"capability": "x-colo", "state": True}]
        if dialect.return_path:
            capabilities.append({"capability": "return-path", "state": True})
        if "xbzrle" in options:
            capabilities.append({"capability": "xbzrle", "state": True})
        second.qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
        second.qmp.execute("migrate-incoming", {"uri": to})
        relay = Relay(to, {**options, "dialect": dialect})
        with socket.create_server(("127.0.0.1", 0)) as listener, RamImage(work / "image") as image:
            following = threading.Thread(target=relay.follow, args=(listener, image), daemon=True)
            following.start()
            with QemuPrimary.attach(work / "first.sock") as leading:
                leading.set_up(f"tcp:127.0.0.1:{listener.getsockname()[1]}", ColoSettings(checkpoint_delay_ms=20))
                assert relay.done.wait(120)
                assert relay.relayed >= CHECKPOINTS, relay.error
            assert relay.primary is not None and relay.vm is not None
            assert relay.copied_twice > 0 or options["sending"] == "direct"
            first.kill()
            following.join(30)
            relay.primary.close()
            second.qmp.execute("x-colo-lost-heartbeat")
            deadline = time.monotonic() + 20
            while second.status() != "running" and time.monotonic() < deadline:
                time.sleep(0.05)
            assert second.status() == "running"
            time.sleep(0.3)
            second.qmp.execute("stop")
            dump = work / "ram"
            second.qmp.execute("pmemsave", {"val": 0, "size": MEMORY_MIB << 20, "filename": str(dump)})
            # The guest has run on; every page still is of one instant, at or after the last checkpoint's.
            memory = dump.read_bytes()
            state = check_guest_memory(memory, params)
            assert state.counter >= relay.counters[-1] > relay.counters[1]
            assert not any(memory[DISTURBED_AT : DISTURBED_AT + DISTURBED_PAGES * PAGE])
            assert set(memory[WRITTEN_AT : WRITTEN_AT + WRITTEN_PAGES * PAGE : PAGE]) == {relay.vm.written}
    finally:
        for qemu in (first, second):
            with contextlib.suppress(ColoError):
                qemu.kill()
