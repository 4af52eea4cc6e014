"""A signal that ends a session is heard, whichever of its threads the kernel gives it to."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from colo.cli.terminal.signals import on_ending_signals
from tests.faults.processes import SecondaryProcess

SYS_TGKILL = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
INTERRUPTED = 130


def kill_thread(pid: int, tid: int, number: signal.Signals) -> None:
    assert ctypes.CDLL(None, use_errno=True).syscall(SYS_TGKILL, pid, tid, int(number)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("thread", ["main", "another"])
def test_a_secondary_that_waits_hears_it_by_any_thread(tmp_path: Path, thread: str, number: signal.Signals) -> None:
    with SecondaryProcess(tmp_path / "ram") as session:
        session.wait_event("listening")
        pid = session.process.pid
        until = time.monotonic() + 10
        while len(others := [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]) < 2:
            assert time.monotonic() < until
        time.sleep(0.2)  # it waits for a primary by then
        kill_thread(pid, pid if thread == "main" else others[0], number)
        assert session.wait() == INTERRUPTED, session.errors


def test_inside_it_acts_and_outside_all_is_as_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    heard = threading.Event()
    with on_ending_signals(heard.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.wait(10)
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert "colo-signals" not in {thread.name for thread in threading.enumerate()}


def test_another_signal_does_not_act() -> None:
    heard = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with on_ending_signals(heard.set):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not heard.wait(0.3)
    finally:
        signal.signal(signal.SIGUSR1, before)
