"""The guard's side of a fence: one is found or started, told what the arbiter decided, and listened to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from colo.errors import ColoError, QemuError, StorageError, Unsupported
from colo.fence.beside import start_beside
from colo.fence.processes import start_ticks
from colo.private import PrivateDirectory

PROGRAM = Path(__file__).with_name("fence_process.py")
SOCKET_NAME = "fence.sock"
LOOK_NAME = "look.sock"
"""Who connects here is told how the fence stands, and is no guard: nothing changes by a look."""
LOCK_NAME = "guard.lock"
ANSWER_S = 2.0
"""A fence that does not answer within this is as good as dead: another is started."""
ALONE_S = 0.5
"""The VM may stand still until it has answered this; and it is not needed any more."""
STATUS_BYTES_MAX = 1 << 17


class FenceLost(ColoError):
    """The fence died, or does not answer."""


@dataclass(frozen=True, slots=True)
class FenceStatus:
    """What a fence says of itself. Times are nanoseconds of ``CLOCK_BOOTTIME``."""

    pid: int
    fence_pid: int
    vm_gone: bool
    hardened: dict[str, bool]
    connected: bool
    taken: int
    """The generation that the secondary says it has claimed; 0: none."""
    returned: int
    said: str
    """By the secondary: why it refused, or could not run the VM."""
    notice: str
    """By the secondary: why it could not take over as things are."""
    notes: dict[str, Any]
    certified: bool
    overshoot_us: int
    now_ns: int
    watchdog: bool
    state: str
    certificate: str
    reason: str
    generation: int
    lease_end_ns: int
    lease_ns: int
    wanted: bool


def runtime_directories() -> list[Path]:
    """Where this user's running sessions may keep their sockets, that of new ones first: ``/run/colo`` for root,
    ``$XDG_RUNTIME_DIR/colo``, else ``/run/user/UID/colo``, else ``/tmp/colo-UID/colo``.

    A shell has another environment than a service: who looks for a session has to look in all of them.
    """
    uid = os.geteuid()
    bases = [f"/tmp/colo-{uid}"]
    if uid == 0:
        if os.access("/run", os.W_OK):
            bases.insert(0, "/run")
    else:
        if os.access(f"/run/user/{uid}", os.W_OK):
            bases.insert(0, f"/run/user/{uid}")
        if os.path.isabs(said := os.environ.get("XDG_RUNTIME_DIR", "")):
            bases.insert(0, said)
    return [Path(base) / "colo" for base in dict.fromkeys(map(os.path.normpath, bases))]


def vm_directory(pid: int) -> Path:
    """The directory of whoever guards process ``pid``: every guard of that very process finds the same."""
    name = f"vm-{pid}-{start_ticks(pid)}"
    places = runtime_directories()
    for place in places:
        with contextlib.suppress(StorageError):
            PrivateDirectory.open(place / name, make=False).close()
            return place / name
    return places[0] / name


class GuardLock:
    """At most one guard at a time has a VM's process."""

    def __init__(self, directory: Path) -> None:
        """Raises QemuError when another guard has it."""
        self._fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise QemuError(
                f"another guard (pid {who}) has this VM: `colo status` shows it; end it with SIGTERM first, or with "
                "SIGKILL if "
                "it hangs") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Any number of times."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def look_at_fence(directory: Path) -> FenceStatus | None:
    """How the fence in ``directory`` stands, whether or not it has a guard; nothing changes by it. None: there is none.

    Raises FenceLost when there is one that does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(ANSWER_S)
        try:
            sock.connect(os.fspath(directory / LOOK_NAME))
            data = sock.recv(STATUS_BYTES_MAX)
            return FenceStatus(**json.loads(data)) if data else None
        except (TimeoutError, BlockingIOError):
            raise FenceLost(f"it does not answer within {ANSWER_S:g} s") from None
        except (OSError, ValueError, TypeError):
            return None


class FenceHandle:
    """A running fence, as its guard commands it. ``on_change(status)`` is called on a thread of its own; with None when the
    fence is lost."""

    def __init__(
        self, sock: socket.socket, on_change: Callable[[FenceStatus | None], None] = lambda status: None, *, found: bool =
        False
    ) -> None:
        self.found = found
        """It was there already: a guard before this one had started it."""
        self._sock = sock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._number = 0
        self._lost = False
        self._closed = False
        self.last: FenceStatus | None = None
        self._thread = threading.Thread(target=self._listen, name="colo-fence", daemon=True)
        self._thread.start()
        self.status()

    @classmethod
    def find(cls, directory: Path, on_change: Callable[[FenceStatus | None], None]) -> Self | None:
        """The fence that runs in ``directory``; None: there is none that answers."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(ANSWER_S)
            sock.connect(os.fspath(directory / SOCKET_NAME))
            sock.setblocking(True)
            return cls(sock, on_change, found=True)
        except (OSError, FenceLost):
            sock.close()
            return None

    @classmethod
    def start(cls, pid: int, directory: Path, on_change: Callable[[FenceStatus | None], None]) -> Self:
        """A new fence beside process ``pid``. Raises Unsupported when it cannot be started."""
        path = directory / SOCKET_NAME
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        look = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = -1
        try:
            for each, at in ((listener, path), (look, directory / LOOK_NAME)):
                at.unlink(missing_ok=True)
                os.fchmod(each.fileno(), 0o600)
                each.bind(os.fspath(at))
                each.listen(2)
            pidfd = os.pidfd_open(pid)
            fds = (pidfd, listener.fileno(), look.fileno())
            start_beside("colo-fence", PROGRAM, (pidfd, pid, *fds[1:]), fds=fds, options=("-I",))
        except (OSError, Unsupported) as error:
            raise Unsupported(f"no fence can be started beside process {pid}: {error}") from error
        finally:
            listener.close()
            look.close()
            if pidfd >= 0:
                os.close(pidfd)
        deadline = time.monotonic() + 10 * ANSWER_S
        while time.monotonic() < deadline:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.connect(os.fspath(path))
                return cls(sock, on_change)
            except (OSError, FenceLost):
                sock.close()
                time.sleep(0.01)
        raise Unsupported(f"the fence beside process {pid} does not answer: does `{sys.executable} -I {PROGRAM}` start?")

    # -- commands

    def status(self, wait_s: float = ANSWER_S) -> FenceStatus:
        """What it says now. Raises FenceLost when it does not within ``wait_s``."""
        return self._ask("status", wait_s=wait_s)

    def lease(
        self, peer: tuple[int, object], *, token: str, generation: int, lease_ms: float, notes: dict[str, Any],
        end_ns: int = 0, allow_uids: Collection[int] = (),
    ) -> FenceStatus:
        """Hold a lease of ``generation`` from the secondary at ``peer``. ``end_ns``: one that a fence before it had.
        ``allow_uids``: users of this machine who may listen there, besides root and this process's own."""
        family, address = peer
        return self._ask(
            "lease", family=int(family), address=list(address) if isinstance(address, tuple) else address, token=token,
            generation=generation, lease_ms=lease_ms, notes=notes, end_ns=end_ns,
            allow_uids=list(allow_uids))

    def answering(self) -> None:
        """The guard is at it. Said, not asked: a fence that hangs must not hold up who saves the VM. Raises FenceLost."""
        try:
            self._sock.send(json.dumps({"command": "answering"}).encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError as error:
            raise FenceLost(f"the fence is gone: {error.strerror or error}") from error

    def alone(self, generation: int, reason: str) -> FenceStatus:
        """``generation`` was won: the VM runs on, without a lease, and the secondary is told."""
        return self._ask("alone", wait_s=ALONE_S, generation=generation, reason=reason)

    def prove(self, reason: str) -> FenceStatus:
        """Stop the VM for good, as far as this generation goes, and say so to the secondary."""
        return self._ask("prove", reason=reason)

    def end(self, reason: str) -> FenceStatus:
        """Kill the VM's process."""
        return self._ask("end", reason=reason)

    def ended(self, reason: str) -> FenceStatus:
        """The VM was ended on purpose: tell the secondary that nobody is to run it. Its process is left to end."""
        return self._ask("ended", reason=reason)

    def moves(self, reason: str) -> FenceStatus:
        """The VM's process is gone, and that was not the VM's end: the secondary may run it."""
        return self._ask("moves", reason=reason)

    def watchdog(self, path: str, timeout_s: int) -> FenceStatus:
        """Let the machine be reset when the fence cannot say any more that all is well. Raises Unsupported."""
        return self._ask("watchdog", path=path, timeout_s=timeout_s)

    def release(self, *, stopped: bool = False) -> None:
        """It is not needed any more. ``stopped``: also when the VM stands still."""
        with contextlib.suppress(FenceLost):
            self._ask("release", stopped=stopped)
        self.close()

    def close(self) -> None:
        """Leave it alone: it goes on without a guard. Any number of times."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._thread.join(2)
        self._sock.close()

    @property
    def lost(self) -> bool:
        """Whether it is gone."""
        return self._lost

    def _ask(self, command: str, *, wait_s: float = ANSWER_S, **more: Any) -> FenceStatus:
        if not self._lock.acquire(timeout=wait_s):
            raise FenceLost(f"the fence has not answered another command for {wait_s:g} s")
        try:
            self._number += 1
            number = self._number
            try:
                self._sock.send(json.dumps({"command": command, "number": number, **more}).encode(), socket.MSG_NOSIGNAL)
            except OSError as error:
                raise FenceLost(f"the fence is gone: {error.strerror or error}") from error
            with self._changed:
                there = self._changed.wait_for(lambda: self._lost or number in self._answers, wait_s)
                answer = self._answers.pop(number, None)
        finally:
            self._lock.release()
        if answer is None:
            raise FenceLost("the fence is gone" if there else f"the fence did not answer `{command}` within {wait_s:g} s")
        if answer["error"]:
            raise Unsupported(f"the fence: {answer['error']}")
        status = FenceStatus(**answer["status"])
        self.last = status
        return status

    def _listen(self) -> None:
        while True:
            try:
                data = self._sock.recv(STATUS_BYTES_MAX)
                message = json.loads(data) if data else None
            except (OSError, ValueError):
                message = None
            if message is None:
                break
            if "event" in message:
                self.last = FenceStatus(**message["event"])
                self._on_change(self.last)
            else:
                with self._changed:
                    self._answers[message["answer"]] = message
                    self._changed.notify_all()
        with self._changed:
            self._lost = True
            self._changed.notify_all()
        if not self._closed:
            self._on_change(None)

