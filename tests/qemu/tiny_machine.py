"""What tests with a real QEMU share: the guest's parameters, and waiting for what it prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from colo.qemu.guest import GuestParams, serial_counters

GUEST = GuestParams(pages=300, words=4, steps_per_tick=5)
RAM_MIB = 32

Machine = Callable[..., list[str]]


def saving_to(path: Path) -> str:
    """A migration's URI: the stream comes to ``path``, which is there when all of it is (QEMU says that it has completed
    before the command that it writes to has)."""
    return f"exec:cat >{path}.part && mv {path}.part {path}"


def saved(path: Path, timeout_s: float = 20.0) -> bytes:
    """What came there."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.005)
    return path.read_bytes()


def wait_for_lines(serial: Path, more_than: int, timeout_s: float = 20.0) -> list[int]:
    """The counters the guest printed, once there are more than ``more_than``."""
    deadline = time.monotonic() + timeout_s
    while True:
        counters = serial_counters(serial.read_bytes()) if serial.exists() else []
        if len(counters) > more_than:
            return counters
        assert time.monotonic() < deadline, f"the guest printed only {len(counters)} lines"
        time.sleep(0.02)
