"""``colo secondary`` as a process of its own, read by its JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]


def colo(*arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """One command of the command line, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "colo", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


class SecondaryProcess:
    """``python -m colo secondary`` with ``--json``; :attr:`events` are its lines so far."""

    def __init__(
        self, ram_dir: Path, *, standby: Sequence[str] | None = None, arbiter: str = "", listen: str = "tcp:127.0.0.1:0",
        options: Sequence[str] = (), preexec: Any = None,
    ) -> None:
        command = [sys.executable, "-m", "colo", "secondary", listen, "--ram-dir", str(ram_dir), "--json", *options]
        if standby is not None:
            command += ["--standby", shlex.join(standby)]
        if arbiter:
            command += ["--arbiter", arbiter]
        self.ram_dir = ram_dir
        self.events: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=preexec)
        self.errors = ""
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._read_errors, daemon=True)]
        for reader in self._readers:
            reader.start()
        self.vm_pid: int | None = None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == "running":
                    self.vm_pid = self.events[-1]["data"]["pid"]
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def wait_event(self, kind: str, timeout_s: float = 20.0, **data: Any) -> Any:
        """The data of the first event of that kind (and with these entries), once there is one."""
        deadline = time.monotonic() + timeout_s

        def found() -> list[Any]:
            return [
                e["data"] for e in self.events
                if e["event"] == kind and all(e["data"].get(key) == value for key, value in data.items())
            ]

        with self._changed:
            while not found():
                assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.errors} {self.events[-3:]}"
                left = deadline - time.monotonic()
                assert left > 0, f"no {kind} within {timeout_s} s: {self.events[-5:]}"
                self._changed.wait(min(left, 0.2))
            return found()[0]

    @property
    def port(self) -> int:
        return int(self.wait_event("listening").rsplit(":", 1)[1])

    def children(self) -> list[psutil.Process]:
        """Its own processes, those of its stand-by among them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout_s: float = 20.0) -> int:
        code = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(5)
        return code

    def close(self) -> None:
        children = self.children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        for reader in self._readers:
            reader.join(5)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if self.vm_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.vm_pid, signal.SIGKILL)

    def __enter__(self) -> SecondaryProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def gone(processes: Sequence[psutil.Process], timeout_s: float = 5.0) -> bool:
    """Whether all of them end in time."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
