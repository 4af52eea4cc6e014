"""Which process runs a VM, so that another one, on this host or not, can tell whether it still does."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from typing import Self

from colo.errors import Unsupported

HOST_MAX = 64
_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


@dataclass(frozen=True, slots=True)
class Runner:
    """A process that runs the VM, or would.

    ``start_ticks`` is field 22 of ``/proc/PID/stat``: with it a process number that was given out again is told apart.
    ``machine`` (a digest of the machine's id) and ``pid_namespace`` make two hosts of one name, and two containers of one
    kernel, different; both may be empty.
    """

    host: str
    boot_id: str
    pid: int
    start_ticks: int
    machine: str = ""
    pid_namespace: int = 0

    @classmethod
    def of(cls, pid: int | None = None) -> Self:
        """The process ``pid`` of this host, or (None) this process itself.

        Raises Unsupported when there is no such process, or /proc does not tell.
        """
        number = os.getpid() if pid is None else pid
        try:
            ticks = _start_ticks(number)
            boot_id = _boot_id()
        except (OSError, ValueError, IndexError) as error:
            raise Unsupported(
                f"process {number} cannot be identified by /proc ({error}): is it running, and is /proc mounted?") from error
        if ticks is None:
            raise Unsupported(f"process {number} is over: start the VM first")
        return cls(_host(), boot_id, number, ticks, _machine(), _pid_namespace())

    def alive(self) -> bool | None:
        """Does the process still run? None: it is another host's, so it cannot be told from here.

        On the same host and boot the answer is exact; False too when the same host has been started anew since.
        """
        if not self.host or self.host != _host() or (self.machine and _machine() and self.machine != _machine()):
            return None
        try:
            same_boot = self.boot_id == _boot_id()
        except OSError:
            return None
        if not same_boot:
            # A name alone does not make it the same host: two may be called alike.
            return False if self.boot_id and self.machine and self.machine == _machine() else None
        if self.pid_namespace and self.pid_namespace != _pid_namespace():
            return None
        return self._alive_here()

    def _alive_here(self) -> bool | None:
        for _ in range(3):
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                pass
            try:
                return _start_ticks(self.pid) == self.start_ticks
            except (OSError, ValueError, IndexError):
                continue  # it ended between the two looks, or /proc hides others' processes
        return None


def _start_ticks(pid: int) -> int | None:
    """When the process was started, in clock ticks since boot; None for one that is over and only not yet waited for."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read(4096).rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X", b"x") and len(os.listdir(f"/proc/{pid}/task")) <= 1:
        return None
    return int(fields[19])


def _host() -> str:
    name = socket.gethostname()[:HOST_MAX]
    return "".join(c if c.isprintable() else "?" for c in name)


@functools.cache
def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read(64).decode().strip()


@functools.cache
def _machine() -> str:
    """A digest, not the id itself, which machine-id(5) asks not to be told to others."""
    for path in _MACHINE_IDS:
        try:
            with open(path, "rb") as file:
                text = file.read(64).strip()
        except OSError:
            continue
        if len(text) == 32:
            return hashlib.sha256(b"colo:" + text).hexdigest()[:32]
    return ""


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
