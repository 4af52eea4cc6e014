"""Where a guard is found: a directory for each VM's process, with its lock, its fence's socket, its control socket, its
name."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from colo.errors import ColoError
from colo.lease.fence import SOCKET_NAME as FENCE_SOCKET
from colo.lease.fence import GuardLock, runtime_directory, vm_directory
from colo.lease.processes import start_ticks
from colo.qemu.process import private_directory

CARD_NAME = "guard.json"
CONTROL_NAME = "control.sock"
CARD_BYTES_MAX = 8192


@dataclass(frozen=True, slots=True)
class GuardCard:
    """Who is guarded, for those who look for it by name."""

    vm: str
    pid: int
    qmp: str
    to: str
    guard_pid: int

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The card in ``directory``; None: there is none that can be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            fd = os.open(directory / CARD_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_uid != os.geteuid():
                    return None
                found: dict[str, Any] = json.loads(os.read(fd, CARD_BYTES_MAX))
            finally:
                os.close(fd)
            card = cls(**found)
            if isinstance(card.vm, str) and isinstance(card.qmp, str) and isinstance(card.pid, int):
                return card
        return None


class GuardPlace:
    """The directory of whoever guards process ``pid``, held by one guard at a time. Raises QemuError when another has it."""

    def __init__(self, pid: int) -> None:
        private_directory(runtime_directory())
        self.path = private_directory(vm_directory(pid))
        self._lock = GuardLock(self.path)

    @property
    def control(self) -> Path:
        """Path of the guard's control socket."""
        return self.path / CONTROL_NAME

    def say(self, card: GuardCard) -> None:
        """Leave word of who is guarded."""
        new = self.path / f"{CARD_NAME}.new"
        new.write_text(json.dumps(asdict(card)))
        new.chmod(0o600)
        new.replace(self.path / CARD_NAME)

    def close(self, *, fence_stays: bool) -> None:
        """Give it up; with ``fence_stays`` the directory remains, for the guard after this one. Any number of times."""
        with contextlib.suppress(OSError):
            (self.path / CARD_NAME).unlink(missing_ok=True)
            if not fence_stays:
                (self.path / FENCE_SOCKET).unlink(missing_ok=True)
                (self.path / "guard.lock").unlink(missing_ok=True)
                self.path.rmdir()
        self._lock.release()


def guarded() -> Iterator[tuple[GuardCard, Path]]:
    """The VMs that are guarded on this machine by this user, each with its directory. Those of processes that are gone are
    cleared away."""
    base = runtime_directory()
    with contextlib.suppress(OSError):
        for path in sorted(base.iterdir()):
            parts = path.name.split("-")
            if len(parts) != 3 or parts[0] != "vm" or not (parts[1].isdigit() and parts[2].isdigit()):
                continue
            if start_ticks(int(parts[1])) != int(parts[2]):
                _clear(path)
                continue
            card = GuardCard.read(path)
            if card is not None:
                yield card, path


def find_guard(vm: str = "", qmp: str = "") -> Path:
    """The directory of the guard of the VM called ``vm``, or of the QEMU with monitor ``qmp``.

    Raises ColoError when there is none, or more than one.
    """
    found = [
        (card, path) for card, path in guarded()
        if (not vm or card.vm == vm) and (not qmp or os.path.realpath(card.qmp) == os.path.realpath(qmp))
    ]
    if len(found) == 1:
        return found[0][1]
    wanted = " and ".join(filter(None, (vm and f"VM {vm}", qmp and f"QMP socket {qmp}"))) or "any VM"
    names = ", ".join(sorted(f"{card.vm or '?'} ({card.qmp})" for card, _ in (found or guarded()))) or "none"
    raise ColoError(f"{'no' if not found else 'more than one'} guard of {wanted} runs here for this user; guarded are: "
                    f"{names}")


def _clear(path: Path) -> None:
    with contextlib.suppress(OSError):
        for name in (CARD_NAME, FENCE_SOCKET, CONTROL_NAME, "guard.lock", f"{CARD_NAME}.new"):
            (path / name).unlink(missing_ok=True)
        path.rmdir()
