"""The witness: a process of its own beside one that runs its VM itself, which tells the secondary once that one is gone.

It holds nothing, stops nothing and promises nothing: all it ever says is GONE, of the one generation that it was started for,
and that only when the descriptor of that very process (no number, which may be given out again) shows its end. So whatever
else it gets wrong costs time: the secondary then waits for the lease's end. Started by :class:`colo.fence.witness.Witness`::

    python -I -S witness_process.py PIDFD SESSION          the process, and its session's SOCK_SEQPACKET unix socket

The session sends two JSON objects, a packet each: first what it holds (the token is nobody else's to see, so not in the
command line), at last ``{"command": "release"}``. It hears ``{"pid": …, "met": …}`` whenever that changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any

if __name__ == "__main__":  # started by its path, without the user's environment: where the package is, it knows itself
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from colo.abc import Transport
from colo.lease.clock import now_ns
from colo.lease.frames import Frame
from colo.lease.link import LeaseLink
from colo.wire import LeaseMessage

COMMAND_BYTES_MAX = 16384
BEGIN_S = 10.0
LEASES = 2
"""So many leases after the end, time has proven the same wherever the proof did not arrive."""
ENDING_NS = 10_000_000_000
"""A process that has let go of its session's socket is about to end, or has begun another program; so long it is watched."""


class WitnessProcess:
    """The witness's loop. ``session`` has sent what it holds: ``holds``."""

    def __init__(self, pidfd: int, session: socket.socket, holds: dict[str, Any]) -> None:
        address = holds["address"]
        self.pidfd = pidfd
        self.session: socket.socket | None = session
        self.link = LeaseLink(
            (int(holds["family"]), tuple(address) if isinstance(address, list) else str(address)), token=str(holds["token"]),
            generation=int(holds["generation"]), lease_ns=int(holds["lease_ns"]), who="witness", quiet=True,
            allow_uids=[int(uid) for uid in holds["allow_uids"]])
        self.gone = False
        self.over = False
        self._told: bool | None = None
        self._said_on: Transport | None = None
        """The connection over which the proof was sent, and it was asked whether it was heard."""
        self._until_ns: int | None = None
        """Nothing is to be said any more from then on."""

    def run(self) -> None:
        while not self.over:
            self._tell()
            ready = self._wait()
            if self.pidfd in ready and not self.gone:
                self.gone = True
                self._until_ns = now_ns() + LEASES * self.link.lease_ns
            # What the session said last counts, also where its end was seen first.
            self._hear_session()
            if self.over:
                break
            if self.link.sock is not None and self.link.sock.fileno() in ready:
                self._hear_secondary()
            now = now_ns()
            if not self.link.refused:  # its session is over, there: no token is given twice
                self.link.tend(now)
            elif self.gone:
                self.over = True
            if self.gone and self.link.met and self._said_on is not self.link.sock:
                self._certify(now)
            if self._until_ns is not None and now >= self._until_ns:
                self.over = True
        self.link.drop()

    def _wait(self) -> set[int]:
        poller = select.poll()
        if not self.gone:
            poller.register(self.pidfd, select.POLLIN)
        if self.session is not None:
            poller.register(self.session, select.POLLIN)
        if self.link.sock is not None:
            poller.register(self.link.sock, self.link.events)
        now = now_ns()
        due = [] if self._until_ns is None else [self._until_ns]
        if not self.link.refused:
            if not self.link.met:
                due.append(self.link.try_ns)
            elif self.gone:
                due.append(now + self.link.lease_ns // 4)
        return {fd for fd, _ in poller.poll(max(0.0, (min(due) - now) / 1e6) + 0.05 if due else None)}

    def _certify(self, now: int) -> None:
        generation = self.link.generation
        if self.link.send(Frame(LeaseMessage.GONE, generation, text={"reason": "its process ended"})) \
                and self.link.meet_again(now):
            self._said_on = self.link.sock

    def _hear_secondary(self) -> None:
        sock = self.link.sock
        kinds = [frame.kind for frame in self.link.ready(now_ns())]
        if LeaseMessage.WELCOME in kinds and sock is self._said_on:
            self.over = True  # it heard the proof

    def _hear_session(self) -> None:
        if self.session is None:
            return
        try:
            data = self.session.recv(COMMAND_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.over = True  # there is but one command
            return
        self.session.close()
        self.session = None
        if not self.gone:
            self._until_ns = now_ns() + max(ENDING_NS, LEASES * self.link.lease_ns)

    def _tell(self) -> None:
        if self.session is None or self._told == self.link.met:
            return
        self._told = self.link.met
        with contextlib.suppress(OSError):  # who does not read it does not need it
            self.session.send(
                json.dumps({"pid": os.getpid(), "met": self.link.met}).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def main() -> None:
    """See this module's head."""
    pidfd, fd = (int(argument) for argument in sys.argv[1:3])
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # who ends the program's service in order ends the program: that is to be seen
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("colo-witness")
    session = socket.socket(fileno=fd)
    session.settimeout(BEGIN_S)
    holds = json.loads(session.recv(COMMAND_BYTES_MAX))
    session.setblocking(False)
    WitnessProcess(pidfd, session, holds).run()


if __name__ == "__main__":
    main()
