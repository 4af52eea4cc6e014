"""The source's side of a migration, as its thread runs it: what the table asks of the session is carried out here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import ClassVar

from colo import trace
from colo.abc import VirtualMachine
from colo.arbiter import Arbiter, claim
from colo.epoch.migration_pages import MigrationPages
from colo.errors import AddressError, ArbitrationError, ArbitrationLost, ChannelError, Interrupted, VmError
from colo.link.convergence import AutoConverge
from colo.link.migration_out import MigrationOut
from colo.link.migration_progress import MigrationProgress
from colo.link.migration_rounds import MigrationRounds
from colo.link.pacer import Pacer
from colo.protocol.migration import Action, Event, Exchange, MigrationMachine, MigrationStatus, Role, State, next_status
from colo.session.migration.config import MigrationOutcome, MigrationSourceConfig
from colo.stream.writer import end_of_stream
from colo.trace import Trace
from colo.transport import connect_until
from colo.vm.hold import VmHold
from colo.vm.saved_state import StateForm, describe
from colo.vm.source_vm import SourceVm
from colo.vm.watch import VmWatch
from colo.wake import Wake

KEEP_ALIVE_S = 1.0
CONNECT_RETRY_S = 0.05


class SourceRun:
    """One migration of ``vm``. What the table decides on is done by :attr:`HANDLERS` here, and by those of its connection;
    where the VM hangs, by :attr:`HUNG_HANDLERS`. ``downtime_limit_ms`` is asked after each round."""

    def __init__(
        self, vm: VirtualMachine, config: MigrationSourceConfig, pages: MigrationPages, pacer: Pacer,
        arbiter: Arbiter | None, *, session_trace: Trace, downtime_limit_ms: Callable[[], float],
    ) -> None:
        self._generation = 0 if arbiter is None else arbiter.current()
        self._converge = AutoConverge(
            initial_percent=config.throttle_initial_percent, increment_percent=config.throttle_increment_percent,
            max_percent=config.throttle_max_percent,
        ) if config.auto_converge else None
        self.vm = vm
        self.config = config
        self.progress = MigrationProgress(total_bytes=pages.total_bytes)
        self.hold = VmHold(vm)
        self.watch = VmWatch(config.vm_s, self._free_hung)
        self.source = SourceVm(vm, self.watch.guard)
        self.wake = Wake()
        self.status = MigrationStatus.NONE
        self.error: BaseException | None = None
        """What it ended with."""
        self.cancelled: str | None = None
        """That it is to be cancelled, and why."""
        self.giving_up = False
        """An arbiter that cannot be reached is not asked again."""
        self.go_on = threading.Event()
        """Leave to switch over."""
        self.result: Future[MigrationOutcome] = Future()
        self.machine = MigrationMachine(
            Role.SOURCE, return_path=config.return_path, arbiter=arbiter is not None, held=config.pause_before_switchover)
        self._pages = pages
        self._pacer = pacer
        self._arbiter = arbiter
        self._form = StateForm(config.limits, sections=config.sections)
        self._trace = session_trace
        self._downtime_limit_ms = downtime_limit_ms
        self._link: MigrationOut | None = None
        self._cause: BaseException | None = None
        """What went wrong first."""
        self._handlers = {action: partial(method, self) for action, method in self.HANDLERS.items()}
        self.exchange = Exchange(
            self.machine, self._handlers, self._await_event, on_error=self._went_wrong, on_state=self._publish,
            instead=self._instead)

    def main(self) -> None:
        """All of it, on this thread. Raises nothing: :attr:`result` says how it ended."""
        self.progress.began_ns = time.monotonic_ns()
        self.progress.expected_downtime_ms = self._downtime_limit_ms()
        self.exchange.run(Event.STARTED)

    def cancel(self, reason: str) -> None:
        """From any thread. Without effect once the destination may run."""
        with self.exchange.lock:
            if not self.result.done() and not self.machine.handed_out:
                self.cancelled = self.cancelled or reason
                self.wake.set()

    def decide(self, *, destination_runs: bool) -> None:
        """From any thread. Raises RuntimeError when nothing is undecided, and what the VM's ``resume`` raises."""
        with self.exchange.lock:
            if not self.result.done() or self.machine.state is not State.UNDECIDED:
                raise RuntimeError("this migration is not undecided")
            actions = self.exchange.feed(Event.DECIDED_THERE if destination_runs else Event.DECIDED_HERE)
        self._set_status(self.machine.facts.status)
        if Action.RUN_ON in actions and self.source.was_running:
            self.vm.resume()

    # -- the table

    def _await_event(self) -> Event:
        assert self._link is not None
        return self._link.await_event()

    def _instead(self, event: Event) -> Event:
        """What was cancelled is not handed out, and what is handed out cannot be cancelled."""
        if self.cancelled is not None and self.machine.outcome(event).hands_out:
            return Event.CANCELLED
        if event is Event.SHUT_FAILED and self._link is not None:
            what = "did not take the VM over" if self.machine.handed_out else "gave up"
            self._cause = ChannelError(f"the destination {what} (SHUT {self._link.shut}); its own log says why")
        return event

    def _went_wrong(self, error: BaseException) -> None:
        if isinstance(error, Interrupted):
            return
        if self._cause is None and self.machine.state not in (State.COMPLETED, State.CANCELLED):
            self._cause = error
        elif error is not self._cause:
            self._tell(trace.Notice(f"at the end: {error}"))

    def _publish(self) -> None:
        if not self.machine.ended:  # an end is told with its outcome
            self._set_status(self.machine.facts.status)

    # -- what it asks for: setup

    def _connect(self) -> Event:
        sock = connect_until(
            self.config.to, time.monotonic() + self.config.connect_s, pause_s=CONNECT_RETRY_S,
            ended=lambda: self.cancelled is not None, final=(AddressError,), insecure=self.config.insecure,
            allow_uids=self.config.allow_uids)
        self._link = MigrationOut(
            sock, self._pages, self._pacer, self.progress, self.machine, machine=self.config.machine,
            deadlines=self.config.deadlines, wake_fd=self.wake.fd)
        rounds = MigrationRounds(
            self._link, self.source, self._pages, self.progress, converge=self._converge,
            downtime_limit_ms=self._downtime_limit_ms, tell=self._tell)
        self._handlers.update((action, partial(method, self._link)) for action, method in MigrationOut.HANDLERS.items())
        self._handlers.update((action, partial(method, rounds)) for action, method in MigrationRounds.HANDLERS.items())
        return Event.CONNECTED

    def _start_tracking(self) -> None:
        self._pages.start()

    def _refuse_no_arbiter(self) -> None:
        self._cause = ArbitrationError(
            "the destination has no arbiter, so it would not ask whether it may run: give both sides the same, or none")

    # -- the switchover

    def _pause(self) -> Event:
        self.source.pause()
        self.progress.paused_ns = self.source.paused_ns
        return Event.VM_STOPPED

    def _await_leave(self) -> Event:
        assert self._link is not None
        until = time.monotonic() + KEEP_ALIVE_S
        while not self.go_on.is_set():
            if time.monotonic() >= until:
                return Event.KEEP_ALIVE_DUE
            self._link.wait(0.02)
        return Event.TOLD_TO_GO_ON

    def _save(self) -> Event:
        assert self._link is not None
        state = self._form.encode(self.source.save())
        # What saving the state wrote, though it should not, is among them.
        self._pages.harvest_more()
        self.progress.begin_round(self._pages.owned_pages())
        self.progress.syncs += 1
        self._link.devices = state[:-1]
        self._link.end = end_of_stream() + describe(self._form.sections_of(state))
        return Event.STATE_SAVED

    # -- the ends

    def _abort_channel(self) -> None:
        if self._link is not None:
            self._link.abort()
            self._link.close()

    def _close_channel(self) -> None:
        assert self._link is not None
        self._link.close()

    def _give_back_dirty(self) -> None:
        if self._link is not None:
            self._link.release()
        self._pages.give_back()

    def _release_throttle(self) -> None:
        if self.source.throttle_percent:
            try:
                self.source.throttle(0)
                self._tell(trace.Throttle(0))
            except VmError as error:
                self._tell(trace.Notice(f"throttling could not be released: {error}"))

    def _run_on(self) -> Event:
        self.source.run_on()
        return Event.VM_RUNS

    def _arbitrate(self) -> Event:
        """Everything was sent and no answer came: the destination may run. Only the arbiter knows better."""
        assert self._arbiter is not None
        try:
            self._generation = claim(
                self._arbiter, self._generation, reason=f"migration: {self._cause}",
                on_undecided=lambda text: self._tell(trace.Notice(text)), stopping=lambda: self.giving_up)
        except ArbitrationLost:
            return Event.CLAIM_LOST
        except ArbitrationError:
            return Event.CLAIM_UNDECIDED
        return Event.CLAIM_WON

    def _take_back_generation(self) -> None:
        if self._arbiter is not None:
            with contextlib.suppress(ArbitrationError):
                if (now := self._arbiter.current()) > self._generation:
                    self._generation = self._arbiter.claim(now, reason="the destination gave the VM back").generation

    def _let_go(self) -> None:
        """Nothing of the session touches the VM any more."""
        self.progress.over_ns = self.progress.over_ns or time.monotonic_ns()
        try:
            self._pages.stop()
        finally:
            self.watch.close()
            self.hold.release()

    def _report(self) -> None:
        progress = self.progress
        progress.over_ns = progress.over_ns or time.monotonic_ns()
        fact, state, cause = self.machine.facts, self.machine.state, self._cause
        progress.completed = state is State.COMPLETED
        reason = self.cancelled or "cancelled"
        error: BaseException | None = None
        if state is State.COMPLETED:
            reason = "everything was sent; nothing confirms it"
            if cause is not None:
                reason = f"the destination has claimed the VM; its answer was lost: {cause}"
            elif self.config.return_path:
                reason = "the destination has loaded it"
        elif state is State.UNDECIDED:
            error = ArbitrationError(
                f"everything was sent, and the destination's answer was lost ({cause}): it may run the VM, so here it stands "
                "still; look at the destination, then decide(destination_runs=...)")
            error.__cause__ = cause
        elif state is not State.CANCELLED:
            error = self.watch.hung or cause or ChannelError("the migration failed")
        with self.exchange.lock:
            if self.result.done():
                return
            self.error = error
            self._set_status(fact.status)
            if error is not None:
                self.result.set_exception(error)
                return
            downtime_ns = progress.over_ns - progress.paused_ns if progress.paused_ns else 0
            self.result.set_result(MigrationOutcome(
                fact.status, fact.place, reason, downtime_ns / 1e6, (progress.over_ns - progress.began_ns) / 1e6))

    HANDLERS: ClassVar[dict[Action, Callable[[SourceRun], Event | None]]] = {
        Action.CONNECT: _connect,
        Action.START_TRACKING: _start_tracking,
        Action.REFUSE_NO_ARBITER: _refuse_no_arbiter,
        Action.PAUSE: _pause,
        Action.AWAIT_LEAVE: _await_leave,
        Action.SAVE: _save,
        Action.ABORT_CHANNEL: _abort_channel,
        Action.CLOSE_CHANNEL: _close_channel,
        Action.GIVE_BACK_DIRTY: _give_back_dirty,
        Action.RELEASE_THROTTLE: _release_throttle,
        Action.RUN_ON: _run_on,
        Action.ARBITRATE: _arbitrate,
        Action.TAKE_BACK_GENERATION: _take_back_generation,
        Action.LET_GO: _let_go,
        Action.REPORT: _report,
    }
    """What is done on the session's thread, beside what its connection does."""

    # -- the session's thread is stuck in the VM: what must be done for the VM is done from the watch's

    def _free_hung(self, doing: str, error: VmError) -> None:
        for action in self.exchange.feed(Event.VM_HUNG):
            with contextlib.suppress(Exception):
                self.HUNG_HANDLERS[action](self, doing)

    def _abort_hung(self, doing: str) -> None:
        if self._link is not None:
            self._link.abort()

    def _release_hung(self, doing: str) -> None:
        if self.source.throttle_percent and doing != "throttle":
            self.vm.throttle(0)  # type: ignore[attr-defined]

    def _run_on_hung(self, doing: str) -> None:
        if self.source.was_running and doing != "resume":
            self.vm.resume()

    def _report_hung(self, doing: str) -> None:
        self._report()

    HUNG_HANDLERS: ClassVar[dict[Action, Callable[[SourceRun, str], None]]] = {
        Action.ABORT_CHANNEL: _abort_hung,
        Action.RELEASE_THROTTLE: _release_hung,
        Action.RUN_ON: _run_on_hung,
        Action.REPORT: _report_hung,
    }

    def _set_status(self, status: MigrationStatus) -> None:
        if self.status is not status:
            self.status = next_status(self.status, status)
            self._tell(trace.Status(status.value))

    def _tell(self, event: trace.Event) -> None:
        self._trace.tell(event)
