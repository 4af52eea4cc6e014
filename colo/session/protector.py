"""The primary's side, for an unmodified QEMU: set it up, watch it, and decide for it when its secondary is lost.

QEMU itself waits for ever for a secondary that hangs, with its VM standing still. Here every pause has a deadline; when it
passes, or QEMU says that the channel broke, the arbiter is asked: the winner's VM runs on alone, the loser's is ended. Until
that is decided, the VM runs only as long as its lease lasts: a fence beside QEMU (:mod:`colo.fence.guard`) sees to that.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from colo.arbiter import Holder, Runner, arbiter_from_uri, init_arbiter, may_protect, take_first
from colo.control.server import ControlServer
from colo.errors import ArbitrationError, ArbitrationLost, ChannelError, ColoError, QemuError
from colo.fence.guard import Guard
from colo.fence.place import GuardCard, GuardPlace
from colo.lease.clock import now_ns
from colo.lease.meeting import Meeting
from colo.protocol.fencing import FenceState
from colo.qemu.endings import Ending as QemuEnding
from colo.qemu.endings import EndingActions, EndingWatch, Follows
from colo.qemu.pauses import PauseMeter
from colo.qemu.primary import QemuPrimary
from colo.qemu.qmp import QmpError, QmpTimeout
from colo.session.protector_config import Ending, ProtectorConfig, ProtectorReport
from colo.trace import listening
from colo.transport import check_listening, check_plaintext

__all__ = ["Ending", "Protector", "ProtectorConfig", "ProtectorReport"]

WATCH_S = 0.02
GENERATION_S = 0.2
"""How often the generation is looked at; a takeover is noticed, and this VM ended, within this time."""
LEASE_SHARE = 3
"""With a third of a lease left, and no promise coming, the secondary counts as lost: there must be time to ask the
arbiter."""
RETRY_S = 1.0
RECONNECT_S = 2.0
MAIN_LOOP_S = 2.0
SILENT_S = 0.25
"""A main loop that did not answer for so long, with nothing to block it, hangs by itself."""
BLOCKED_S = 0.75
"""The same, when it may have been blocked by its peer: it is asked for 0.5 s before that is yanked."""
TAKEN_S, TAKEN_UNHEARD_S = 30.0, 1.0
"""So long a VM that was taken over is kept, stopped, in case the other side cannot run it: while that is heard of, and
not."""
END_S, MOVE_S = 10.0, 1.0
"""So long a QEMU that ends has for closing its disks: where its VM ends with it, and where the other side waits for it."""
ENDING_S = 2.0
"""So long a process may take to end when its monitor is gone already."""
HAND_OVER_S = 10.0
HAND_OVER_LEASES = 3
"""So long the other side may take to take a VM over that is of no use here: while it is heard of, and, in leases, anyhow."""


class Protector:
    """Sets a running QEMU up as primary, and watches it. ::

        with Protector(ProtectorConfig("/run/vm1/qmp.sock", "unix:/run/vm1/colo.sock", arbiter="file:/shared/vm1")) as p:
            report = p.run()

    ``on_event(kind, data)`` hears ``protecting``, ``pause`` (ms), ``notice``, ``lost``, ``alone`` and ``ended``.
    """

    def __init__(
        self, config: ProtectorConfig, *, on_event: Callable[[str, Any], None] = lambda kind, data: None
    ) -> None:
        self.config = config
        self._pid = os.getpid()
        self.state = "starting"
        self._on_event = listening(on_event)
        self._over = False
        self._leave: str | None = None
        self._end: str | None = None
        self._stir = threading.Event()
        self._meter: PauseMeter | None = None
        self._place: GuardPlace | None = None
        self._control: ControlServer | None = None
        self._guard: Guard | None = None
        check_plaintext(config.to, insecure=config.insecure)
        check_listening(config.to, config.allow_uids)
        self.primary = QemuPrimary.attach(config.qmp)
        self._endings = EndingWatch(self.primary.qemu, on_ending=lambda ending: self._stir.set())
        self._actions: EndingActions | None = None
        try:
            self._runner = Runner.of(self.primary.qemu.pid) if self.primary.qemu.pid is not None else None
            self._vm = config.vm or self.primary.qemu.name
            if config.init_arbiter:
                init_arbiter(config.arbiter, vm=self._vm or f"qemu-{self.primary.qemu.pid}", uuid=self.primary.uuid)
            self._arbiter = arbiter_from_uri(config.arbiter, role="primary", vm=config.vm, uuid=self.primary.uuid)
            self._arbiter.know_vm(vm=self._vm)  # as -name has it: the arbiter's own name for it may be another
            self._generation = self._arbiter.current()
            self._claim_token = ""
            self._take_place()
        except BaseException:
            self.primary.detach()
            raise

    def _take_place(self) -> None:
        qemu = self.primary.qemu
        if qemu.pid is None:
            if self.config.lease_ms:
                raise QemuError(
                    "QEMU's process is not known (its QMP socket was made by another, or it runs on another machine), so "
                    "nothing "
                    "could stop its VM when the lease ends: run `colo protect` beside QEMU, on a socket that QEMU made "
                    "itself")
            return
        self._place = GuardPlace(qemu.pid)
        self._guard = Guard(
            qemu, self._place.path, self.config.to, insecure=self.config.insecure,
            allow_uids=self.config.allow_uids, watchdog=self.config.watchdog,
            tell=lambda text: self._tell("notice", text), wake=self._stir.set)
        self._control = ControlServer(self._place.control, {
            "status": self.status, "unprotect": self._unprotect_command, "stop": self._stop_command})
        self._place.say(GuardCard(
            self._known_as, qemu.pid, os.path.abspath(os.fspath(self.config.qmp)),
            self.config.to, os.getpid()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the monitor's connection; QEMU lives on, under its fence if it is protected or undecided."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        if self._control is not None:
            self._control.close()
        self._endings.close()
        if self._actions is not None:
            self._actions.restore()
        fenced = self._guard is not None and self._guard.leave() and self.primary.qemu.alive()
        if self._place is not None:
            self._place.close(fence_stays=fenced)
        self.primary.detach()
        self._arbiter.close()

    # -- requests, from any thread

    def stop(self, reason: str = "asked to end protection") -> None:
        """End protection in order: this side claims the VM first, so that the secondary does not take over; the VM runs
        on."""
        self._leave = self._leave or reason
        self._stir.set()

    def end_vm(self, reason: str = "stopped by its user") -> None:
        """End the VM, on purpose: neither side runs it."""
        self._end = self._end or reason
        self._stir.set()

    def _unprotect_command(self) -> dict[str, Any]:
        self.stop("`colo unprotect`")
        return {"state": self.state}

    def _stop_command(self) -> dict[str, Any]:
        self.end_vm("`colo stop`")
        return {"state": self.state}

    @property
    def checkpoints(self) -> int:
        """Pauses seen so far."""
        return self._meter.count if self._meter else 0

    @property
    def running_share(self) -> float | None:
        """Which part of the last 5 s the VM ran between its pauses; None of a session younger than a second."""
        return self._meter.running_share if self._meter else None

    def status(self) -> dict[str, Any]:
        """Keys are stable."""
        guard = self._guard
        fence = guard.status if guard is not None else None
        return {
            "state": self.state,
            "over": self._over,
            "vm": self._known_as,
            "pid": self.primary.qemu.pid,
            "to": self.config.to,
            "checkpoints": self.checkpoints,
            "checkpoint": self.checkpoints,
            "running_share": self.running_share,
            "generation": self._generation,
            "lease": {
                "lease_ms": self.config.lease_ms,
                "left_ms": None if guard is None or guard.left_ms is None else round(guard.left_ms, 1),
                "fence": fence.state.lower() if fence is not None else None,
                "fence_pid": fence.fence_pid if fence is not None else None,
                "realtime": fence.hardened.get("realtime") if fence is not None else None,
                "locked": fence.hardened.get("locked") if fence is not None else None,
                "watchdog": fence.watchdog if fence is not None else None,
            },
            "secondary_notice": guard.notice if guard is not None else "",
            "statistics": {"checkpoints": self.checkpoints, "pause_ms": self._meter.summary() if self._meter else None},
        }

    # -- the session

    def run(self) -> ProtectorReport:
        """Protect until it ends; the report says how. Raises QemuError, QemuUnsupported, ChannelError, ProtocolError or
        ArbitrationError if it cannot begin, ArbitrationError when it was asked to end while who may run was undecided: the VM
        then stands still, under its fence, until another guard comes."""
        self._meter = self.primary.measure_pauses(
            lambda pause_ms: self._tell("pause", pause_ms), lambda text: self._tell("notice", text))
        report = self._resume_guarding()
        if report is None:
            for disk in self.primary.unreplicated_disks():
                self._tell("notice", f"disk {disk} is not replicated: it must be on storage that both sides share")
            report = self._protect()
        while report.ending is Ending.ALONE and self.config.reconnect and self._leave is None and self._end is None:
            self.state = "alone"
            self._tell("alone", report)
            report = self._protect_again(report)
        self.state = report.ending.name.lower()
        self._over = True
        self._tell("ended", report)
        return report

    # -- beginning

    def _protect(self) -> ProtectorReport:
        """Meet the secondary, have the lease held, make QEMU a primary, and watch it."""
        self.state = "setting up"
        if self._actions is None:
            self._actions = EndingActions.hold(self.primary.qemu)
            if self._actions.notice:
                self._tell("notice", self._actions.notice)
        self._begin_lease()
        began = self.primary.streams_begun
        try:
            self.primary.set_up(self.config.to, self.config.settings, timeout_s=self.config.set_up_s)
        except QemuError as error:
            if self.primary.streams_begun == began:
                self._let_go(f"protection did not begin: {error}")
                raise
            # The secondary may have had all of it, and be about to take over: only the arbiter can tell.
            report = self._settle(f"protection did not begin: {error}")
            if report.ending is Ending.ALONE:
                raise
            return report
        for text in self.primary.notices:
            self._tell("notice", text)
        self.state = "protecting"
        self._tell("protecting", self.config.to)
        return self._watch()

    def _begin_lease(self) -> None:
        guard = self._guard
        if not self.config.lease_ms or guard is None:
            self._tell(
                "notice", "no lease: nothing stops this VM by time when it is cut off from the secondary and the arbiter; "
                f"who may run rests on {self.config.arbiter.partition(':')[0]}: alone")
            return
        identity = self._arbiter.identity
        sock = guard.reach()  # first: a generation is not claimed for a secondary that is not there
        if identity is not None:
            assert self._runner is not None
            claimed = take_first(self._arbiter, self._runner, reason="protect")
            self._generation, self._claim_token = claimed.generation, claimed.token
        meeting = Meeting(
            vm=self._known_as, uuid=self.primary.uuid,
            arbiter_id=identity.id if identity is not None else "", generation=self._generation,
            claim_token=self._claim_token, lease_ms=self.config.lease_ms, who=self._who)
        guard.meet(sock, meeting)
        guard.hold(notes={"to": self.config.to, "arbiter": self.config.arbiter, "vm": self._vm})

    @property
    def _known_as(self) -> str:
        """The VM's name: as it was given, as its arbiter has it, or as QEMU does."""
        identity = self._arbiter.identity
        return self.config.vm or (identity.vm if identity is not None else "") or self._vm

    @property
    def _who(self) -> str:
        return f"{socket.gethostname()} (QEMU pid {self.primary.qemu.pid})"

    def _let_go(self, reason: str) -> None:
        """Nothing that the secondary could run has come to be: the VM runs on, and no lease is needed."""
        if self._guard is not None and self.config.lease_ms:
            self._guard.alone(self._generation + 1, reason)
            self._guard.release()

    def _resume_guarding(self) -> ProtectorReport | None:
        """A QEMU that is in COLO already: the guard before this one died, and this one goes on. None: it is not."""
        guard = self._guard
        if guard is None:
            return None
        found = guard.find()
        if found is not None and found.generation:
            guard.adopt(found)
            self._generation = found.generation
            if found.notes.get("arbiter") not in (None, self.config.arbiter):
                guard.leave()
                raise QemuError(
                    f"this QEMU is protected already, with --arbiter {found.notes['arbiter']} and --to "
                    f"{found.notes.get('to')}: "
                    "give these, or end that protection first (`colo unprotect`)")
            self._tell("notice", f"this VM's fence (pid {found.fence_pid}) is here: protection goes on where the guard "
                                 "left it")
            if (won := self._won_before()) is not None:
                return self._run_alone(won, "the guard before this one had won the VM for this side", Ending.ALONE,
                                       time.monotonic())
            if found.state in ("OVER", "STANDS"):
                return self._stands_still(found.reason)
        elif self.primary.migration_status() == "colo":
            try:
                held = self._holder_of_running()
            except ArbitrationLost as error:
                return self._lost(f"this QEMU is a COLO primary, but {error}")
            if held is None:
                return None
            self._generation, self._claim_token = held.generation, held.token
            self._tell("notice", "this QEMU is a COLO primary already, and no fence is beside it: one is made")
            try:
                self._meet_again()
            except ColoError as error:
                return self._settle(f"the secondary cannot be met again: {error}")
        else:
            if found is not None:
                guard.release()
            return None
        status = self.primary.migration_status()
        if status != "colo":
            return self._settle(f"QEMU left COLO while nobody guarded it (its migration is {status!r})")
        self.state = "protecting"
        self._tell("protecting", self.config.to)
        return self._watch()

    def _holder_of_running(self) -> Holder | None:
        """The generation that this very QEMU holds; None: it was made a primary by others. Raises ArbitrationLost when
        somebody else has the VM: it must not run here."""
        if not self.config.lease_ms or self._arbiter.identity is None:
            return None
        assert self._runner is not None
        held = self._arbiter.holder()
        may_protect(held, self._runner, uri=self.config.arbiter, vm=self._known_as)
        return held if held.runner == self._runner else None

    def _meet_again(self) -> None:
        assert self._guard is not None
        identity = self._arbiter.identity
        assert identity is not None
        welcome = self._guard.meet(self._guard.reach(), Meeting(
            vm=self._known_as, uuid=self.primary.uuid, arbiter_id=identity.id, generation=self._generation,
            claim_token=self._claim_token, lease_ms=self.config.lease_ms, who=self._who))
        if not welcome.following:
            raise QemuError("it does not follow this VM any more")
        self._guard.hold(notes={"to": self.config.to, "arbiter": self.config.arbiter, "vm": self._vm})

    def _stands_still(self, reason: str) -> ProtectorReport:
        """The fence has stopped the VM, and nobody was there to ask the arbiter."""
        self.state = "undecided"
        return self._settle(f"the VM was stopped by its fence ({reason})")

    def _protect_again(self, alone: ProtectorReport) -> ProtectorReport:
        """Alone: look for a secondary, for ever."""
        said = ""
        while True:
            if self._stir_wait(RECONNECT_S):
                if self._leave is not None:
                    return ProtectorReport(Ending.UNPROTECTED, self._leave, self.checkpoints, alone.freed_ms)
                if self._end is not None:
                    return self._end_on_purpose(self._end)
            if not self.primary.qemu.alive():
                return self._report(Ending.PRIMARY_GONE, f"{alone.reason}; its process ended while it ran alone")
            try:
                return self._protect()
            except ArbitrationLost:
                raise
            except (ChannelError, QemuError, ColoError) as error:
                if not self.primary.qemu.alive():
                    return self._report(Ending.PRIMARY_GONE, f"{alone.reason}; its process ended while it ran alone")
                if str(error) != said:
                    said = str(error)
                    self._tell("notice", f"no secondary yet, it is tried again: {error}")
                self.state = "alone"

    def _stir_wait(self, seconds: float) -> bool:
        """Wait so long; True as soon as something was asked for."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._leave is not None or self._end is not None:
                return True
            self._stir.wait(min(0.1, max(0.0, until - time.monotonic())))
            self._stir.clear()
        return self._leave is not None or self._end is not None

    # -- watching

    def _watch(self) -> ProtectorReport:
        assert self._meter is not None
        seen: tuple[int, int | None] = (-1, None)
        since = time.monotonic()
        next_look = 0.0
        while True:
            self._stir.wait(WATCH_S)
            self._stir.clear()
            now = time.monotonic()
            if (ending := self._endings.ending) is not None or not self.primary.qemu.alive():
                return self._ending(ending or self._endings.verdict())
            if self._end is not None:
                return self._end_on_purpose(self._end)
            if self._leave is not None:
                return self._settle(self._leave, Ending.UNPROTECTED)
            if now >= next_look:
                next_look = now + GENERATION_S
                if self._generation_is_gone():
                    return self._lost("its generation is over: the secondary took over")
            if (reason := self._look_at_guard()) is not None:
                return self._settle(reason)
            if self.primary.colo_exited.is_set():
                return self._settle(f"QEMU left COLO ({self.primary.exit_reason or 'no reason given'})")
            progress = (self._meter.count, self._meter.stopped_at_us)
            if progress != seen:
                seen, since = progress, now
            elif hung := self._hung((now - since) * 1000, stopped=progress[1] is not None):
                return self._settle(hung)

    def _look_at_guard(self) -> str | None:
        """Why the secondary counts as lost, by the lease; None if it does not."""
        guard = self._guard
        if guard is None or not self.config.lease_ms:
            return None
        guard.tend()
        status = guard.status
        if status is None:
            return None
        if status.taken:
            return "the other side took over"
        if status.wanted:
            return "the secondary lost this primary, and wants to take over"
        if guard.state_is(FenceState.STANDS):
            return status.reason
        silent_ms = guard.silent_ms
        if silent_ms is not None and guard.lease_ms and silent_ms > guard.lease_ms * (1 - 1 / LEASE_SHARE):
            return f"the secondary has promised nothing for {silent_ms:.0f} ms"
        return None

    def _hung(self, still_ms: float, *, stopped: bool) -> str | None:
        """Why the secondary counts as hung, ``still_ms`` after the VM last stopped or went on; None if it does not."""
        deadline_ms = self.config.deadline_ms
        if stopped:
            if still_ms >= deadline_ms:
                return f"the VM stood still for {deadline_ms:g} ms, the secondary hangs"
        elif still_ms >= deadline_ms + self.config.settings.checkpoint_delay_ms:
            # It waits for the answer to a REQUEST, with its VM running, and would do so for ever.
            return f"no checkpoint has begun {deadline_ms:g} ms after it was due, the secondary hangs"
        return None

    def _generation_is_gone(self) -> bool:
        try:
            return not self._arbiter.still_holds(self._generation)
        except ArbitrationError:
            return False  # it cannot be told just now; while the lease lasts, nobody takes over

    # -- deciding

    def _settle(self, reason: str, won: Ending = Ending.ALONE) -> ProtectorReport:
        """The secondary is lost, or let go. Whoever wins the generation runs."""
        noticed = time.monotonic()
        self.state = "settling"
        in_order = won is Ending.UNPROTECTED
        self._tell("notice" if in_order else "lost", reason)
        if self._guard is not None:
            self._guard.answering()
        # Asked to leave, the channel is left whole until the claim is won: if it cannot be, protection goes on.
        if not self._usable(yank=not in_order):
            if self._is_ending():
                return self._process_gone()
            return self._hand_over(f"{reason}; QEMU does not answer, so its VM could not be freed here")
        told = False
        while True:
            try:
                generation = self._claim(reason)
                break
            except ArbitrationLost as error:
                return self._lost(f"{reason}; {error}")
            except ArbitrationError as error:
                if not self.primary.qemu.alive():
                    return self._process_gone()
                if not told:
                    self._tell("notice", f"who may run is undecided, the VM waits: {error}")
                    told = True
                self.state = "undecided"
                self._pause_while_undecided()
                if self._wait_undecided():
                    raise ArbitrationError(
                        f"{error}. Its fence keeps the VM as the lease allows (stopped, once that is over): `colo protect` "
                        "again settles it when the arbiter answers") from error
        return self._run_alone(generation, reason, won, noticed)

    def _claim(self, reason: str) -> int:
        """The generation that is won. Raises ArbitrationLost, ArbitrationError."""
        try:
            return self._arbiter.claim(self._generation, reason=reason, runner=self._runner).generation
        except ArbitrationLost:
            if (won := self._won_before()) is None:
                raise
            return won

    def _won_before(self) -> int | None:
        """The newer generation that a guard before this one won for this very QEMU, and ended before it could say so."""
        if self._runner is None or self._arbiter.identity is None:
            return None
        try:
            held = self._arbiter.holder()
        except ArbitrationError:
            return None  # it cannot be told just now: whoever has to know asks again
        mine = held.generation > self._generation and held.runner == self._runner and not held.closed
        return held.generation if mine else None

    def _run_alone(self, generation: int, reason: str, won: Ending, noticed: float) -> ProtectorReport:
        self._generation = generation
        if self._guard is not None and self.config.lease_ms:
            self._guard.alone(generation, reason)
        try:
            if not self._freed():
                return self._report(Ending.PRIMARY_GONE, f"{reason}; its process ended")
        finally:
            if self._guard is not None:
                self._guard.release()
        return self._report(won, reason, (time.monotonic() - noticed) * 1000)

    def _freed(self) -> bool:
        """The VM is this side's: have QEMU run it. False when its process ended. A QEMU that hangs is asked until it answers:
        nobody else may run its VM. Raises QemuError when it refuses, or this session is asked to end before that."""
        told = False
        while True:
            try:
                self.primary.free_from_lost_secondary()
                return True
            except QmpTimeout as error:
                if not self.primary.qemu.alive():
                    return False
                if self._leave is not None or self._end is not None:
                    raise QemuError(f"the VM may run, but QEMU could not be freed from its secondary: {error}") from error
                if not told:
                    told = True
                    self._tell("notice", f"the VM is this side's, and is freed as soon as its QEMU answers: {error}")
            except QmpError as error:
                if not self.primary.qemu.alive():
                    return False
                raise QemuError(f"the VM may run, but QEMU could not be freed from its secondary: {error}") from error

    def _usable(self, *, yank: bool) -> bool:
        """Whether QEMU could be told to run alone: its main loop answers, once (``yank``) its hanging channel is gone."""
        if self._guard is not None and self._guard.stopped_in_time:
            return True  # stopped, in time: nothing can be asked before it goes on, and nothing was wrong before
        asked_ns, in_checkpoint = now_ns(), self._meter is not None and self._meter.stopped_at_us is not None
        answers = self.primary.why_not_alone(MAIN_LOOP_S) is None if yank else self.primary.main_loop_responds(MAIN_LOOP_S)
        if answers or self._guard is None or not self._guard.stopped_in_time:
            return answers
        # Stopped while it was asked. A peer that hangs blocks a main loop only amid a checkpoint, and until it is yanked.
        status = self._guard.status
        had_s = (status.lease_end_ns - asked_ns) / 1e9 if status is not None else 0.0
        return had_s < (BLOCKED_S if in_checkpoint else SILENT_S)

    def _is_ending(self) -> bool:
        """Whether QEMU is gone, or its monitor is: then its process soon will be."""
        until = time.monotonic() + (ENDING_S if self.primary.qemu.qmp.lost else 0.0)
        while self.primary.qemu.alive():
            if time.monotonic() >= until:
                return False
            time.sleep(0.002)
        return True

    def _wait_undecided(self) -> bool:
        """Until the arbiter is asked again; True when it was asked to end meanwhile."""
        until = time.monotonic() + RETRY_S
        while time.monotonic() < until:
            if self._guard is not None and self.config.lease_ms:
                self._guard.tend()
            if self._leave is not None:
                return True
            self._stir.wait(WATCH_S)
            self._stir.clear()
        return False

    def _pause_while_undecided(self) -> None:
        """While it is open who may run, this VM must not: the other side may have won. A lease ends by itself."""
        if self.config.lease_ms:
            return
        try:
            self.primary.qemu.qmp.execute("stop", timeout_s=1.0)
        except QmpError as error:
            self._tell("notice", f"QEMU did not stop its VM: {error}")

    def _lost(self, reason: str) -> ProtectorReport:
        """The other side holds the next generation: this VM stands still, and is ended as soon as that one runs."""
        self.state = "losing"
        if self._guard is not None and self.config.lease_ms:
            self._guard.prove(reason)
            if (report := self._await_other_side(reason)) is not None:
                return report
            self._guard.end(reason)
        how = self.primary.end_loser()
        if self._guard is not None:
            self._guard.release(stopped=True)
        return self._report(Ending.STOPPED, f"{reason} ({how})")

    def _await_other_side(self, reason: str) -> ProtectorReport | None:
        """Keep the stopped VM until the other side says that it runs, or cannot run it: then it is claimed back."""
        guard = self._guard
        assert guard is not None
        began = time.monotonic()
        while self.primary.qemu.alive():
            guard.tend()
            status = guard.status
            if status is not None and status.returned:
                self._tell("notice", f"the other side could not run the VM, it is claimed back: {status.said}")
                try:
                    claim = self._arbiter.claim(status.returned, reason="returned", runner=self._runner)
                except ArbitrationError as error:
                    self._tell("notice", f"it cannot be claimed back: {error}")
                    return None
                return self._run_alone(claim.generation, f"{reason}; {status.said}", Ending.ALONE, began)
            heard = status is not None and status.connected
            if time.monotonic() - began > (TAKEN_S if heard else TAKEN_UNHEARD_S):
                return None
            self._stir.wait(WATCH_S)
            self._stir.clear()
        return None

    def _hand_over(self, reason: str) -> ProtectorReport:
        """QEMU is of no use here: the VM is left to the other side, if that can run it."""
        if self._guard is None or not self.config.lease_ms:
            how = self.primary.stop_loser(kill=True)
            return self._report(Ending.HANDED_OVER, f"{reason} ({how})")
        self._tell("notice", f"{reason}: it is left to the other side")
        self._guard.prove(reason)
        began, unheard_s = time.monotonic(), HAND_OVER_LEASES * self.config.lease_ms / 1000
        while True:
            heard = (status := self._guard.status) is not None and status.connected
            if time.monotonic() - began > (max(HAND_OVER_S, unheard_s) if heard else unheard_s):
                break
            self._guard.tend()
            status = self._guard.status
            if not self.primary.qemu.alive() or (status is not None and status.taken) or self._generation_is_gone():
                report = self._lost(reason)
                return report if report.ending is not Ending.STOPPED else self._report(Ending.HANDED_OVER, report.reason)
            self._stir.wait(GENERATION_S)
            self._stir.clear()
        self._tell("notice", "the other side does not take the VM: it is claimed for this one, as it is")
        try:
            generation = self._claim(reason)
        except ArbitrationLost as error:
            return self._lost(f"{reason}; {error}")
        return self._run_alone(generation, reason, Ending.ALONE, time.monotonic())

    def _process_gone(self) -> ProtectorReport:
        return self._ending(self._endings.verdict())

    def _ending(self, how: QemuEnding | None) -> ProtectorReport:
        """QEMU ends, or has ended: its VM ends with it, or moves over. The fence tells the other side, and stays until
        that was heard."""
        status = self._guard.status if self._guard is not None else None
        if status is not None and status.taken:
            return self._report(Ending.STOPPED, f"the other side took over, generation {status.taken} (ended by the fence)")
        text = how.text if how is not None else "its process ended"
        self.state = "ending"
        if how is not None and how.outcome(self.config.on_crash) is Follows.ENDS:
            if self._guard is not None:
                self._guard.ended(text)  # first: whoever finds the generation closed should know why
            self._close_generation(text)
            self._endings.wait_gone(END_S)
            return self._report(Ending.ENDED, text)
        self._endings.wait_gone(MOVE_S)
        if self._guard is not None:
            self._guard.moves(text)
        return self._report(Ending.PRIMARY_GONE, text)

    def _close_generation(self, reason: str) -> None:
        try:
            self._arbiter.close_generation(self._generation, reason, runner=self._runner)
        except ArbitrationLost:
            raise
        except ArbitrationError as error:
            self._tell("notice", f"the arbiter was not told that the VM was ended: {error}")

    def _end_on_purpose(self, reason: str) -> ProtectorReport:
        """End the VM: nobody runs it after this, and nobody revives it."""
        self.state = "ending"
        try:
            self._close_generation(reason)
        except ArbitrationLost as error:
            return self._lost(f"{reason}; {error}")
        if self._guard is not None and self.config.lease_ms:
            self._guard.ended(reason)
        self.primary.quit_gently(END_S)
        self.primary.end_loser()
        if self._guard is not None:
            self._guard.release(stopped=True)
        return self._report(Ending.ENDED, reason)

    def _report(self, ending: Ending, reason: str, freed_ms: float | None = None) -> ProtectorReport:
        return ProtectorReport(ending, reason, self.checkpoints, None if freed_ms is None else round(freed_ms, 3))

    def _tell(self, kind: str, data: Any = None) -> None:
        self._on_event(kind, data)
