"""A process by its descriptor: stopped and seen to stand still, let go on, killed. For the fence; imports little."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

RUNS = frozenset("RS")
"""States of a thread that may execute user code, now or when something wakes it. In D and T it does not, and a stop that is
pending is taken before it would."""
STILL_S = 1.0


def start_ticks(pid: int) -> int:
    """When ``pid`` started, in clock ticks since boot; 0: there is none. With the pid it names a process for ever."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read(4096).rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def thread_states(pid: int) -> str:
    """The states of all threads of ``pid``, a letter each."""
    states = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                states.append(file.read(4096).rpartition(b")")[2].split()[0].decode("ascii", "replace"))
    return "".join(states)


class Process:
    """The process behind ``pidfd``; ``pid`` is its number as long as it lives."""

    def __init__(self, pidfd: int, pid: int) -> None:
        self.pidfd = pidfd
        self.pid = pid

    @property
    def gone(self) -> bool:
        """All of its threads have ended."""
        poller = select.poll()  # select() takes no descriptor over 1023
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def stop(self) -> bool:
        """Stop it, reversibly; whether all of its threads were seen to stand still within :data:`STILL_S`."""
        if not self._send(signal.SIGSTOP):
            return True
        until = time.monotonic() + STILL_S
        while not self.stands:
            if time.monotonic() > until:
                return False
            time.sleep(0.0002)
        return True

    @property
    def stands(self) -> bool:
        """Whether no thread of it executes user code, or will before it is let go on."""
        return self.gone or not RUNS & set(thread_states(self.pid))

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return False
        return True
