"""The session's side of a witness (:mod:`colo.fence.witness_process`): one is started, and another when it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from colo.errors import Unsupported
from colo.fence.beside import start_beside
from colo.forked import forget_fd, keep_fd_from_children, keep_from_children

PROGRAM = Path(__file__).with_name("witness_process.py")
BEGIN_S = 20.0
"""Within this it must have said its first word, however loaded the machine."""
STATUS_BYTES_MAX = 4096
STARTS = 3
LIVED_S = 60.0
"""One that is killed sooner was not the last that is: after :data:`STARTS` of them it is left."""


class Witness:
    """A process that watches this one, for as long as one lease is held: of ``generation``, from the secondary at ``peer``.

    It begins on a thread of its own, as nothing waits for it: without one the secondary takes over as well, when its promise
    is over. ``tell`` hears once why that is so from now on.
    """

    def __init__(
        self, peer: tuple[int, Any], *, token: str, generation: int, lease_ns: int, tell: Callable[[str], None],
        allow_uids: Collection[int] = (),
    ) -> None:
        family, address = peer
        self._holds = json.dumps({
            "family": int(family), "address": address, "token": token, "generation": generation, "lease_ns": lease_ns,
            "allow_uids": list(allow_uids),
        }).encode()
        self._lease_ms = lease_ns / 1e6
        self._tell = tell
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._released = False
        self._status: dict[str, Any] = {"pid": None, "connected": False}
        threading.Thread(target=self._keep, name="colo-witness", daemon=True).start()

    def status(self) -> dict[str, Any]:
        """``pid``: None while there is none; ``connected``: whether it could tell the secondary. Keys are stable."""
        return dict(self._status)

    def release(self) -> None:
        """It is not needed any more, and ends. Any number of times; does not wait."""
        if os.getpid() != self._pid:
            return  # a forked child has no say, and its lock may be taken for ever
        with self._lock:
            self._released = True
            if self._sock is None:
                return  # none yet, or no more
            with contextlib.suppress(OSError):
                self._sock.send(json.dumps({"command": "release"}).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # what was sent is read before

    def _keep(self) -> None:
        short = 0
        while short < STARTS:
            began = time.monotonic()
            try:
                if not self._serve():
                    return
            except (OSError, Unsupported) as error:
                self._without(str(error))
                return
            short = short + 1 if time.monotonic() < began + LIVED_S else 1
        self._without(f"one after another was ended, {STARTS} of them: see who does that")

    def _without(self, why: str) -> None:
        if not self._released:
            self._tell(
                f"no witness beside this process ({why}): if it is killed, the secondary takes over only when its promise of "
                f"{self._lease_ms:g} ms is over; where that is meant, fence=False says so")

    def _serve(self) -> bool:
        """One of them, from its start to its end. Whether it ended although it was needed. Raises Unsupported."""
        sock = self._start()
        with self._lock:
            self._sock = sock
            released = self._released
        if released:
            self.release()
        try:
            sock.settimeout(BEGIN_S)
            said = False
            while (status := self._receive(sock)) is not None:
                said = True
                self._status = {"pid": status["pid"], "connected": status["met"]}
                sock.settimeout(None)
        finally:
            with self._lock:
                self._sock = None
                sock.close()
            self._status = {"pid": None, "connected": False}
        if not said and not self._released:
            raise Unsupported(f"it does not begin: does `{PROGRAM}` start with this Python, by option -I -S?")
        return not self._released

    @staticmethod
    def _receive(sock: socket.socket) -> dict[str, Any] | None:
        try:
            data = sock.recv(STATUS_BYTES_MAX)
            status: dict[str, Any] | None = json.loads(data) if data else None
        except (OSError, ValueError):
            return None
        return status

    def _start(self) -> socket.socket:
        if not hasattr(os, "pidfd_open"):
            raise Unsupported("this Python has no os.pidfd_open")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = -1
        try:
            for end in (ours, theirs):
                keep_from_children(end)
            ours.send(self._holds, socket.MSG_DONTWAIT)
            pidfd = os.pidfd_open(self._pid)
            keep_fd_from_children(pidfd)
            fds = (pidfd, theirs.fileno())
            start_beside("colo-witness", PROGRAM, fds, fds=fds, options=("-I", "-S"))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if pidfd >= 0:
                forget_fd(pidfd)
                os.close(pidfd)
        return ours
