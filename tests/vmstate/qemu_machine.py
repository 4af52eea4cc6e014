"""A real QEMU under QMP, and the device state it sends."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo.vmstate import Section, VmDesc, device_state_bytes, parse_vmdesc, split_sections

QEMU = "qemu-system-x86_64"
WAIT_S = 30.0


class Machine:
    """A paused QEMU under QMP."""

    def __init__(self, directory: Path, *args: str) -> None:
        path = directory / "qmp"
        self.process = subprocess.Popen(
            [QEMU, "-S", "-display", "none", "-qmp", f"unix:{path},server=on,wait=off", *args],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        for _ in range(200):
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if self.process.poll() is not None:
                    assert self.process.stderr is not None
                    raise AssertionError(self.process.stderr.read()) from None
                time.sleep(0.02)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, execute: str, **arguments: Any) -> Any:
        self.socket.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                raise AssertionError(answer)
            if "return" in answer:
                return answer["return"]

    def hmp(self, line: str) -> str:
        return str(self.qmp("human-monitor-command", **{"command-line": line}))

    def migrate(self, to: Path) -> bytes:
        self.qmp("migrate", uri=f"exec:cat > '{to}.part' && mv '{to}.part' '{to}'")
        self.settle(lambda: self.qmp("query-migrate").get("status") == "completed" and to.exists())
        return to.read_bytes()

    def settle(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < end
            time.sleep(0.01)

    def close(self) -> str:
        self.process.kill()
        self.socket.close()
        return self.process.communicate(timeout=WAIT_S)[1]


@dataclass
class Captured:
    """A migration stream: what precedes the device state, the state cut in sections, its vmdesc."""

    prefix: bytes
    blob: bytes
    vmdesc: VmDesc
    vmdesc_json: bytes

    @property
    def sections(self) -> tuple[Section, ...]:
        return split_sections(self.blob, self.vmdesc)

    def stream(self, blob: bytes) -> bytes:
        """The same migration with another device state, and no vmdesc."""
        return self.prefix + blob


def capture(stream: bytes) -> Captured:
    starts = (stream.rfind(opening) for opening in (b'{"page_size"', b'{"configuration"'))
    start = next(s for s in starts if s > 0 and stream[s - 4 : s] == struct.pack(">I", len(stream) - s))
    vmdesc = parse_vmdesc(stream[start:])
    end = start - 5
    begin = end - device_state_bytes(vmdesc)
    return Captured(stream[:begin], stream[begin:end], vmdesc, stream[start:])


PC = ("-M", "pc", "-accel", "tcg", "-nodefaults", "-m", "4")
