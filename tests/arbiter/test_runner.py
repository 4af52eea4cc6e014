"""Which process runs the VM, and whether it still does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from colo.arbiter import Runner
from colo.errors import Unsupported


def test_this_process_is_known_and_alive() -> None:
    here = Runner.of()
    assert here == Runner.of(os.getpid())
    assert here.pid == os.getpid() and here.start_ticks > 0 and len(here.boot_id) == 36
    assert here.alive() is True


def test_a_process_is_alive_until_it_is_gone_also_when_it_is_stopped() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    runner = Runner.of(process.pid)
    process.send_signal(signal.SIGSTOP)
    assert runner.alive() is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert runner.alive() is False  # it is over, though nobody has waited for it
    with pytest.raises(Unsupported, match="is over"):
        Runner.of(process.pid)
    process.wait()
    assert runner.alive() is False
    with pytest.raises(Unsupported, match="cannot be identified"):
        Runner.of(process.pid)


def test_a_number_given_out_again_is_another_process() -> None:
    here = Runner.of()
    assert replace(here, start_ticks=here.start_ticks - 1).alive() is False


def test_a_process_whose_first_thread_ended_is_alive() -> None:
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start(); print(flush=True);" \
           "ctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        runner = Runner.of(process.pid)
        while b") Z " not in _stat(process.pid):
            pass
        assert runner.alive() is True
        assert Runner.of(process.pid) == runner
        process.kill()
        process.wait()
    assert runner.alive() is False


def _stat(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read()


def test_another_host_cannot_be_told() -> None:
    here = Runner.of()
    assert replace(here, host="far").alive() is None
    assert replace(here, host="").alive() is None
    assert replace(here, pid_namespace=1).alive() is None
    if here.machine:
        assert replace(here, machine="0" * 32).alive() is None
        assert replace(here, boot_id="another").alive() is False
    assert replace(here, machine="", boot_id="another").alive() is None


def test_a_machine_is_told_by_a_digest() -> None:
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            identifier = file.read().strip()
    except OSError:
        pytest.skip("this machine has no id")
    assert Runner.of().machine and Runner.of().machine != identifier


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_another_users_process_is_told_too() -> None:
    here = Runner.of()
    code = f"""
import os
from colo.arbiter import Runner
runner = Runner.of({here.pid})
os.setresuid(65534, 65534, 65534)
print(runner.alive())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
