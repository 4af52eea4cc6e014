"""Starting, attaching to, releasing and ending QEMUs: nothing is left behind."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from colo.errors import QemuError
from colo.qemu.process import Qemu, QemuProcess, private_directory, unix_path

pytestmark = pytest.mark.qemu

PLAIN = ["-nodefaults", "-display", "none", "-machine", "pc", "-S", "-m", "16"]


def ended(pid: int, timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


def test_a_started_qemu_is_private_and_leaves_nothing(qemu_binary: str, run_dir: Path) -> None:
    work = run_dir / "made" / "here"
    with QemuProcess.start([qemu_binary, *PLAIN], work) as qemu:
        pid = qemu.pid
        assert pid is not None
        assert stat.S_IMODE(work.stat().st_mode) == 0o700
        assert stat.S_IMODE(qemu.qmp_path.stat().st_mode) == 0o600
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert os.getsid(pid) != os.getsid(0)
        assert qemu.machine_type.startswith("pc-i440fx-")
        assert qemu.accelerator == "tcg"
        command = qemu.command_line()
        assert command is not None
        assert command[0] == qemu_binary
    assert ended(pid)
    assert list(work.iterdir()) == []


def test_a_bad_command_line_is_told_in_qemu_s_words(qemu_binary: str, run_dir: Path) -> None:
    with pytest.raises(QemuError, match=r"exit code 1.*does-not-exist"):
        QemuProcess.start([qemu_binary, *PLAIN, "-device", "does-not-exist"], run_dir / "w")
    with pytest.raises(QemuError, match="cannot start /no/such/qemu: No such file"):
        QemuProcess.start(["/no/such/qemu"], run_dir / "w")
    assert list((run_dir / "w").iterdir()) == []


def test_a_kill_from_outside_is_named(qemu_binary: str, run_dir: Path) -> None:
    with QemuProcess.start([qemu_binary, *PLAIN], run_dir) as qemu:
        qemu.send_signal(signal.SIGKILL)
        assert qemu.wait(5.0) == -signal.SIGKILL
        assert not qemu.alive()
        with pytest.raises(QemuError) as lost:
            qemu.qmp.execute("query-status")
        assert "SIGKILL" in qemu.explain(lost.value)
        assert not qemu.qmp_path.exists()


ORPHAN = """
import sys, time
from colo.qemu.process import QemuProcess
qemu = QemuProcess.start(sys.argv[2:], sys.argv[1])
print(qemu.pid, flush=True)
if sys.stdin.readline() == "release\\n":
    qemu.release()
    qemu.detach()
    print("released", flush=True)
time.sleep(60)
"""


def parent_of_a_qemu(qemu_binary: str, run_dir: Path) -> tuple[subprocess.Popen[str], int]:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(run_dir), qemu_binary, *PLAIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_no_orphan_when_we_are_killed(qemu_binary: str, run_dir: Path) -> None:
    parent, pid = parent_of_a_qemu(qemu_binary, run_dir)
    with parent:
        assert not ended(pid, 0.2)
        parent.kill()
    assert ended(pid)


def test_a_released_qemu_outlives_us_and_serves_the_next_client(qemu_binary: str, run_dir: Path) -> None:
    parent, pid = parent_of_a_qemu(qemu_binary, run_dir)
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write("release\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "released\n"
        parent.kill()
    try:
        assert not ended(pid, 0.3)
        with Qemu.attach(run_dir / "qmp.sock") as qemu:
            assert qemu.status() in ("prelaunch", "paused")
    finally:
        os.kill(pid, signal.SIGKILL)
    assert ended(pid)


def test_attaching_finds_the_process_and_its_command_line(qemu_binary: str, run_dir: Path) -> None:
    path = run_dir / "theirs.sock"
    argv = [qemu_binary, *PLAIN, "-name", "theirs", "-qmp", f"unix:{path},server=on,wait=off"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            with Qemu.attach(path) as qemu:
                assert qemu.pid == process.pid
                command = qemu.command_line()
                assert command is not None
                assert command[0] == argv[0]
                assert command[1 - len(argv) :] == argv[1:]
                assert qemu.name == "theirs"
                assert qemu.alive()
                qemu.kill()
                assert not qemu.alive()
        finally:
            process.kill()


def test_directories_that_others_can_enter_are_refused(run_dir: Path) -> None:
    public = run_dir / "public"
    public.mkdir()
    public.chmod(0o755)
    with pytest.raises(QemuError, match="chmod 700"):
        private_directory(public)
    with pytest.raises(QemuError, match="too long"):
        unix_path(run_dir / ("x" * 100))
