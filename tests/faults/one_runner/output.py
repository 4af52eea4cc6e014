"""What the guests of a host put out, and when, by the kernel's clock at the moment they did.

A guest sends a beat, one byte, each millisecond that it runs; it leaves its host as a datagram to the host itself, and the kernel
stamps it in the call that sends it. So it does not matter when it is read here, however late: a stamp is the time of the output.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from tests.faults.one_runner.hosts import Host

BEAT_PORT = 7009
"""Where the beats of a host's guests go, on its loopback."""
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
_STAMP = struct.Struct("@qq")
GAP_MS = 30.0
"""Beats farther apart than this are of two runs. (A checkpoint is a pause of less.)"""


@dataclass(frozen=True, slots=True)
class Run:
    """A guest ran from ``start_s`` to ``end_s`` (Unix time by this machine's one clock): its first and its last beat."""

    start_s: float
    end_s: float


class Output:
    """The beats that one host's guests sent since this was made, or since :meth:`clear`."""

    def __init__(self, host: Host) -> None:
        self._socket = host.socket(socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind(("127.0.0.1", BEAT_PORT))
        self._socket.setblocking(False)
        self._times: list[float] = []
        self._bytes = bytearray()

    def read(self) -> list[float]:
        """The times of all beats so far, in seconds."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(16, 64)
            except BlockingIOError:
                return self._times
            seconds, nanoseconds = _STAMP.unpack(ancillary[0][2])
            self._times.append(seconds + nanoseconds * 1e-9)
            self._bytes += data[-1:]

    def clear(self) -> None:
        """Forget them."""
        self.read()
        self._times.clear()
        self._bytes.clear()

    def runs_now(self, within_s: float = 0.15) -> bool:
        """Whether a guest has just put something out."""
        times = self.read()
        return bool(times) and time.time() - times[-1] < within_s

    def first_after(self, when_s: float) -> float | None:
        """The first beat at or after then."""
        return next((each for each in self.read() if each >= when_s), None)

    def last(self) -> float | None:
        """The last one."""
        times = self.read()
        return times[-1] if times else None

    def runs(self, gap_ms: float = GAP_MS) -> list[Run]:
        """When guests ran, in order."""
        return runs_of(self.read(), gap_ms)

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def runs_of(times: list[float], gap_ms: float = GAP_MS) -> list[Run]:
    """The runs that beats at these times show."""
    found: list[Run] = []
    start = before = None
    for each in times:
        if start is None or before is None:
            start = each
        elif (each - before) * 1000 > gap_ms:
            found.append(Run(start, before))
            start = each
        before = each
    if start is not None and before is not None:
        found.append(Run(start, before))
    return found


def overlaps(one: list[Run], other: list[Run]) -> list[Run]:
    """When both ran."""
    found = []
    for mine in one:
        for theirs in other:
            start, end = max(mine.start_s, theirs.start_s), min(mine.end_s, theirs.end_s)
            if start < end:
                found.append(Run(start, end))
    return sorted(found, key=lambda run: run.start_s)
