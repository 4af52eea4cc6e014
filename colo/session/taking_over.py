"""A session that may take its VM over: how it is asked, what it keeps, and the takeover as the table has it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from colo import trace
from colo.abc import EpochSink
from colo.arbiter import Arbiter, Runner
from colo.arbiter.watch import why_ended
from colo.control.server import ControlServer
from colo.epoch.committed import Committed
from colo.epoch.last_committed import LastCommitted
from colo.epoch.ram_sink import RamSink
from colo.errors import ArbitrationLost, ColoError, Interrupted, NoCheckpoint, VmEnded, explain
from colo.figures.dirty_heat import DirtyHeat
from colo.figures.secondary_report import CheckpointStatistics
from colo.link.endings import Handlers, end_by
from colo.link.follower import Follower
from colo.memory import BlockImage
from colo.protocol import Action, Event, Failover, FailoverEvent, FailoverStatus
from colo.session.secondary_config import QemuSecondaryConfig, VmSecondaryConfig
from colo.takeover.claiming_side import Attempt, ClaimingSide, Loss, standing
from colo.takeover.reception import Reception
from colo.trace import OnEvent, SessionState, Sink, Trace
from colo.wake import Wake

R = TypeVar("R", bound=trace.Reported)
"""The report of a takeover."""


class TakingOver(Generic[R]):
    """A subclass opens what it needs (:meth:`_open`), runs (:meth:`_run`), and says what taking over is (:meth:`_run_here`).

    What is committed is the session's: :attr:`last` has it, :attr:`ram` its memory, and all :attr:`sinks` are told of each
    checkpoint. What follows from a connection's end is the table's: :attr:`endings` carry it out.
    """

    def __init__(
        self, config: QemuSecondaryConfig | VmSecondaryConfig, on_event: OnEvent | None, sinks: Iterable[Sink]
    ) -> None:
        self.config = config
        self._pid = os.getpid()
        self.statistics = CheckpointStatistics()
        self.heat = DirtyHeat() if config.heat_map else None
        self.failover = Failover()
        self.state = SessionState.STARTING
        self.report: R | None = None
        self._trace = Trace(on_event, sinks)
        self._cleanup = contextlib.ExitStack()
        self._wake = Wake()
        self._cleanup.callback(self._wake.close)
        self._requested: str | None = None
        self._stopping = False
        self._result: Future[R] = Future()
        self._arbiter: Arbiter | None = None
        self._follower: Follower | None = None
        """Of the connection there is, or was last."""
        self._attempt: Attempt | None = None
        self.endings: Handlers = {
            Action.ARBITRATE: self._arbitrate, Action.TAKE_OVER: self._run_here, Action.STOP_VM: self._stop_vm,
            Action.REFUSE_FAILOVER: self._refuse_failover}
        """Of a connection's end, what the session does about it."""
        try:
            self._open()
        except BaseException:
            self._cleanup.close()
            raise

    # -- a subclass's part

    def _open(self) -> None:
        raise NotImplementedError

    def _run(self) -> R:
        raise NotImplementedError

    def _get_ready(self) -> Runner:
        """See to what a takeover takes: who has nothing to run the VM with must not stop the other side's. Returns the
        process that is to run it."""
        raise NotImplementedError

    def _run_here(self) -> None:
        """Make the VM run here, and set :attr:`report`."""
        raise NotImplementedError

    def _stop_vm(self) -> None:
        """The other side runs the VM: end what was made ready for it here."""
        raise NotImplementedError

    def _not_run(self) -> None:
        """A takeover has failed: end what was made ready for it, if it is still there, and be ready for another try."""

    def _failover_command(self) -> dict[str, Any]:
        raise NotImplementedError

    def _has_won(self, generation: int) -> None:
        """At once, before it can be forgotten."""

    # -- opening

    def _ask(self, arbiter: Arbiter) -> int:
        """``arbiter`` decides who may run; returns the generation that it shows."""
        self._arbiter = arbiter
        self._cleanup.callback(arbiter.close)
        return arbiter.current()

    def _keep_in(self, image: BlockImage) -> None:
        self.image, self.ram = image, RamSink(image)
        self.ram.heat = self.heat
        self._cleanup.callback(self.ram.close)
        self.sinks: list[EpochSink] = [self.ram]
        self.last = LastCommitted(self.ram, self.sinks)

    def _receive(
        self, generation: int | None, *, required: bool, parks: bool, control: Path | None, lease_ms: float,
        forgotten: bool = False,
    ) -> None:
        """Open to primaries (see Reception), and to whoever asks over the control socket."""
        config = self.config
        self._reception = Reception(
            config.listen, deadlines=config.deadlines, insecure=config.insecure, allow_uids=config.allow_uids, parks=parks,
            lease_ms=lease_ms, required=required, forgotten=forgotten, arbiter=self._arbiter,
            checkpoint=self._committed_number, tell=self._notice, wake=self._wake.set)
        self._cleanup.callback(self._reception.close)
        self.address, self.promises = self._reception.address, self._reception.promises
        self.claiming = ClaimingSide(
            self._arbiter, self.promises, generation, stopping=lambda: self._stopping, tell=self._notice)
        if control is not None:
            server = ControlServer(control, {
                "status": self.status, "failover": self._failover_command,
                "heat": lambda: self.heat.summary() if self.heat else None,
            })
            self._cleanup.callback(server.close)

    # -- requests, from any thread

    @property
    def committed(self) -> Committed | None:
        """The last committed checkpoint, of whichever connection or session."""
        return self.last.committed

    def _committed_number(self) -> int | None:
        committed = self.committed
        return committed.number if committed is not None else None

    @property
    def generation(self) -> int | None:
        """The one that this side claims from, or has won; None: there is no arbiter."""
        return self.claiming.generation

    def request_failover(self, reason: str = "request") -> Future[R]:
        """Ask for a takeover; the future has its report, or the error it ended with. Raises NoCheckpoint at once."""
        if Action.REFUSE_FAILOVER in standing(self.committed).feed(Event.FAILOVER_REQUESTED):
            self._refuse_failover()
        self._requested = self._requested or reason
        self._wake.set()
        return self._result

    def _refuse_failover(self) -> None:
        raise NoCheckpoint("nothing to resume from: no checkpoint has been committed yet")

    def stop(self) -> None:
        """End :meth:`run` with Interrupted."""
        self._stopping = True
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """What ``colo status`` shows; keys are stable."""
        follower, committed = self._follower, self.committed
        return {
            "state": self.state,
            "failover": self.failover.status.value,
            "listen": self.address,
            "protocol_state": follower.machine.state.value if follower else None,
            "checkpoint": committed.number if committed else None,
            "checkpoint_age_ms": round((time.monotonic_ns() - committed.at_ns) / 1e6, 1) if committed else None,
            "machine": committed.configuration.machine if committed else None,
            "ram_bytes": self.image.total_bytes,
            "staged_high_water_bytes": self.ram.staged_high_water_bytes,
            "generation": self.generation,
            "lease": self.promises.status(),
            "statistics": self.statistics.as_dict(),
        }

    def _tell(self, event: trace.Event) -> None:
        self._trace.tell(event)

    def _notice(self, text: str) -> None:
        self._trace.notice(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and let go of all that it has open; :meth:`run` must have ended."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        self._stopping = True
        self._cut()
        if not self._result.done():
            self._result.cancel()
        self._cleanup.close()

    # -- the session

    def run(self) -> R:
        """Follow one primary after another until the VM runs here; returns the takeover's report."""
        try:
            report = self._run_unless_ended()
        except BaseException as error:
            self.state = SessionState.FAILED
            if not self._result.done():
                self._result.set_exception(
                    error if isinstance(error, ColoError) else Interrupted(f"the session ended: {explain(error)}"))
            raise
        self._result.set_result(report)
        return report

    def _run_unless_ended(self) -> R:
        """A generation that is over may be so because the VM was ended: whoever ended it may not have been heard yet."""
        try:
            return self._run()
        except ArbitrationLost as lost:
            if not (why := why_ended(self._arbiter)):
                raise
            raise VmEnded(f"the VM was ended at the primary ({why}): nothing is to be taken over") from lost
        finally:
            self._cut()

    def _cut(self) -> None:
        """No connection is to be used any more; what is not committed is dropped. Any number of times."""
        if self._follower is not None:
            self._follower.end(Event.CHANNEL_LOST)

    # -- the takeover, by the table

    def _take_over(self, loss: Loss) -> R:
        """Arbitration, the end of the connection if there is one, and the VM runs here. Raises why not."""
        self.state = SessionState.TAKING_OVER
        self._tell(trace.TakingOver(loss.reason))
        self.failover.feed(FailoverEvent.REQUEST)
        if self._requested is None:
            self.promises.want()
        attempt = self._attempt = Attempt(loss)
        follower = self._follower
        try:
            if follower is None or follower.machine.over:
                end_by(standing(self.committed), Event.FAILOVER_REQUESTED, self.endings)
            else:
                end_by(follower.machine, Event.FAILOVER_REQUESTED, {**self.endings, **follower.endings})
        except BaseException as error:
            attempt.failure = attempt.failure or error
        if attempt.failure is not None:
            if self.failover.status is FailoverStatus.ACTIVE:
                self.failover.feed(FailoverEvent.BROKEN)
            self._not_run()
            raise attempt.failure
        assert self.report is not None
        self.failover.feed(FailoverEvent.RUNNING)
        self.state = SessionState.RUNNING
        self._tell(trace.Running(self.report))
        return self.report

    def _arbitrate(self) -> Event:
        """See to what it takes, win the generation, and see the other side's VM stand still."""
        attempt = self._attempt
        assert attempt is not None
        try:
            runner = self._get_ready()
            attempt.ready_ns = time.monotonic_ns()
            self.claiming.win(
                asked=self._requested is not None, reason=attempt.loss.reason, runner=runner, undecided=self._undecided,
                has_won=self._has_won)
        except BaseException as error:
            attempt.failure = error
            self.failover.feed(FailoverEvent.REFUSED)
            if isinstance(error, (ArbitrationLost, VmEnded)):
                return Event.TAKEOVER_LOST
            if not self.claiming.won:
                self.promises.relent()
            return Event.TAKEOVER_UNDECIDED
        self.failover.feed(FailoverEvent.WON)
        return Event.TAKEOVER_WON

    def _undecided(self, text: str) -> None:
        if self._follower is not None:
            # The table's next step, which waits for this one: who is at the other end is not to.
            self._follower.endings[Action.ABORT_CHANNEL]()
        self._notice(text)
