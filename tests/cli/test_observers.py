"""Who only looks at a session (its output's reader, a disk, a terminal, a listener) does not end it, nor hold it up."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.control.client import ask
from tests.cli.watched import COLO, ROOT, PageVm, leading
from tests.faults.rig import wait_until
from tests.strangers import needs_root


@pytest.fixture
def vm() -> Iterator[Any]:
    vm = PageVm(64, free_running=True)
    yield vm
    vm.close()


class Session:
    """``colo secondary`` whose output goes to somebody unreliable."""

    def __init__(self, tmp_path: Path, *options: str, **how: Any) -> None:
        self.ram_dir = tmp_path / "ram"
        self.process = subprocess.Popen(
            [*COLO, "secondary", "tcp:127.0.0.1:0", "--ram-dir", str(self.ram_dir), *options], cwd=ROOT,
            stdin=subprocess.DEVNULL, **how)
        wait_until(lambda: (self.ram_dir / "control.sock").exists(), what="the session")

    @property
    def status(self) -> Any:
        return ask(self.ram_dir / "control.sock", "status")

    def goes_on_and_ends(self, vm: Any) -> None:
        """It follows its primary, and ends as it always does, with no more than a moment's delay."""
        with leading(vm, self.status["listen"]):
            number = self.status["checkpoint"] or 0
            wait_until(lambda: self.status["checkpoint"] >= number + 30, what="checkpoints")
            began = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(20) == 130
            assert time.monotonic() - began < 10, "a reader that is asleep holds nobody up for long"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("observer", ["reader-gone", "reader-asleep", "disk-full", "closed", "both-full"])
def test_a_session_outlives_whoever_reads_it(tmp_path: Path, vm: Any, observer: str, options: tuple[str, ...]) -> None:
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(open(tmp_path / "errors", "w"))
        how: dict[str, Any] = {"stderr": errors}
        ours = -1
        if observer.startswith("reader"):
            ours, theirs = os.pipe()
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 4096)
            how |= {"stdout": theirs}
        elif observer == "closed":
            how |= {"preexec_fn": lambda: os.close(1)}
        else:
            full = stack.enter_context(open("/dev/full", "w"))
            how |= {"stdout": full} | ({"stderr": full} if observer == "both-full" else {})
        session = Session(tmp_path, *options, **how)
        stack.callback(session.close)
        if ours >= 0:
            os.close(theirs)
            stack.callback(lambda: ours >= 0 and os.close(ours))
        if observer == "reader-gone":
            assert b"listening" in os.read(ours, 4096)
            os.close(ours)
            ours = -1
        session.goes_on_and_ends(vm)
        said = (tmp_path / "errors").read_text()
        assert "Traceback" not in said and "Exception" not in said, said
        if observer != "both-full":
            assert said.startswith("colo secondary: ") and said.count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_session_outlives_its_terminal(tmp_path: Path, vm: Any, options: tuple[str, ...]) -> None:
    master, slave = os.openpty()
    session = Session(tmp_path, *options, preexec_fn=lambda: os.login_tty(slave))
    try:
        os.close(slave)
        os.read(master, 100)
        os.close(master)  # SIGHUP, and EIO for whatever is written from here on
        session.goes_on_and_ends(vm)
    finally:
        session.close()


ANSWERS = [
    ("status",), ("doctor",), ("arbiter", "init", "{dir}", "--vm", "v"), ("arbiter", "show", "{dir}"),
    ("arbiter", "release", "{dir}", "--vm", "v", "--yes"), ("inspect", "{stream}"), ("status", "--dir", "{ram}"),
]


@pytest.mark.parametrize("json_output", [False, True])
@pytest.mark.parametrize("command", ANSWERS, ids=" ".join)
def test_a_command_whose_answer_cannot_be_written_says_so_in_one_line(
    tmp_path: Path, command: tuple[str, ...], json_output: bool
) -> None:
    arbiter = tmp_path / "arbiter"
    arbiter.mkdir(mode=0o700)
    assert subprocess.run([*COLO, "arbiter", "init", str(arbiter), "--vm", "v"], cwd=ROOT, check=False).returncode == 0
    stream = tmp_path / "stream"
    stream.write_bytes(subprocess.run(
        ["xz", "-dkc", str(ROOT / "tests/vectors/7.2-none.stream.xz")], stdout=subprocess.PIPE, check=True).stdout)
    with contextlib.ExitStack() as stack:
        if "{ram}" in command:
            stack.callback(Session(tmp_path, stdout=subprocess.DEVNULL).close)
        arguments = [each.format(dir=arbiter, stream=stream, ram=tmp_path / "ram") for each in command]
        full = stack.enter_context(open("/dev/full", "w"))
        done = subprocess.run(
            [*COLO, *arguments, *(["--json"] if json_output else [])], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False)
    assert done.returncode == 8 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr, done


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_who_watches_and_leaves_ends_the_watch_and_not_the_session(tmp_path: Path, vm: Any, options: tuple[str, ...]) -> None:
    session = Session(tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with leading(vm, session.status["listen"]):
            watching = subprocess.Popen(
                [*COLO, "status", "--dir", str(session.ram_dir), "--watch", "0.1", *options], cwd=ROOT, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE)
            assert watching.stdout is not None and watching.stderr is not None
            watching.stdout.readline()
            watching.stdout.close()
            assert watching.wait(20) == 141 and watching.stderr.read() == b""
            watching.stderr.close()
        assert session.process.wait(20) == 9  # without a stand-by nothing follows the loss
    finally:
        session.close()


@needs_root
def test_a_report_that_cannot_be_written_at_the_end_leaves_the_sessions_own_ending(tmp_path: Path, vm: Any) -> None:
    """On a file system of its own, in a mount namespace, that is filled while the session runs."""
    place = tmp_path / "small"
    place.mkdir()
    script = f'mount -t tmpfs -o size=64k small {place} && exec "$@"'
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", *COLO, "secondary", "tcp:127.0.0.1:0", "--ram-dir", str(tmp_path / "ram"),
         "--report", str(place / "report"), "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/root{place}/filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1024))
        with leading(vm, first["data"]):
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=20)
        assert process.returncode == 130 and "No space left on device" in said and "Traceback" not in said, said
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
