"""What tests with a real QEMU share: the guest's parameters, and waiting for what it prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from colo.qemu.guest import GuestParams, serial_counters

GUEST = GuestParams(pages=300, words=4, steps_per_tick=5)
RAM_MIB = 32

Machine = Callable[..., list[str]]


def wait_for_lines(serial: Path, more_than: int, timeout_s: float = 20.0) -> list[int]:
    """The counters the guest printed, once there are more than ``more_than``."""
    deadline = time.monotonic() + timeout_s
    while True:
        counters = serial_counters(serial.read_bytes()) if serial.exists() else []
        if len(counters) > more_than:
            return counters
        assert time.monotonic() < deadline, f"the guest printed only {len(counters)} lines"
        time.sleep(0.02)
