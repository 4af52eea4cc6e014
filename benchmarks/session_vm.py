"""The parts of a protected VM for benchmarks: a primary with a qtest socket, our secondary as its own process, QEMU's own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from colo.qemu.capabilities import capability_list
from colo.qemu.guest import GuestParams, make_guest_rom
from colo.qemu.pauses import PauseMeter
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import QemuProcess

WAIT_S = 60.0
GUEST_PAGES = 50


def make_rom(folder: Path) -> Path:
    """The tiny guest as firmware; it dirties fewer than 100 pages however long one waits."""
    rom = folder / "guest.rom"
    make_guest_rom(rom, GuestParams(pages=GUEST_PAGES, ticks_hz=100, steps_per_tick=5))
    return rom


def command_line(qemu: str, memory_mib: int, rom: Path) -> list[str]:
    """The VM of all session benchmarks."""
    return [
        qemu, "-nodefaults", "-machine", "pc", "-accel", "kvm", "-m", str(memory_mib), "-display", "none",
        "-bios", str(rom),
    ]


class Memset:
    """Dirties guest memory through QEMU's qtest socket, which works beside KVM."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(WAIT_S)
        self._socket.connect(os.fspath(path))
        self._answers = self._socket.makefile("rb")

    def __call__(self, address: int, size_bytes: int, fill: int) -> None:
        self._socket.sendall(f"memset {address:#x} {size_bytes:#x} {fill:#x}\n".encode())
        answer = self._answers.readline()
        if not answer.startswith(b"OK"):
            raise RuntimeError(f"qtest answered {answer!r}")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class PrimaryVm:
    """A QEMU primary; :attr:`pauses` gets each pause in milliseconds as its VM runs on."""

    def __init__(self, qemu: str, memory_mib: int, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        qtest = folder / "qtest.sock"
        self.line = command_line(qemu, memory_mib, make_rom(folder))
        self.process = QemuProcess.start(
            [*self.line, "-qtest", f"unix:{qtest},server=on,wait=off", "-qtest-log", "/dev/null"], folder / "primary")
        self.memset = Memset(qtest)
        self.colo = QemuPrimary(self.process)
        self.pauses: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.meter: PauseMeter | None = None

    def protect(self, uri: str, delay_ms: int) -> None:
        """Become the primary of the secondary at ``uri``."""
        self.meter = self.colo.measure_pauses(self.pauses.put)
        self.colo.set_up(uri, ColoSettings(checkpoint_delay_ms=delay_ms))

    def next_pause_ms(self) -> float:
        return self.pauses.get(timeout=WAIT_S)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.memset.close()
        self.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class ColoSecondary:
    """``colo secondary`` in a process of its own, and what it reports."""

    def __init__(
        self, ram_dir: Path, *, standby: Sequence[str] = (), arbiter: str = "", options: Sequence[str] = ()
    ) -> None:
        command = [sys.executable, "-m", "colo", "secondary", "tcp:127.0.0.1:0", "--ram-dir", str(ram_dir), "--json"]
        if standby:
            command += ["--standby", shlex.join(standby), "--arbiter", arbiter]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.checkpoints: list[dict[str, Any]] = []
        self.said: list[str] = []
        self._events: dict[str, queue.SimpleQueue[Any]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.uri: str = self.wait("listening")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.startswith('{"event"'):
                self.said.append(line.rstrip())
                continue
            event = json.loads(line)
            if event["event"] == "checkpoint":
                self.checkpoints.append(event["data"])
            else:
                if event["event"] == "notice":
                    self.said.append(event["data"])
                self._queue(event["event"]).put(event["data"])
        for name in ("listening", "running"):
            self._queue(name).put(None)

    def _queue(self, name: str) -> queue.SimpleQueue[Any]:
        with self._lock:
            return self._events.setdefault(name, queue.SimpleQueue())

    def wait(self, name: str) -> Any:
        """The data of the next event called ``name``. Raises RuntimeError if the process ended before."""
        data = self._queue(name).get(timeout=WAIT_S)
        if data is None:
            raise RuntimeError(f"colo secondary ended: {'; '.join(self.said[-5:])}")
        return data

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def qemu_secondary(line: Sequence[str], folder: Path) -> Iterator[str]:
    """QEMU's own secondary for a primary of this command line; gives the address it listens on."""
    with contextlib.ExitStack() as stack:
        process = QemuProcess.start([*line, "-incoming", "defer"], folder / "secondary")
        stack.callback(process.kill)
        process.qmp.execute("migrate-set-capabilities", {"capabilities": capability_list({"x-colo": True})})
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process.qmp.execute("migrate-incoming", {"uri": f"tcp:127.0.0.1:{port}"})
        yield f"tcp:127.0.0.1:{port}"


def wait_until(condition: Any, what: str, timeout_s: float = WAIT_S) -> None:
    """Raises TimeoutError naming ``what`` if ``condition()`` is not true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.002)
