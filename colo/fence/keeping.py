"""What keeps the VM of a protected QEMU from running twice: the place where its guard is found, that guard, its lease."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from colo.errors import QemuError
from colo.fence.fence import FenceLost, FenceStatus, look_at_fence
from colo.fence.guard import Guard
from colo.fence.place import GuardCard, GuardPlace
from colo.lease.clock import now_ns
from colo.lease.meeting import Meeting
from colo.protocol.fencing import FenceState
from colo.protocol.lease import LEASE_SHARE
from colo.qemu.outgoing import Outgoing
from colo.qemu.process import Qemu

MAIN_LOOP_S = 2.0
SILENT_S = 0.25
"""A main loop that did not answer for so long, with nothing to block it, hangs by itself."""
BLOCKED_S = 0.75
"""The same, when it may have been blocked by its peer: it is asked for 0.5 s before that is yanked."""


class Keeping:
    """Place, guard and lease of ``qemu``. Where its process is not known here there is neither place nor guard; with
    ``lease_ms`` 0 there is no lease. What is asked for of something that there is not does nothing.

    ``tell`` hears what people should know, ``wake`` is called when there is something to look at. One thread calls the
    methods, but :meth:`status` is for any.
    """

    def __init__(
        self, qemu: Qemu, to: str, *, lease_ms: float, insecure: bool, allow_uids: Collection[int], watchdog: str,
        tell: Callable[[str], None], wake: Callable[[], None],
    ) -> None:
        """Raises QemuError when another guard has that QEMU, or nothing here could stop it when its lease ends."""
        self.qemu = qemu
        self.to = to
        self.lease_ms = lease_ms
        self.guard: Guard | None = None
        self._place: GuardPlace | None = None
        self._looked = False
        if qemu.pid is None:
            if lease_ms:
                raise QemuError(
                    "QEMU's process is not known (its QMP socket was made by another, or it runs on another machine), so "
                    "nothing could stop its VM when the lease ends: run `colo protect` beside QEMU, on a socket that QEMU "
                    "made itself")
            return
        self._place = GuardPlace(qemu.pid)
        self.guard = Guard(
            qemu, self._place.path, to, insecure=insecure, allow_uids=allow_uids, watchdog=watchdog, tell=tell, wake=wake)

    @property
    def control(self) -> Path | None:
        """Where the guard's control socket is to be; None: nowhere."""
        return self._place.control if self._place is not None else None

    def say(self, vm: str, qmp: str | os.PathLike[str]) -> None:
        """Leave word of who is guarded, for those who look for it by name."""
        if self._place is not None and self.qemu.pid is not None:
            self._place.say(GuardCard(vm, self.qemu.pid, os.path.abspath(os.fspath(qmp)), self.to, os.getpid()))

    # -- beginning

    def find(self) -> FenceStatus | None:
        """The fence that a guard before this one has left, taken over; None: there is none."""
        self._looked = True
        return self.guard.find() if self.guard is not None else None

    def hold(self, meeting: Callable[[], Meeting], notes: dict[str, Any], *, follows: bool = False) -> None:
        """Meet the secondary and have the lease held; returns when the first promise is there. ``follows``: it is to be one
        that follows this VM already. ``meeting`` is called when the secondary is there: only then is there something to
        claim a generation for.

        Raises ChannelError, ProtocolError, QemuError, Unsupported, FenceLost, and what ``meeting`` raises.
        """
        assert self.guard is not None
        sock = self.guard.reach()
        try:
            said = meeting()
        except BaseException:
            sock.close()
            raise
        welcome = self.guard.meet(sock, said)
        if follows and not welcome.following:
            raise QemuError("it does not follow this VM any more")
        self.guard.hold(notes=notes)

    # -- while it lasts

    @property
    def leased(self) -> bool:
        """Whether there is a lease to be kept."""
        return self.guard is not None and self.lease_ms > 0

    @property
    def fence(self) -> FenceStatus | None:
        """What the fence said last; None: there is none."""
        return self.guard.status if self.guard is not None else None

    @property
    def heard_of(self) -> bool:
        """Whether the fence is connected to the other side."""
        return (fence := self.fence) is not None and fence.connected

    @property
    def taken(self) -> int:
        """The generation that the other side says it has claimed; 0: none."""
        return fence.taken if (fence := self.fence) is not None else 0

    def tend(self) -> None:
        """See to the fence; at :attr:`due` at the latest. Raises Unsupported when none can be had."""
        if self.guard is not None and self.lease_ms:
            self.guard.tend()

    @property
    def due(self) -> float:
        """When :meth:`tend` and :meth:`why_lost` have something to do, by ``time.monotonic()``, if nothing comes before."""
        return self.guard.due if self.guard is not None and self.lease_ms else math.inf

    def why_lost(self) -> str | None:
        """Why the secondary counts as lost, by the lease; None if it does not. Tends, too."""
        self.tend()
        guard, fence = self.guard, self.fence
        if guard is None or fence is None or not self.lease_ms:
            return None
        if fence.taken:
            return "the other side took over"
        if fence.wanted:
            return "the secondary lost this primary, and wants to take over"
        if guard.state_is(FenceState.STANDS):
            return fence.reason
        silent_ms = guard.silent_ms
        if silent_ms is not None and guard.lease_ms and silent_ms > guard.lease_ms * (1 - 1 / LEASE_SHARE):
            return f"the secondary has promised nothing for {silent_ms:.0f} ms"
        return None

    def usable(self, primary: Outgoing, *, in_checkpoint: bool, yank: bool) -> bool:
        """Whether QEMU could be told to run alone: its main loop answers, once (``yank``) its hanging channel is gone."""
        guard = self.guard
        if guard is not None and guard.stopped_in_time:
            return True  # stopped, in time: nothing can be asked before it goes on, and nothing was wrong before
        asked_ns = now_ns()
        answers = primary.why_not_alone(MAIN_LOOP_S) is None if yank else primary.main_loop_responds(MAIN_LOOP_S)
        if answers or guard is None or not guard.stopped_in_time:
            return answers
        # Stopped while it was asked. A peer that hangs blocks a main loop only amid a checkpoint, and until it is yanked.
        fence = guard.status
        had_s = (fence.lease_end_ns - asked_ns) / 1e9 if fence is not None else 0.0
        return had_s < (BLOCKED_S if in_checkpoint else SILENT_S)

    def status(self) -> dict[str, Any]:
        """Of the lease, for the session's status; keys are stable."""
        guard, fence = self.guard, self.fence
        return {
            "lease_ms": self.lease_ms,
            "left_ms": None if guard is None or guard.left_ms is None else round(guard.left_ms, 1),
            "fence": fence.state.lower() if fence is not None else None,
            "fence_pid": fence.fence_pid if fence is not None else None,
            "realtime": fence.hardened.get("realtime") if fence is not None else None,
            "locked": fence.hardened.get("locked") if fence is not None else None,
            "watchdog": fence.watchdog if fence is not None else None,
        }

    # -- what was decided

    def answering(self) -> None:
        """A claim is under way."""
        if self.guard is not None:
            self.guard.answering()

    def alone(self, generation: int, reason: str) -> None:
        """``generation`` was won: the VM goes on without a lease, and the secondary hears so, if it hears."""
        if self.guard is not None and self.lease_ms:
            self.guard.alone(generation, reason)

    def prove(self, reason: str) -> None:
        """Leave the VM to the other side: stopped for good, and said so."""
        if self.guard is not None and self.lease_ms:
            self.guard.prove(reason)

    def end(self, reason: str) -> None:
        """The VM's process is to end."""
        if self.guard is not None and self.lease_ms:
            self.guard.end(reason)

    def ended(self, reason: str) -> None:
        """The VM was ended on purpose, and nobody is to run it; its process is left to end."""
        if self.guard is not None:
            self.guard.ended(reason)

    def moves(self, reason: str) -> None:
        """The VM's process is gone, and that was not the VM's end: the other side may run it."""
        if self.guard is not None:
            self.guard.moves(reason)

    def release(self, *, stopped: bool = False) -> None:
        """The fence is not needed any more. Any number of times."""
        if self.guard is not None:
            self.guard.release(stopped=stopped)

    def close(self) -> None:
        """Go. A fence that is needed stays, and what it needs to be found by. Any number of times."""
        stays = self.guard is not None and self.guard.leave() and self.qemu.alive()
        if self._place is None:
            return
        if not self._looked:  # nothing was begun: one that a guard before this one has left is not this one's to lose
            stays = True
            with contextlib.suppress(FenceLost):
                stays = look_at_fence(self._place.path) is not None
        self._place.close(fence_stays=stays)
