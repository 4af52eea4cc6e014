"""How long from the loss of the primary to the VM running in the stand-by, and does the size of RAM matter?

A VM with hundreds of MiB of data is checkpointed, then lost (its QEMU is killed: the channel is reset) or a takeover is
requested. From the reset or request being seen until QEMU reports that it runs, with what it is made of.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.session_vm import WAIT_S, ColoSecondary, PrimaryVm, wait_until
from colo.arbiter import init_arbiter
from colo.control.client import ask
from colo.control.server import SOCKET_NAME
from colo.errors import ColoError

MIB = 1 << 20
FILLED_MIB = 300
FILLED_FROM = 64 * MIB
PARTS = ("arbitration_ms", "settle_ms", "compose_ms", "load_ms", "running_ms")


def take_over(qemu: str, memory_mib: int, by_request: bool, folder: Path, ram_dir: Path) -> dict[str, Any]:
    """One takeover's report."""
    folder.mkdir(mode=0o700)
    arbiter = folder / "arbiter"
    arbiter.mkdir(mode=0o700)
    init_arbiter(f"file:{arbiter}", vm="bench")
    report: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        vm = stack.enter_context(PrimaryVm(qemu, memory_mib, folder / "vm"))
        secondary = stack.enter_context(
            ColoSecondary(ram_dir / folder.name, standby=vm.line, arbiter=f"file:{arbiter}"))
        control = ram_dir / folder.name / SOCKET_NAME
        vm.protect(secondary.uri, 100)
        vm.memset(FILLED_FROM, FILLED_MIB * MIB, 0xA5)
        seen = len(secondary.checkpoints)
        wait_until(lambda: ask(control, "status")["standby"] == "ready", "the stand-by")
        wait_until(lambda: len(secondary.checkpoints) > seen + 3, "checkpoints")
        if by_request:
            request = threading.Thread(target=_request, args=(control,))
            request.start()
            report = secondary.wait("running")
            request.join(WAIT_S)
        else:
            vm.kill()
            report = secondary.wait("running")
        os.kill(report["pid"], signal.SIGKILL)
    return report


def _request(control: Path) -> None:
    with contextlib.suppress(ColoError):  # the session may end before it has answered
        ask(control, "failover", timeout_s=WAIT_S)


def test_takeover(figure: Callable[..., Any], qemu: str, tmp_path: Path, ram_dir: Path, quick: bool) -> None:
    free_mib = os.statvfs(ram_dir).f_bavail * os.statvfs(ram_dir).f_frsize // MIB
    if free_mib < 4 * FILLED_MIB:
        pytest.skip(f"{free_mib} MiB free in {ram_dir}; {4 * FILLED_MIB} are needed")
    reports: dict[int, list[dict[str, Any]]] = {512: [], 4096: []}
    for round_ in range(2 if quick else 8):
        for memory_mib in (512, 4096) if round_ % 2 else (4096, 512):
            reports[memory_mib].append(
                take_over(qemu, memory_mib, round_ % 4 >= 2, tmp_path / f"{memory_mib}-{round_}", ram_dir))
    totals = {size: [r["total_ms"] for r in found] for size, found in reports.items()}
    for size, found in reports.items():
        parts = {name.removesuffix("_ms"): statistics.median(r[name] for r in found) for name in PARTS}
        figure(
            f"takeover of {size} MiB", statistics.median(totals[size]), "ms", parts=parts, samples=totals[size],
            **({"bar": 50} if size == 512 else {}),
        )
    figure(
        "takeover of 512 MiB, the slowest", max(totals[512]), "ms", bar=50)
    figure(
        "4096 MiB longer than 512 MiB by", statistics.median(totals[4096]) - statistics.median(totals[512]), "ms", bar=20)
