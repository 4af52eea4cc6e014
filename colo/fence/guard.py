"""A guard over one QEMU: its fence is found, started, replaced, and told what was decided; its secondary is met and heard.

The fence holds the lease and stops the VM by itself. The guard sees to it that there is one, stops the VM in its stead
when it does not, and carries out what the protector has decided even when the fence is dead.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from colo.abc import Transport
from colo.errors import ColoError, QemuError, Unsupported
from colo.fence.fence import FenceHandle, FenceLost, FenceStatus
from colo.fence.processes import start_ticks, thread_states
from colo.lease.clock import now_ns
from colo.lease.connection import MEET_S, LeaseConnection
from colo.lease.meeting import Meeting, Welcome
from colo.protocol.fencing import FenceState
from colo.protocol.lease import LEASE_SHARE
from colo.qemu.process import Qemu
from colo.transport import connect

LEASED_S = 5.0
"""Within this a fence must have its first promise."""
LATE_NS = 40_000_000
"""So late a fence may be with stopping the VM before the guard does."""
LOOK_S = 0.01
"""How often the guard looks whether it is."""
SILENT_LEFT = 0.55
"""A fence is asked whether it is there when no more than this is left of a lease: a quarter brings a promise."""
ASK_SHARE = 16
"""And has this part of a lease (1/16) to answer."""
NEW_SHARE = 4
"""A new one has this part of a lease (1/4) to have a promise."""
SAY_S = 0.025
"""A fence that does not say within this that all is well is not waited for."""


class Guard:
    """``tell`` hears what people should know. One thread calls the methods; :attr:`status` changes on the fence's own."""

    def __init__(
        self, qemu: Qemu, directory: Path, to: str, *, insecure: bool, allow_uids: Collection[int] = (),
        watchdog: str, tell: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        self.qemu = qemu
        self.directory = directory
        self.to = to
        self.insecure = insecure
        self.allow_uids = allow_uids
        self.watchdog = watchdog
        self.status: FenceStatus | None = None
        self.notice = ""
        """Why the secondary could not take over as things are, by its own word."""
        self._tell = tell
        self._wake = wake
        self._fence: FenceHandle | None = None
        self._lost = threading.Event()
        self._asked_s = self._replaced_s = 0.0
        self._meeting = Meeting()
        self._welcome = Welcome()
        self._stopped_here = threading.Event()
        self._holds = False
        self._second_line: threading.Thread | None = None
        self._notes: dict[str, Any] = {}
        self._peer: tuple[int, object] = (0, None)

    # -- beginning

    def find(self) -> FenceStatus | None:
        """The fence of a guard before this one, taken over; None: there is none."""
        self._fence = FenceHandle.find(self.directory, self._changed)
        if self._fence is None:
            return None
        self.status = self._fence.last
        return self.status

    def reach(self) -> Transport:
        """A connection to the secondary, to :meth:`meet` it over. Raises ChannelError when it cannot be reached."""
        return connect(self.to, MEET_S, insecure=self.insecure, allow_uids=self.allow_uids)

    def meet(self, sock: Transport, meeting: Meeting) -> Welcome:
        """Meet the secondary. Raises ProtocolError when it refuses, ChannelError when it does not answer."""
        connection = LeaseConnection(sock, meeting)
        self._peer, self._meeting, self._welcome = connection.peer, meeting, connection.welcome
        connection.close()
        self._heard(connection.welcome.notice)
        return connection.welcome

    def hold(self, *, notes: dict[str, Any], end_ns: int = 0) -> None:
        """Have the lease held from now on; returns when the first promise is there. Raises Unsupported, FenceLost."""
        if self._fence is None:
            assert self.qemu.pid is not None
            self._fence = FenceHandle.start(self.qemu.pid, self.directory, self._changed)
        self._notes = {
            **notes, "token": self._welcome.token, "lease_ms": self._welcome.lease_ms, "peer": [int(self._peer[0]),
            self._peer[1]]}
        self._lease(end_ns)
        self._begin_holding()
        deadline = time.monotonic() + LEASED_S
        while not self._state_is(FenceState.LEASED):
            if time.monotonic() > deadline:
                status = self.status
                raise Unsupported(
                    f"the secondary promised nothing within {LEASED_S:g} s"
                    f"{f': {status.said}' if status is not None and status.said else ''}; see what `colo secondary` says")
            time.sleep(0.002)
            self.status = self._fence.status()
        if self.watchdog:
            self._fence.watchdog(self.watchdog, max(2, int(self._welcome.lease_ms / 1000 * 2) + 1))

    def adopt(self, status: FenceStatus) -> None:
        """Go on with a fence that was found, as it is."""
        self._begin_holding()
        self._notes = status.notes
        self._meeting = Meeting(generation=status.generation)
        self._heard(status.notice)

    def _begin_holding(self) -> None:
        self._holds = True
        self._second_line = threading.Thread(target=self._look_at_lease, name="colo-second-line", daemon=True)
        self._second_line.start()

    def _lease(self, end_ns: int) -> None:
        assert self._fence is not None
        if self._peer[1] is None:  # adopted from a guard before this one: what it told its fence
            family, address = self._notes.get("peer", (0, None))
            self._peer = family, tuple(address) if isinstance(address, list) else address
            self._welcome = Welcome(token=str(self._notes.get("token", "")), lease_ms=float(self._notes.get("lease_ms", 0)))
        self.status = self._fence.lease(
            self._peer, token=self._welcome.token, generation=self._meeting.generation, lease_ms=self._welcome.lease_ms,
            notes=self._notes, end_ns=end_ns, allow_uids=self.allow_uids)

    # -- while it lasts

    def tend(self) -> None:
        """See to the fence; to be called at :attr:`due` at the latest. Raises Unsupported when none can be had."""
        self._ask_silent_fence()
        if self._holds and self._lost.is_set():
            self._replace()
        if self._stopped_here.is_set() and self.status is not None and self.status.state == FenceState.LEASED.name:
            self._ask_why()
        if self._holds and self.status is not None:
            self._heard(self.status.notice)

    @property
    def due(self) -> float:
        """When :meth:`tend` is next to be called, by ``time.monotonic()``, if ``wake`` does not call before; and when
        :attr:`silent_ms` is next to be looked at."""
        now = time.monotonic()
        if self._holds and self._lost.is_set():
            return now
        left_ms, lease_ms = self.left_ms, self.lease_ms
        if left_ms is None or not self.state_is(FenceState.LEASED):
            return math.inf
        ask_ms = max(left_ms - lease_ms * SILENT_LEFT, lease_ms / ASK_SHARE)
        lost_ms = left_ms - lease_ms / LEASE_SHARE
        return now + min(ask_ms, lost_ms if lost_ms > 0 else ask_ms) / 1000 + 0.001

    def _ask_silent_fence(self) -> None:
        """A fence that is frozen renews nothing, and the VM would lose its secondary with it."""
        left_ms = self.left_ms
        if left_ms is None or self._fence is None or not self.state_is(FenceState.LEASED) or self._lost.is_set():
            return
        answer_s = self.lease_ms / ASK_SHARE / 1000
        if left_ms > self.lease_ms * SILENT_LEFT or time.monotonic() < self._asked_s + answer_s:
            return
        try:
            self.status = self._fence.status(answer_s)
        except (FenceLost, Unsupported):
            self._lost.set()
        self._asked_s = time.monotonic()

    @property
    def generation(self) -> int:
        """Of the lease that is held."""
        return self.status.generation if self.status is not None else 0

    @property
    def left_ms(self) -> float | None:
        """What is left of the lease; None: there is none."""
        status = self.status
        if not self._holds or status is None or not status.lease_end_ns or status.state not in ("LEASED", "OVER"):
            return None
        return max(0.0, (status.lease_end_ns - now_ns()) / 1e6)

    @property
    def silent_ms(self) -> float | None:
        """For how long the secondary has promised nothing, where that says something of it: the fence is not a new one."""
        left_ms = self.left_ms
        if left_ms is None or time.monotonic() < self._replaced_s + self.lease_ms / NEW_SHARE / 1000:
            return None
        return self.lease_ms - left_ms

    @property
    def lease_ms(self) -> float:
        """How long one is."""
        return self.status.lease_ns / 1e6 if self.status is not None else 0.0

    def state_is(self, *states: FenceState) -> bool:
        """Whether the fence says that it is in one of these states."""
        status = self.status
        return self._holds and status is not None and status.state in {state.name for state in states}

    def _state_is(self, state: FenceState) -> bool:
        return self.status is not None and self.status.state == state.name

    def _changed(self, status: FenceStatus | None) -> None:
        if status is None:
            self._lost.set()
        else:
            self.status = status
            if status.state != FenceState.LEASED.name or status.lease_end_ns > now_ns():
                self._stopped_here.clear()
        self._wake()

    def _replace(self) -> None:
        """Another fence, which knows how long the lease of the one before it lasts."""
        status = self.status
        if status is not None and status.state in ("ALONE", "GONE", "ENDING"):
            self._lost.clear()
            return
        self._kill_fence()
        assert self.qemu.pid is not None
        if not self.qemu.alive():
            self._lost.clear()
            return
        self._tell("the fence beside QEMU is gone, or does not answer; another is started")
        self._fence = FenceHandle.start(self.qemu.pid, self.directory, self._changed)
        self._replaced_s = time.monotonic()
        self._lost.clear()
        self._lease(status.lease_end_ns if status is not None and status.lease_end_ns else 1)

    def _kill_fence(self) -> None:
        """One that does not answer may still live, and must not stop the VM any more when another is there."""
        status = self.status
        if self._fence is not None:
            self._fence.close()
            self._fence = None
        if status is None:
            return
        with contextlib.suppress(OSError):
            if b"fence_process" in Path(f"/proc/{status.fence_pid}/cmdline").read_bytes() and start_ticks(status.fence_pid):
                os.kill(status.fence_pid, signal.SIGKILL)

    def _look_at_lease(self) -> None:
        """On a thread of its own: whatever else the guard waits for, a VM whose lease is over does not run."""
        while self._holds and self._second_line is threading.current_thread():
            time.sleep(LOOK_S)
            status = self.status
            if self._stopped_here.is_set() or status is None or status.state != FenceState.LEASED.name:
                continue
            if self._holds and status.lease_end_ns and now_ns() >= status.lease_end_ns + LATE_NS and not self._is_well():
                self._stopped_here.set()
                self._signal(signal.SIGSTOP)
                self._wake()

    def _is_well(self) -> bool:
        """Whether the fence is there and does its work. What it told before may be old, if it is the guard that was
        frozen."""
        try:
            assert self._fence is not None
            status = self._fence.status(SAY_S)
        except (AssertionError, FenceLost, Unsupported):
            return False
        self.status = status
        return status.state != FenceState.LEASED.name or now_ns() < status.lease_end_ns + LATE_NS

    def _ask_why(self) -> None:
        self._tell("the lease ran out and the fence did not stop the VM: the guard did")
        try:
            assert self._fence is not None
            self.status = self._fence.status()
        except (FenceLost, Unsupported):
            self._lost.set()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(QemuError):
            self.qemu.send_signal(number)

    @property
    def stopped_in_time(self) -> bool:
        """Whether the VM stands still because its lease is over, by the fence or by this guard."""
        return self._holds and (self._stopped_here.is_set() or self.state_is(FenceState.OVER))

    @property
    def vm_is_stopped(self) -> bool:
        """Whether the VM's process is stopped by a signal."""
        return self.qemu.pid is not None and set(thread_states(self.qemu.pid)) <= {"T", "t"}

    # -- what was decided; each also when the fence is dead

    def answering(self) -> None:
        """A claim is under way."""
        with contextlib.suppress(ColoError):
            if self._fence is not None:
                self._fence.answering()

    def alone(self, generation: int, reason: str) -> None:
        """``generation`` was won: the VM goes on, and the secondary hears so, if it hears."""
        self._holds = False
        if self._second_line is not None:
            self._second_line.join()
        if self._stopped_here.is_set():
            self._signal(signal.SIGCONT)
        self._command(lambda fence: fence.alone(generation, reason), lambda: self._signal(signal.SIGCONT))

    def prove(self, reason: str) -> None:
        """Leave the VM to the other side: stopped for good, and said so."""
        self._command(lambda fence: fence.prove(reason), lambda: self._signal(signal.SIGSTOP))

    def end(self, reason: str) -> None:
        """The VM's process is to end."""
        self._command(lambda fence: fence.end(reason), lambda: self._signal(signal.SIGKILL))
        self._signal(signal.SIGKILL)

    def ended(self, reason: str) -> None:
        """The VM was ended on purpose, and nobody is to run it; its process is left to end."""
        self._command(lambda fence: fence.ended(reason), lambda: None)

    def moves(self, reason: str) -> None:
        """The VM's process is gone, and that was not the VM's end: the other side may run it."""
        if self._holds:
            self._command(lambda fence: fence.moves(reason), lambda: None)

    def _command(self, command: Callable[[FenceHandle], FenceStatus], otherwise: Callable[[], None]) -> None:
        if self._fence is not None:
            try:
                self.status = command(self._fence)
                return
            except (FenceLost, Unsupported) as error:
                self._tell(f"{error}; the guard does it itself")
                self._kill_fence()
        otherwise()

    # -- the secondary

    def _heard(self, notice: object) -> None:
        text = notice[:512] if isinstance(notice, str) else ""
        if text != self.notice:
            self.notice = text
            self._tell(f"the secondary could not take over: {text}" if text else "the secondary could take over again")

    # -- the end

    def release(self, *, stopped: bool = False) -> None:
        """The fence is not needed any more. Any number of times."""
        self._holds = False
        if self._fence is not None:
            with contextlib.suppress(ColoError):
                self._fence.release(stopped=stopped)
            self._fence = None

    def leave(self) -> bool:
        """Go, and leave the fence as it is, if there is one: it holds the lease, or keeps the VM stopped. Whether there
        is."""
        self._holds = False
        stays = False
        if self._fence is not None:
            stays = not self._fence.lost and self.status is not None and self.status.state not in ("", "ALONE", "GONE")
            self._fence.close()
            self._fence = None
        return stays
