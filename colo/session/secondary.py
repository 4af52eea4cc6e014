"""The secondary: follows a primary, and runs its VM from the last committed checkpoint when the primary is lost."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from colo.errors import (
    ArbitrationError,
    ArbitrationLost,
    ChannelError,
    ColoError,
    Interrupted,
    NoCheckpoint,
    ProtocolError,
    StandbyError,
    StreamError,
)
from colo.memory import RamImage
from colo.protocol import Failover, FailoverEvent
from colo.qemu.standby import Standby
from colo.session.admission import PENDING_LIMIT, admit
from colo.session.arbiter import Arbiter, arbiter_from_uri
from colo.session.checkpoint import CheckpointReport, Committed
from colo.session.claim import claim
from colo.session.compose import compose
from colo.session.control import SOCKET_NAME, ControlServer
from colo.session.follower import Follower, explain
from colo.session.heat import DirtyHeat
from colo.session.keeper import StandbyKeeper
from colo.session.listening import listening
from colo.session.secondary_config import SecondaryConfig
from colo.session.statistics import CheckpointStatistics
from colo.session.takeover import TakeoverReport
from colo.stream import Configuration, RamBlockInfo
from colo.transport import abort, listen, tune

__all__ = ["Secondary", "SecondaryConfig"]

HOLD_LOOK_S = 0.2
"""How often a session that holds its checkpoint looks whether the other side runs."""
LOAD_ATTEMPTS = 2
"""Stand-bys that a takeover may use up, as long as the RAM image is untouched."""


@dataclass(frozen=True, slots=True)
class Loss:
    """How a connection ended. ``ours``: through a fault of this side (its disk is full, …), the primary is well."""

    reason: str
    noticed_ns: int
    ours: bool = False


class Secondary:
    """A secondary session. ::

        with Secondary(SecondaryConfig("tcp:127.0.0.1:9000", "/dev/shm/vm1", standby=argv, arbiter="file:/shared/vm1")) as s:
            report = s.run()          # returns when the VM runs here
            print(report.qmp_path, report.pid)

    ``on_event(kind, data)`` is called, from the session's threads, with ``listening``, ``connected``, ``announced``,
    ``checkpoint``, ``lost``, ``taking-over``, ``settled`` (the image is whole), ``notice`` and ``running``.
    :meth:`request_failover`, :meth:`status` and :meth:`stop` may be called from any thread.
    """

    def __init__(
        self, config: SecondaryConfig, *, on_event: Callable[[str, Any], None] = lambda kind, data: None
    ) -> None:
        self.config = config
        self.statistics = CheckpointStatistics()
        self.heat = DirtyHeat() if config.heat_map else None
        self.failover = Failover()
        self.state = "starting"
        self.report: TakeoverReport | None = None
        self._on_event = listening(on_event)
        self._cleanup = contextlib.ExitStack()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._cleanup.callback(os.close, self._wake_fd)
        self._requested: str | None = None
        self._stopping = False
        self._result: Future[TakeoverReport] = Future()
        self._follower: Follower | None = None
        self._keeper: StandbyKeeper | None = None
        self._arbiter: Arbiter | None = None
        self._generation: int | None = None
        self._won = False
        """This side holds the generation: the VM runs here, or nowhere."""
        self._spoiled = False
        """A stand-by may have run on the RAM image: it is no checkpoint any more."""
        try:
            self._open()
        except BaseException:
            self._cleanup.close()
            raise

    def _open(self) -> None:
        config = self.config
        if config.on_loss not in ("takeover", "hold"):
            raise ValueError(f"on_loss is 'takeover' or 'hold', not {config.on_loss!r}")
        if config.standby is not None:
            if not config.arbiter:
                raise ArbitrationError(
                    "a takeover needs an arbiter, or both sides may run: --arbiter file:DIR (storage both reach), "
                    "exec:COMMAND (your fencing), or none to go without"
                )
            self._arbiter = arbiter_from_uri(config.arbiter, role="secondary", create=True)
            self._cleanup.callback(self._arbiter.close)
            self._generation = self._arbiter.current()
        self.image = self._cleanup.enter_context(RamImage(config.ram_dir, max_ram_bytes=config.max_ram_bytes))
        self._listener = self._cleanup.enter_context(
            listen(config.listen, insecure=config.insecure, backlog=PENDING_LIMIT))
        self.address = self._listener.address
        control = ControlServer(
            Path(config.ram_dir) / SOCKET_NAME, {
                "status": self.status, "failover": self._failover_command,
                "heat": lambda: self.heat.summary() if self.heat else None,
            })
        self._cleanup.callback(control.close)
        self.state = "listening"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session: connection, stand-by (unless it took over), files and sockets."""
        self._stopping = True
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if not self._result.done():
            self._result.cancel()
        self._cleanup.close()

    # -- requests, from any thread

    def request_failover(self, reason: str = "request") -> Future[TakeoverReport]:
        """Ask for a takeover; the future has its report, or the error it ended with. Raises NoCheckpoint at once."""
        if self._follower is None or self._follower.committed is None:
            raise NoCheckpoint("nothing to resume from: no checkpoint has been committed yet")
        if self.config.standby is None:
            raise StandbyError("this session has no stand-by: give --standby with the primary's command line")
        if self._requested is None:
            self._requested = reason
        self._wake()
        return self._result

    def stop(self) -> None:
        """End :meth:`run` with Interrupted."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _failover_command(self) -> dict[str, Any]:
        return self.request_failover().result(self.config.takeover_s + 10).as_dict()

    def status(self) -> dict[str, Any]:
        """What ``colo status`` shows; keys are stable."""
        follower = self._follower
        committed = follower.committed if follower else None
        return {
            "state": self.state,
            "failover": self.failover.status.value,
            "listen": self.address,
            "protocol_state": follower.machine.state.value if follower else None,
            "checkpoint": committed.number if committed else None,
            "checkpoint_age_ms": round((time.monotonic_ns() - committed.at_ns) / 1e6, 1) if committed else None,
            "machine": committed.configuration.machine if committed else None,
            "ram_bytes": self.image.total_bytes,
            "ram_storage_bytes": self.image.storage_bytes,
            "staged_high_water_bytes": follower.staged_high_water_bytes if follower else 0,
            "standby": self._keeper.state if self._keeper else None,
            "generation": self._generation,
            "statistics": self.statistics.as_dict(),
            "takeover": self.report.as_dict() if self.report else None,
        }

    def _tell(self, kind: str, data: Any = None) -> None:
        self._on_event(kind, data)

    # -- the session

    def run(self) -> TakeoverReport:
        """Wait for a primary, follow it, take over when it is lost. Returns the takeover's report.

        Raises NoCheckpoint (lost before the first commit), ArbitrationLost (the other side runs), StandbyError (there is
        none, or one has spoiled the image), Interrupted (:meth:`stop`). A takeover that fails otherwise is told as a
        ``notice``; the checkpoint is then held until :meth:`request_failover` tries again, and :meth:`stop` ends that
        with the failure.
        """
        try:
            report = self._run()
        except BaseException as error:
            self.state = "failed"
            if not self._result.done():
                self._result.set_exception(
                    error if isinstance(error, ColoError) else Interrupted(f"the session ended: {explain(error)}"))
            raise
        self._result.set_result(report)
        return report

    def _run(self) -> TakeoverReport:
        self._tell("listening", self.address)
        sock = admit(
            self._listener.socket, handshake_s=self.config.deadlines.handshake_s, wake_fd=self._wake_fd,
            prepare=lambda s: tune(s, self.config.deadlines.message_s),
            refused=lambda reason: self._tell("notice", reason), allow_uids=self.config.allow_uids,
        )
        self._listener.close()  # one primary: there is no second one to admit
        self.state = "connected"
        self._tell("connected")
        follower = self._follower = Follower(
            sock, self.image, deadlines=self.config.deadlines, limits=self.config.limits, mode=self.config.mode,
            wake_fd=self._wake_fd, on_announced=self._announced, on_commit=self._committed,
        )
        follower.heat = self.heat
        loss = self._follow(follower)
        if self._stopping:
            raise Interrupted("the session was asked to stop")
        if follower.committed is None:
            raise NoCheckpoint(
                "the primary was lost before the first checkpoint was whole, there is nothing to resume from: "
                f"{loss.reason}")
        if self.config.standby is None:
            raise StandbyError(
                f"{loss.reason}; checkpoint {follower.committed.number} is committed, but there is no stand-by "
                "(--standby)")
        if self._requested is None and (loss.ours or self.config.on_loss == "hold"):
            if loss.ours:
                self._tell(
                    "notice", f"the fault is on this side, so the primary may go on: checkpoint "
                    f"{follower.committed.number} is kept, `colo failover` takes over")
            loss = self._hold(Interrupted(f"the session was asked to stop while it held the checkpoint; {loss.reason}"))
        while True:
            try:
                return self._take_over(follower, loss)
            except ArbitrationLost:
                raise
            except (ColoError, OSError) as failure:
                if self._spoiled:
                    raise
                error = failure if isinstance(failure, ColoError) else StandbyError(f"the takeover failed: {failure}")
            # The VM's state is here, and maybe nowhere else: it is not thrown away for a fault that may pass.
            self._tell(
                "notice", f"the takeover failed: {error}; checkpoint {follower.committed.number} is kept, "
                "`colo failover` tries again")
            self._requested = None
            self._result.set_exception(error)
            self._result = Future()
            loss = self._hold(error)

    def _announced(self, configuration: Configuration, blocks: list[RamBlockInfo]) -> None:
        self._tell("announced", (configuration, blocks))
        if self.config.standby is not None:
            self._keeper = StandbyKeeper(
                self.config.standby, self.image, Path(self.config.ram_dir) / "standby",
                share_ram=self.config.share_ram, on_event=lambda text: self._tell("notice", text),
            )
            self._keeper.start(configuration, blocks)

    def _committed(self, committed: Committed, report: CheckpointReport) -> None:
        self.state = "protecting"
        self.statistics.add(report)
        self._tell("checkpoint", report)

    def _follow(self, follower: Follower) -> Loss:
        """Follow until the connection ends; why, and when it was noticed."""
        try:
            follower.run()
            raise AssertionError("a connection ends with an error that says how")
        except Interrupted:
            noticed_ns = time.monotonic_ns()
            self._clear_wake()
            if self._requested is None or self._stopping or follower.committed is None:
                self._cut(follower)
            # Else the connection lives until the takeover has claimed the VM: a primary that saw it go would claim too.
            return Loss(self._requested or "stopped", noticed_ns)
        except Exception as error:
            # Whatever it is: what was committed before must survive it.
            noticed_ns = time.monotonic_ns()
            reason = explain(error)
            self._tell("lost", reason)
            self._cut(follower)
            return Loss(reason, noticed_ns, ours=not isinstance(error, (ChannelError, StreamError, ProtocolError)))
        except BaseException:
            abort(follower.sock)
            raise

    @staticmethod
    def _cut(follower: Follower) -> None:
        """End the connection and drop what is not committed. Any number of times."""
        follower.abandon()
        abort(follower.sock)

    def _clear_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def _hold(self, unless: ColoError) -> Loss:
        """Keep the checkpoint until a takeover is asked for.

        Raises ``unless`` when the session is stopped, ArbitrationLost when the other side runs the VM.
        """
        self.state = "holding"
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        while self._requested is None:
            if self._stopping:
                raise unless
            if not self._won:
                self._look_at_generation()
            if poller.poll(HOLD_LOOK_S * 1000):
                self._clear_wake()
        return Loss(self._requested, time.monotonic_ns())

    def _look_at_generation(self) -> None:
        assert self._arbiter is not None and self._generation is not None
        try:
            holds = self._arbiter.still_holds(self._generation)
        except ArbitrationError:
            return  # it cannot be told just now
        if not holds:
            raise ArbitrationLost("the other side runs the VM: this checkpoint is of no use any more")

    # -- the takeover

    def _take_over(self, follower: Follower, loss: Loss) -> TakeoverReport:
        assert self._keeper is not None
        self.state = "taking-over"
        self._tell("taking-over", loss.reason)
        self.failover.feed(FailoverEvent.REQUEST)
        # First what it takes: who has nothing to run the VM with must not stop the other side's.
        try:
            standby = self._keeper.take(self.config.takeover_s)
        except BaseException:
            self._cut(follower)
            self.failover.feed(FailoverEvent.BROKEN if self._won else FailoverEvent.REFUSED)
            raise
        ready_ns = time.monotonic_ns()
        try:
            if not self._won:
                self._arbitrate(loss.reason)
            self._cut(follower)
            arbitrated_ns = time.monotonic_ns()
            committed = follower.settle()
            assert committed is not None
            self._tell("settled", committed)
        except BaseException as error:
            self._cut(follower)
            standby.close()
            if isinstance(error, ArbitrationError) and not isinstance(error, ArbitrationLost):
                self._keeper.replace()
            raise
        settled_ns = time.monotonic_ns()
        for attempt in range(1, LOAD_ATTEMPTS + 1):
            try:
                report = self._resume(
                    committed, standby, loss, detection_ns=loss.noticed_ns - follower.last_byte_ns,
                    arbitration_ns=arbitrated_ns - ready_ns,
                    settle_ns=ready_ns - loss.noticed_ns + settled_ns - arbitrated_ns,
                )
                break
            except BaseException as error:
                standby.close()
                self.failover.feed(FailoverEvent.BROKEN)
                if standby.may_have_run:
                    self._spoiled = True
                    raise StandbyError(
                        f"{error}; it may have run and changed the RAM it shares, so checkpoint {committed.number} "
                        "cannot be loaded again") from error
                self._keeper.replace()
                if attempt == LOAD_ATTEMPTS or not isinstance(error, (ColoError, OSError)):
                    raise
                self._tell("notice", f"the stand-by failed, the image is untouched, another tries: {error}")
                standby = self._keeper.take(self.config.takeover_s)
                settled_ns = time.monotonic_ns()
        self.failover.feed(FailoverEvent.RUNNING)
        self.report = report
        self.state = "running"
        self._tell("running", report)
        return report

    def _arbitrate(self, reason: str) -> None:
        """Win the generation, or raise ArbitrationLost. While it cannot be decided, nobody takes over."""
        assert self._arbiter is not None and self._generation is not None
        try:
            self._generation = claim(
                self._arbiter, self._generation, reason=reason, on_undecided=self._undecided,
                stopping=lambda: self._stopping)
        except ArbitrationLost:
            self.failover.feed(FailoverEvent.REFUSED)
            raise
        self._won = True
        self.failover.feed(FailoverEvent.WON)

    def _undecided(self, text: str) -> None:
        if self._follower is not None:
            self._cut(self._follower)  # who waits at the other end is not to wait for this
        self._tell("notice", text)

    def _resume(
        self, committed: Committed, standby: Standby, loss: Loss, *, detection_ns: int, arbitration_ns: int, settle_ns: int
    ) -> TakeoverReport:
        begin_ns = time.monotonic_ns()
        stream = compose(committed, shared=standby.shared_blocks, addresses=standby.block_addresses)
        channel = standby.connect()
        with channel:
            channel.settimeout(self.config.takeover_s)
            sent_bytes = stream.write(channel.fileno(), timeout_s=self.config.takeover_s)
            channel.shutdown(socket.SHUT_WR)
            composed_ns = time.monotonic_ns()
            outcome = standby.finish(self.config.takeover_s)
        running_ns = time.monotonic_ns()
        qmp_path, pid = standby.hand_over()
        self.image.remove_files()
        return TakeoverReport(
            checkpoint=committed.number,
            reason=loss.reason,
            generation=self._generation,
            detection_ms=max(0, detection_ns) / 1e6,
            arbitration_ms=arbitration_ns / 1e6,
            settle_ms=settle_ns / 1e6,
            compose_ms=(composed_ns - begin_ns) / 1e6,
            load_ms=max(0.0, (running_ns - composed_ns) / 1e6 - outcome.running_ms),
            running_ms=outcome.running_ms,
            total_ms=(running_ns - loss.noticed_ns) / 1e6,
            checkpoint_age_ms=(loss.noticed_ns - committed.at_ns) / 1e6,
            sent_bytes=sent_bytes,
            shared_blocks=tuple(standby.shared_blocks),
            qmp_path=str(qmp_path),
            pid=pid,
        )
