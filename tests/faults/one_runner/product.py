"""The command lines that are tried, and what they say. What this version of the product cannot do yet is left out."""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.one_runner.hosts import ROOT, Host

COLO = (sys.executable, "-m", "colo")
VM_NAME = "guest"
PORT = 7000


@functools.cache
def help_of(command: str) -> str:
    """What ``colo COMMAND --help`` says."""
    return subprocess.run([*COLO, command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False).stdout


def has_lease() -> bool:
    """Whether the VM executes under a lease."""
    return "--lease-ms" in help_of("protect")


def arbiters() -> tuple[str, ...]:
    """The kinds of arbiter there are, that exclude."""
    return ("file", "etcd", "exec") if "etcd:" in help_of("protect") else ("file", "exec")


def _common(arbiter: str, lease_ms: int) -> list[str]:
    options = ["--arbiter", arbiter, "--insecure", "--json"]
    if has_lease():
        options += ["--lease-ms", str(lease_ms)]
    if "--vm" in help_of("protect"):
        options += ["--vm", VM_NAME]
    return options


def protect(qmp: Path, to: Host, arbiter: str, lease_ms: int) -> list[str]:
    """``colo protect`` of the QEMU at ``qmp``."""
    return [*COLO, "protect", "--qmp", str(qmp), "--to", f"tcp:{to.address}:{PORT}", "--checkpoint-delay-ms", "100",
            "--deadline-ms", str(lease_ms), *_common(arbiter, lease_ms)]


def secondary(host: Host, standby: Sequence[str], arbiter: str, lease_ms: int) -> list[str]:
    """``colo secondary`` on ``host``."""
    options = _common(arbiter, lease_ms)
    if "--vm" in options and "--vm" not in help_of("secondary"):
        at = options.index("--vm")
        del options[at : at + 2]
    return [*COLO, "secondary", f"tcp:{host.address}:{PORT}", "--ram-dir", str(host.folder / "ram"), "--deadline-ms",
            str(lease_ms), "--standby", shlex.join(standby), *options]


def failover(host: Host) -> list[str]:
    """``colo failover``, on the secondary's host."""
    return [*COLO, "failover", "--ram-dir", str(host.folder / "ram"), "--timeout-s", "5"]


def init_arbiter(uri: str) -> list[str]:
    """What the user does once per VM, before it is protected for the first time."""
    return [sys.executable, "-c", "import sys; from colo.arbiter import init_arbiter; init_arbiter(sys.argv[1], vm=sys.argv[2])",
            uri, VM_NAME]


def show_arbiter(uri: str) -> list[str]:
    """Who holds the VM, as JSON."""
    return [sys.executable, "-m", "colo", "arbiter", "show", uri, "--json"]


class Program:
    """A program on a host that says what it does in JSON lines; what it said is in files, and so outlives it."""

    def __init__(self, host: Host, argv: Sequence[str], name: str) -> None:
        self.host = host
        self.name = name
        self._out = host.folder / f"{name}.out"
        self._errors = host.folder / f"{name}.err"
        with open(self._out, "wb") as out, open(self._errors, "wb") as errors:
            self.process = host.start(argv, stdout=out, stderr=errors)
        self._at = 0
        self._events: list[dict[str, Any]] = []

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def events(self) -> list[dict[str, Any]]:
        """What it said so far."""
        with open(self._out, "rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    event = {"event": "text", "data": line.decode(errors="replace").strip()}
                self._events.append(event)
        return self._events

    def said(self, kind: str) -> list[Any]:
        """The data of all its events of that kind."""
        return [event.get("data") for event in self.events() if event.get("event") == kind]

    def exit_code(self) -> int | None:
        """None while it lives."""
        return self.process.poll()

    def errors(self) -> str:
        """The last of what it wrote on stderr."""
        return self._errors.read_text(errors="replace")[-2000:].strip()

    def summary(self) -> dict[str, Any]:
        """For the record."""
        last = [event for event in self.events() if event.get("event") not in ("pause", "checkpoint")][-4:]
        return {"exit": self.exit_code(), "said": last, "stderr": self.errors()[-1500:]}
