"""Where a guard is found: a directory for each VM's process, with its lock, its fence's socket, its control socket, its
name."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from colo.errors import ColoError, StorageError
from colo.fence.fence import LOCK_NAME, LOOK_NAME, GuardLock, runtime_directories, vm_directory
from colo.fence.fence import SOCKET_NAME as FENCE_SOCKET
from colo.fence.processes import start_ticks
from colo.private import PrivateDirectory
from colo.qemu.process import private_directory

CARD_NAME = "guard.json"
CONTROL_NAME = "control.sock"
CARD_BYTES_MAX = 8192
PROBE_S = 1.0


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
        self.path = vm_directory(pid)
        private_directory(self.path.parent)
        private_directory(self.path)
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
        """Give it up; with ``fence_stays`` the directory remains, for the guard after this one, and for who asks meanwhile
        how that VM is. Any number of times."""
        if not fence_stays:
            _remove(self.path)
        self._lock.release()


def guarded() -> Iterator[tuple[GuardCard, Path]]:
    """The VMs on this machine that this user has a guard for, or had and the VM's process is still there: each with its
    directory. What is left of others is cleared away."""
    for base in runtime_directories():
        names: list[str] = []
        with contextlib.suppress(StorageError), PrivateDirectory.open(base, make=False) as place:
            names = place.names()
        for name in names:
            path = base / name
            parts = name.split("-")
            if len(parts) != 3 or parts[0] != "vm" or not (parts[1].isdigit() and parts[2].isdigit()):
                continue
            if start_ticks(int(parts[1])) != int(parts[2]) and not _answers(path):
                _remove(path)
                continue
            card = GuardCard.read(path)
            if card is not None:
                yield card, path


def find_guard(vm: str = "", qmp: str = "") -> tuple[GuardCard, Path]:
    """Card and directory of the guard, or of the fence that one has left, of the VM called ``vm``, or of the QEMU with
    monitor ``qmp``; without either, of the only one there is.

    Raises ColoError when there is none, or more than one.
    """
    everyone = list(guarded())
    found = [
        (card, path) for card, path in everyone
        if (not vm or card.vm == vm) and (not qmp or os.path.realpath(card.qmp) == os.path.realpath(qmp))
    ]
    if len(found) == 1:
        return found[0]
    wanted = " and ".join(filter(None, (vm and f"VM {vm}", qmp and f"QMP socket {qmp}"))) or "any VM"
    names = ", ".join(sorted(f"{card.vm or '?'} ({card.qmp})" for card, _ in (found or everyone))) or "none"
    what = (
        "say which by --vm or --qmp" if found else
        "`colo protect` starts one; one of another user's, or on another machine, is asked there")
    raise ColoError(
        f"{'more than one' if found else 'no'} guard of {wanted} runs here for this user (uid {os.geteuid()}); guarded are: "
        f"{names}; {what}")


def guard_answers(directory: Path) -> bool:
    """Whether a guard listens in ``directory``, or may, as it hangs: one that was killed does not."""
    return _listens(directory / CONTROL_NAME, socket.SOCK_STREAM)


def _answers(directory: Path) -> bool:
    """Whether a guard or a fence is there yet: it may have something to say when the VM's process is gone."""
    return guard_answers(directory) or _listens(directory / LOOK_NAME, socket.SOCK_SEQPACKET)


def _listens(path: Path, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # a full queue: somebody has it, and hangs
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        for name in (CARD_NAME, f"{CARD_NAME}.new", FENCE_SOCKET, LOOK_NAME, CONTROL_NAME, LOCK_NAME):
            (path / name).unlink(missing_ok=True)
        path.rmdir()
