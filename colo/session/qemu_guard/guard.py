"""The primary's side, for an unmodified QEMU: set it up, watch it, and decide for it when its secondary is lost.

QEMU itself waits for ever for a secondary that hangs, with its VM standing still. Here every pause has a deadline; when it
passes, or QEMU says that the channel broke, the arbiter is asked: the winner's VM runs on alone, the loser's is ended. Until
that is decided, the VM runs only as long as its lease lasts: a fence beside QEMU (:mod:`colo.fence.keeping`) sees to that.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from typing import Any, Self

from colo import trace
from colo.arbiter import arbiter_from_uri, init_arbiter
from colo.control.server import ControlServer
from colo.errors import ArbitrationLost, ColoError, QemuError
from colo.fence.fence import FenceStatus
from colo.fence.stopped import let_go_on
from colo.lease.meeting import Meeting
from colo.qemu.endings import EndingActions, EndingWatch
from colo.qemu.news import News
from colo.qemu.primary import QemuPrimary
from colo.session.qemu_guard.config import Ending, QemuGuardConfig, QemuGuardReport
from colo.session.qemu_guard.ending import GENERATION_S, QemuGuardEnding
from colo.session.qemu_guard.protection import Protection
from colo.trace import OnEvent, SessionState, Sink, Trace
from colo.transport import check_listening, check_plaintext

RECONNECT_S = 2.0


class QemuGuard:
    """Sets a running QEMU up as primary, and watches it. ::

        with QemuGuard(QemuGuardConfig("/run/vm1/qmp.sock", "unix:/run/vm1/colo.sock", arbiter="file:/shared/vm1")) as p:
            report = p.run()

    ``sinks`` take the events themselves (:mod:`colo.trace`);
    ``on_event(kind, data)`` hears ``protecting``, ``pause`` (ms), ``notice``, ``lost``, ``alone`` and ``ended``.
    """

    def __init__(
        self, config: QemuGuardConfig, *, on_event: OnEvent | None = None, sinks: Iterable[Sink] = ()
    ) -> None:
        self.config = config
        self._pid = os.getpid()
        self._over = False
        self._control: ControlServer | None = None
        self._actions: EndingActions | None = None
        check_plaintext(config.to, insecure=config.insecure)
        check_listening(config.to, config.allow_uids)
        session_trace = Trace(on_event, sinks)
        self._news = News()
        try:
            self._won = let_go_on(
                config.qmp, lambda: arbiter_from_uri(config.arbiter, role="primary", vm=config.vm), session_trace.notice)
            self.primary = QemuPrimary.attach(config.qmp, on_exit=self._news.ring)
            try:
                self._take_on(session_trace)
            except BaseException:
                self.primary.detach()
                raise
        except BaseException:
            self._news.close()
            raise
        self._endings = QemuGuardEnding(self._protection)

    def _take_on(self, session_trace: Trace) -> None:
        """Raises ColoError when that cannot be; nothing has been done to the QEMU then."""
        config, qemu = self.config, self.primary.qemu
        ends = EndingWatch(qemu, on_ending=lambda ending: self._news.ring())  # first: no ending is to be missed
        qemu.qmp.on_lost(self._news.ring)
        self._vm = config.vm or qemu.name
        self._uuid = self.primary.uuid  # asked now: the secondary, once met, must not wait for a monitor
        if config.init_arbiter:
            init_arbiter(config.arbiter, vm=self._vm or f"qemu-{qemu.pid}", uuid=self._uuid)
        self._arbiter = arbiter_from_uri(config.arbiter, role="primary", vm=config.vm, uuid=self._uuid)
        self._arbiter.know_vm(vm=self._vm)  # as -name has it: the arbiter's own name for it may be another
        self._protection = Protection(config, self.primary, ends, self._arbiter, self._news, session_trace)
        keeping = self._protection.keeping
        try:
            if keeping.control is not None:
                self._control = ControlServer(keeping.control, {
                    "status": self.status, "unprotect": self._unprotect_command, "stop": self._stop_command})
                keeping.say(self._known_as, config.qmp)
        except BaseException:
            self._protection.close()
            raise

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
        if self._actions is not None:
            self._actions.restore()
        self._protection.close()
        self.primary.detach()
        self._arbiter.close()
        self._news.close()

    # -- requests, from any thread

    def stop(self, reason: str = "asked to end protection") -> None:
        """End protection in order: this side claims the VM first, so that the secondary does not take over; the VM runs
        on."""
        self._protection.ask_to_leave(reason)

    def end_vm(self, reason: str = "stopped by its user") -> None:
        """End the VM, on purpose: neither side runs it."""
        self._protection.ask_to_end(reason)

    def _unprotect_command(self) -> dict[str, Any]:
        self.stop("`colo unprotect`")
        return {"state": self.state}

    def _stop_command(self) -> dict[str, Any]:
        self.end_vm("`colo stop`")
        return {"state": self.state}

    @property
    def state(self) -> str:
        """In a word, for people."""
        return self._protection.state

    @property
    def checkpoints(self) -> int:
        """Pauses seen so far."""
        return self._protection.checkpoints

    @property
    def running_share(self) -> float | None:
        """Which part of the last 5 s the VM ran between its pauses; None of a session younger than a second."""
        meter = self._protection.meter
        return meter.running_share if meter is not None else None

    def status(self) -> dict[str, Any]:
        """Keys are stable."""
        p = self._protection
        return {
            "state": p.state,
            "over": self._over,
            "vm": self._known_as,
            "pid": p.qemu.pid,
            "to": self.config.to,
            "checkpoints": p.checkpoints,
            "checkpoint": p.checkpoints,
            "running_share": self.running_share,
            "generation": p.held.number,
            "lease": p.keeping.status(),
            "secondary_notice": p.keeping.guard.notice if p.keeping.guard is not None else "",
            "statistics": {"checkpoints": p.checkpoints, "pause_ms": p.meter.summary() if p.meter is not None else None},
        }

    # -- the session

    def run(self) -> QemuGuardReport:
        """Protect until it ends; the report says how. Raises QemuError, QemuUnsupported, ChannelError, ProtocolError or
        ArbitrationError if it cannot begin, ArbitrationError when it was asked to end while who may run was undecided: the VM
        then stands still, under its fence, until another guard comes."""
        p = self._protection
        p.meter = self.primary.measure_pauses(lambda pause_ms: p.tell(trace.Pause(pause_ms)), p.notice)
        report = self._resume_guarding()
        if report is None:
            for disk in self.primary.unreplicated_disks():
                p.notice(f"disk {disk} is not replicated: it must be on storage that both sides share")
            report = self._protect()
        while report.ending is Ending.ALONE and self.config.reconnect and not (p.leave or p.end):
            p.state = SessionState.ALONE
            p.tell(trace.Alone(report))
            report = self._protect_again(report)
        p.state = SessionState(report.ending.name.lower())
        self._over = True
        p.tell(trace.Ended(report))
        return report

    # -- beginning

    def _protect(self) -> QemuGuardReport:
        """Meet the secondary, have the lease held, make QEMU a primary, and watch it."""
        p = self._protection
        p.state = SessionState.SETTING_UP
        if self._actions is None:
            self._actions = EndingActions.hold(p.qemu)
            if self._actions.notice:
                p.notice(self._actions.notice)
        self._begin_lease()
        began = self.primary.streams_begun
        try:
            self.primary.set_up(self.config.to, self.config.settings, timeout_s=self.config.set_up_s)
        except QemuError as error:
            if self.primary.streams_begun == began:
                # Nothing that the secondary could run has come to be: the VM runs on, and no lease is needed.
                if p.keeping.leased:
                    p.keeping.alone(p.held.number + 1, f"protection did not begin: {error}")
                    p.keeping.release()
                raise
            # The secondary may have had all of it, and be about to take over: only the arbiter can tell.
            report = self._endings.settle(f"protection did not begin: {error}")
            if report.ending is Ending.ALONE:
                raise
            return report
        for text in self.primary.notices:
            p.notice(text)
        return self._watch()

    def _begin_lease(self) -> None:
        p = self._protection
        if not p.keeping.leased:
            p.notice(
                "no lease: nothing stops this VM by time when it is cut off from the secondary and the arbiter; "
                f"who may run rests on {self.config.arbiter.partition(':')[0]}: alone")
            return

        def meeting() -> Meeting:
            p.held.take_first()
            return self._meeting()

        p.keeping.hold(meeting, self._notes)

    def _meeting(self) -> Meeting:
        held, identity = self._protection.held, self._arbiter.identity
        return Meeting(
            vm=self._known_as, uuid=self._uuid, arbiter_id=identity.id if identity is not None else "",
            generation=held.number, claim_token=held.token, lease_ms=self.config.lease_ms,
            who=f"{socket.gethostname()} (QEMU pid {self.primary.qemu.pid})")

    @property
    def _notes(self) -> dict[str, Any]:
        """For the guard after this one."""
        return {"to": self.config.to, "arbiter": self.config.arbiter, "vm": self._vm}

    @property
    def _known_as(self) -> str:
        """The VM's name: as it was given, as its arbiter has it, or as QEMU does."""
        identity = self._arbiter.identity
        return self.config.vm or (identity.vm if identity is not None else "") or self._vm

    def _resume_guarding(self) -> QemuGuardReport | None:
        """A QEMU that is in COLO already: the guard before this one died, and this one goes on. None: it is not."""
        p = self._protection
        if p.keeping.guard is None:
            return None
        found = p.keeping.find()
        if self._won is not None:
            return self._run_alone_as_won(self._won)
        if found is not None and found.state != "UNLEASED":  # generations of some arbiters begin at 0
            if (report := self._adopt(found)) is not None:
                return report
        elif self.primary.migration_status() == "colo":
            try:
                if not (self.config.lease_ms and p.held.take_running(self.config.arbiter, self._known_as)):
                    return None  # it was made a primary by others
            except ArbitrationLost as error:
                return self._endings.lost(f"this QEMU is a COLO primary, but {error}")
            p.notice("this QEMU is a COLO primary already, and no fence is beside it: one is made")
            try:
                p.keeping.hold(self._meeting, self._notes, follows=True)
            except ColoError as error:
                return self._endings.settle(f"the secondary cannot be met again: {error}")
        else:
            if found is not None:
                p.keeping.release()
            return None
        status = self.primary.migration_status()
        if status != "colo":
            return self._endings.settle(f"QEMU left COLO while nobody guarded it (its migration is {status!r})")
        return self._watch()

    def _adopt(self, found: FenceStatus) -> QemuGuardReport | None:
        """Go on with the fence that a guard before this one has left; the report where that had ended already."""
        p, guard = self._protection, self._protection.keeping.guard
        assert guard is not None
        guard.adopt(found)
        p.held.number = found.generation
        if found.notes.get("arbiter") not in (None, self.config.arbiter):
            guard.leave()
            raise QemuError(
                f"this QEMU is protected already, with --arbiter {found.notes['arbiter']} and --to {found.notes.get('to')}: "
                "give these, or end that protection first (`colo unprotect`)")
        p.notice(f"this VM's fence (pid {found.fence_pid}) is here: protection goes on where the guard left it")
        if (won := p.held.won_before()) is None and found.state == "ALONE":
            won = found.generation + 1  # from an arbiter that does not keep who holds it
        if won is not None:
            return self._run_alone_as_won(won)
        if found.state in ("OVER", "STANDS"):  # the fence has stopped the VM, and nobody was there to ask the arbiter
            p.state = SessionState.UNDECIDED
            return self._endings.settle(f"the VM was stopped by its fence ({found.reason})")
        return None

    def _run_alone_as_won(self, generation: int) -> QemuGuardReport:
        return self._endings.run_alone(
            generation, "the guard before this one had won the VM for this side", Ending.ALONE, time.monotonic())

    def _protect_again(self, alone: QemuGuardReport) -> QemuGuardReport:
        """Alone: look for a secondary, for ever."""
        p, said = self._protection, ""
        while True:
            until = time.monotonic() + RECONNECT_S
            while time.monotonic() < until and not (p.leave or p.end) and p.qemu.alive():
                p.wait(until)
            if p.leave:
                return QemuGuardReport(Ending.UNPROTECTED, p.leave, p.checkpoints, alone.freed_ms)
            if p.end:
                return self._endings.end_on_purpose(p.end)
            if not p.qemu.alive():
                return p.report(Ending.PRIMARY_GONE, f"{alone.reason}; its process ended while it ran alone")
            try:
                return self._protect()
            except ArbitrationLost:
                raise
            except ColoError as error:
                if not p.qemu.alive():
                    return p.report(Ending.PRIMARY_GONE, f"{alone.reason}; its process ended while it ran alone")
                if str(error) != said:
                    said = str(error)
                    p.notice(f"no secondary yet, it is tried again: {error}")
                p.state = SessionState.ALONE

    # -- watching

    def _watch(self) -> QemuGuardReport:
        """Until it ends. Looked at is what there is news of; what has a time of its own is looked at then."""
        p = self._protection
        p.state = SessionState.PROTECTING
        p.tell(trace.Protecting(self.config.to))
        began, next_look = time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            if (ending := p.ends.ending) is not None or not p.qemu.alive():
                return self._endings.ended_itself(ending or p.ends.verdict())
            if p.end:
                return self._endings.end_on_purpose(p.end)
            if p.leave:
                return self._endings.settle(p.leave, Ending.UNPROTECTED)
            if now >= next_look:
                next_look = now + GENERATION_S
                if p.held.is_gone():
                    return self._endings.lost("its generation is over: the secondary took over")
                if p.held.won is not None:
                    return self._run_alone_as_won(p.held.won)
            if (reason := p.keeping.why_lost()) is not None:
                return self._endings.settle(reason)
            if self.primary.colo_exited.is_set():
                return self._endings.settle(f"QEMU left COLO ({self.primary.exit_reason or 'no reason given'})")
            hangs_at, hung = self._hangs_at(began)
            if now >= hangs_at:
                return self._endings.settle(hung)
            # A VM that stops or goes on from now on has its whole deadline before it.
            p.wait(min(next_look, hangs_at, now + self.config.deadline_ms / 1000))

    def _hangs_at(self, began: float) -> tuple[float, str]:
        """When the secondary counts as hung (``time.monotonic()``), if the VM neither stops nor goes on before, and why."""
        meter = self._protection.meter
        assert meter is not None
        stopped, since = meter.standing
        since, deadline_ms = max(since, began), self.config.deadline_ms
        if stopped:
            return since + deadline_ms / 1000, f"the VM stood still for {deadline_ms:g} ms, the secondary hangs"
        # It waits for the answer to a REQUEST, with its VM running, and would do so for ever.
        return (
            since + (deadline_ms + self.config.settings.checkpoint_delay_ms) / 1000,
            f"no checkpoint has begun {deadline_ms:g} ms after it was due, the secondary hangs")
