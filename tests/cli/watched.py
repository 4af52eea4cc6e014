"""Real sessions to be watched, and the commands that watch them."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from colo.session.primary import Primary, PrimaryConfig

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0

_spec = importlib.util.spec_from_file_location("primary_vm", ROOT / "tests/session/primary_vm.py")
assert _spec is not None and _spec.loader is not None
primary_vm = sys.modules.setdefault("primary_vm", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(primary_vm)
PageVm = primary_vm.PageVm

COLO = [sys.executable, "-m", "colo"]


class Command:
    """A ``colo`` command as a process whose lines are read as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COLO, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, found: Callable[[list[str]], bool]) -> list[str]:
        """All lines so far, once they are what is waited for."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended or found(self.lines), PATIENCE_S), self.lines
            assert found(self.lines), (self.lines, self.process.stderr.read() if self.process.stderr else "")
            return list(self.lines)

    def end(self, signal_number: int | None = None) -> int:
        """Its exit code, and all its lines read."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        code = self.process.wait(PATIENCE_S)
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, PATIENCE_S)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Terminal:
    """A ``colo`` command on a terminal of 120 columns."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [*COLO, *arguments], cwd=ROOT, preexec_fn=lambda: os.login_tty(slave),
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"})
        os.close(slave)
        self.text = ""

    def wait_for(self, *words: str) -> str:
        """All that was written so far, once the words are in it."""
        end_s = time.monotonic() + PATIENCE_S
        while not all(word in self.text for word in words):
            assert time.monotonic() < end_s, self.text
            assert self._read(1.0) is not None, self.text
        return self.text

    def _read(self, seconds: float) -> str | None:
        if not select.select([self.master], [], [], seconds)[0]:
            return ""
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other end is closed
            return None
        self.text += data.decode(errors="replace")
        return self.text if data else None

    def press_ctrl_c(self) -> None:
        os.write(self.master, b"\x03")

    def end(self) -> int:
        while self._read(PATIENCE_S):
            pass
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@contextlib.contextmanager
def secondary_process(tmp_path: Path, *options: str) -> Iterator[tuple[Command, str]]:
    """A real ``colo secondary``, and where it listens."""
    command = Command(
        "secondary", "tcp:127.0.0.1:0", "--ram-dir", str(tmp_path / "ram"), "--json", *options)
    try:
        first = json.loads(command.wait_for(lambda lines: len(lines) > 0)[0])
        assert first["event"] == "listening"
        yield command, first["data"]
    finally:
        command.close()


@contextlib.contextmanager
def leading(vm: Any, to: str, **options: Any) -> Iterator[Primary]:
    """A primary that leads ``vm``, running, once the first checkpoint is committed."""
    with Primary(vm, PrimaryConfig(to, "none", **{"interval_ms": 20.0, **options})) as primary:
        vm.resume()
        primary.start()
        primary.checkpoint(20)
        yield primary
