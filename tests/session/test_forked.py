"""A program whose VM is protected may fork: what it leaves behind when it dies keeps no connection of the session's open."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from colo.errors import ColoError
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("primary_vm", Path(__file__).with_name("primary_vm.py"))
assert _spec is not None and _spec.loader is not None
primary_vm = sys.modules.setdefault("primary_vm", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(primary_vm)

PROGRAM = """
import multiprocessing, os, sys, time
sys.path.insert(0, {session!r})
from primary_vm import PageVm
from colo.session.primary import Primary, PrimaryConfig

vm = PageVm(64, free_running=True)
primary = Primary(vm, PrimaryConfig({to!r}, "none", interval_ms=20.0, control={control!r}))
vm.resume()
primary.start()
primary.checkpoint(20)
if {how!r} == "fork":
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
else:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    child = process.pid
number = primary.checkpoint(20).number
print(child, number, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
def test_a_forked_child_that_lives_on_does_not_hide_its_parents_death(tmp_path: Path, how: str) -> None:
    lost: list[float] = []

    def hear(kind: str, data: Any) -> None:
        if kind == "lost":
            lost.append(time.monotonic())

    vm = primary_vm.PageVm(64)
    secondary = VmSecondary(vm, VmSecondaryConfig("tcp:127.0.0.1:0", "none"), on_event=hear)

    def run() -> None:
        with contextlib.suppress(ColoError):
            secondary.run()

    thread = threading.Thread(target=run)
    thread.start()
    control = tmp_path / "control.sock"
    program = PROGRAM.format(
        session=str(ROOT / "tests/session"), to=secondary.address, control=str(control), how=how)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert process.stdout is not None
        child, number = map(int, process.stdout.readline().split())
        held = [os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")]
        assert not any(name.startswith("socket:") for name in held), held
        process.kill()
        process.wait()
        killed = time.monotonic()
        thread.join(30)
        assert not thread.is_alive() and lost and lost[0] - killed < 2, "the end of the connection says it, no deadline"
        assert secondary.report is not None and secondary.report.checkpoint >= number
        os.kill(child, 0)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if child:
            os.kill(child, signal.SIGKILL)
        secondary.stop()
        thread.join(20)
        secondary.close()
        vm.close()
