"""A real Linux, protected with the command line, its primary killed: the console goes on from the checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import init_arbiter
from tests.interop.linux_guest import APPEND, counters, linux_guest

pytestmark = [pytest.mark.soak, pytest.mark.qemu]

ROOT = Path(__file__).resolve().parents[2]
QEMU_DIR = Path(os.environ.get("COLO_QEMU_DIR", ROOT / ".qemu"))
BOOT_S = {"kvm": 120.0, "tcg": 300.0}


@pytest.fixture
def work() -> Iterator[Path]:
    """A private directory with a short path (unix sockets), on tmpfs."""
    directory = Path(tempfile.mkdtemp(prefix="colo-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory)


def qemu_for(accelerator: str) -> str:
    """A QEMU that can be a COLO primary with it: under TCG only 11 and later."""
    if accelerator == "kvm":
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            pytest.skip("no access to /dev/kvm")
        return shutil.which("qemu-system-x86_64") or pytest.fail("qemu-system-x86_64 is missing")
    binary = QEMU_DIR / "11.1" / "qemu-system-x86_64"
    if not binary.exists():
        subprocess.run([ROOT / "tests/interop/fetch-qemu", "11.1"], check=True, timeout=900)
    return str(binary)


def colo(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "colo", *arguments], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
        )


def wait(what: str, seconds: float, ready: Any, *processes: subprocess.Popen[bytes]) -> Any:
    end = time.monotonic() + seconds
    while not (found := ready()):
        ended = [process.args for process in processes if process.poll() is not None]
        if ended:
            raise AssertionError(f"waiting for {what}: {ended} ended")
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} within {seconds:g} s")
        time.sleep(0.1)
    return found


def events(log: Path) -> list[dict[str, Any]]:
    """What a command with --json has printed."""
    found = []
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def checkpoints(log: Path) -> list[dict[str, Any]]:
    return [event["data"] for event in events(log) if event["event"] == "checkpoint"]


def running(log: Path) -> list[dict[str, Any]]:
    """The takeovers that a secondary has reported."""
    return [event["data"] for event in events(log) if event["event"] == "running"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
def test_linux_goes_on_from_the_checkpoint_when_its_primary_is_killed(accelerator: str, work: Path) -> None:
    qemu = qemu_for(accelerator)
    kernel, initramfs = linux_guest()
    here, there = work / "primary.log", work / "standby.log"
    vm = [
        qemu, "-nodefaults", "-machine", "pc", "-accel", accelerator, "-m", "256", "-display", "none",
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", APPEND,
    ]
    arbiter = work / "arbiter"
    arbiter.mkdir(mode=0o700)
    init_arbiter(f"file:{arbiter}", vm="test")
    with contextlib.ExitStack() as stack:

        def started(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        errors = (work / "qemu.log").open("wb")
        stack.callback(errors.close)
        primary = started(
            subprocess.Popen(
                [*vm, "-serial", f"file:{here}", "-qmp", f"unix:{work}/qmp,server=on,wait=off"],
                stdout=errors, stderr=subprocess.STDOUT,
            )
        )
        try:
            wait("counter of the booted guest", BOOT_S[accelerator], lambda: len(counters(here)) >= 20, primary)
        except TimeoutError as late:
            if accelerator == "kvm":
                reason = (work / "qemu.log").read_text(errors="replace")
                pytest.skip(f"Linux does not boot with this machine's KVM: {late}; {reason[:200]!r}")
            raise
        secondary = started(
            colo(
                "secondary", f"unix:{work}/colo", "--ram-dir", str(work / "ram"), "--json", "--arbiter", f"file:{arbiter}",
                "--standby", shlex.join([*vm, "-serial", f"file:{there}"]), log=work / "secondary.log",
            )
        )
        wait("listening secondary", 30, (work / "colo").exists, secondary)
        protector = started(
            colo(
                "protect", "--qmp", str(work / "qmp"), "--to", f"unix:{work}/colo", "--arbiter", f"file:{arbiter}",
                "--checkpoint-delay-ms", "200", "--json", log=work / "protect.log",
            )
        )
        print(f"protecting after {counters(here)[-1]} steps")
        try:
            wait("10 checkpoints", 180, lambda: len(checkpoints(work / "secondary.log")) >= 10, secondary, protector)
            primary.send_signal(signal.SIGKILL)
            primary.wait()
            wait("takeover", 60, lambda: running(work / "secondary.log"))
            taken = running(work / "secondary.log")[-1]
            stack.callback(os.kill, taken["pid"], signal.SIGKILL)
            wait("steps in the stand-by", 120, lambda: len(counters(there)) >= 50)
        except BaseException:
            for log in sorted(work.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
            raise
        before, after = counters(here), counters(there)
        print(
            f"{accelerator}: resumed from checkpoint {taken['checkpoint']}, taken over in {taken['total_ms']:.1f} ms; "
            f"the primary printed {before[-1]} last, the stand-by {after[0]} first and {after[-1]} last"
        )
        # Nothing is skipped, nothing is counted twice, and it did not begin anew.
        assert after == list(range(after[0], after[0] + len(after)))
        assert before[0] < after[0] <= before[-1] + 2
        # The files the guest keeps are whole.
        assert b"TORN" not in here.read_bytes() + there.read_bytes()
        assert b"Kernel panic" not in there.read_bytes()
