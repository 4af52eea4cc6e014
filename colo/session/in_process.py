"""A secondary for VMs that live in this process: at takeover the VM's own memory already holds the checkpoint.

Checkpoints are applied straight to the memory of a VM that stands by. When a primary comes back after a loss, its full copy
goes into a second set of blocks until it is committed: the last committed checkpoint stays whole meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from colo.abc import GuestBlock, Transport, VirtualMachine
from colo.arbiter import Runner, arbiter_from_uri, claim
from colo.arbiter.watch import why_ended
from colo.control.server import ControlServer
from colo.epoch.committed import Committed
from colo.errors import (
    ArbitrationError,
    ArbitrationLost,
    ColoError,
    Interrupted,
    NoCheckpoint,
    VmEnded,
    VmError,
    explain,
)
from colo.figures.dirty_heat import DirtyHeat
from colo.figures.secondary_report import CheckpointReport, CheckpointStatistics
from colo.lease.promises import Promises
from colo.link.follower import Follower
from colo.memory.guest_image import GuestImage
from colo.protocol import Failover, FailoverEvent, FailoverStatus, Mode
from colo.protocol.deadlines import Deadlines
from colo.protocol.lease import LEASE_MS
from colo.stream import StreamLimits
from colo.trace import listening
from colo.transport import TcpOptions, listen
from colo.transport.admission import PENDING_LIMIT
from colo.transport.door import Door
from colo.vm.hold import VmHold
from colo.vm.saved_state import decode_state
from colo.wake import Wake


@dataclass(frozen=True, slots=True)
class InProcessConfig:
    """What an in-process secondary needs to know. Only ``listen`` and ``arbiter`` have no default."""

    listen: str
    arbiter: str
    """``file:DIR``, ``etcd:URL/PREFIX``, ``exec:COMMAND`` or ``none``."""
    vm: str = ""
    """The VM's name: an arbiter of another VM is refused. "": whichever the arbiter's is."""
    lease_ms: float = LEASE_MS
    """The longest lease that this side promises, in milliseconds; the primary's decides within that. 0: none, and a
    primary that asks for none is let in."""
    wait_s: float = 0.0
    """After a loss: so long the primary may come back (its ``resync_s``) before this side takes over."""
    resume: bool = True
    """Let the VM run after the takeover."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: StreamLimits = field(default_factory=StreamLimits)
    mode: Mode = Mode.EARLY
    insecure: bool = False
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may connect."""
    heat_map: bool = False
    """Count the pages of each checkpoint by place (:attr:`InProcessSecondary.heat`)."""
    control: str | None = None
    """Path of a control socket (mode 0600) that answers ``status``, ``heat`` and ``failover``; see `colo status`."""
    takeover_s: float = 30.0
    """Most that a takeover asked for there may take before it is said to be late; it goes on."""


@dataclass(frozen=True, slots=True)
class InProcessTakeover:
    """A takeover that succeeded; parts in milliseconds."""

    checkpoint: int
    reason: str
    generation: int
    arbitration_ms: float
    settle_ms: float
    load_ms: float
    total_ms: float
    checkpoint_age_ms: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class _Held:
    committed: Committed
    image: GuestImage


class InProcessSecondary:
    """Follows a primary into ``vm``, which must stand still, and makes it run when the primary is lost. ::

        with InProcessSecondary(vm, InProcessConfig("tcp:127.0.0.1:9000", "file:/shared/vm1")) as secondary:
            report = secondary.run()       # returns when the VM runs here

    ``on_event(kind, data)`` hears ``listening``, ``connected``, ``checkpoint``, ``lost``, ``taking-over``, ``notice`` and
    ``running``.
    """

    def __init__(
        self, vm: VirtualMachine, config: InProcessConfig, *,
        on_event: Callable[[str, Any], None] = lambda kind, data: None,
    ) -> None:
        self.vm = vm
        self.config = config
        self._pid = os.getpid()
        self.statistics = CheckpointStatistics()
        self.heat = DirtyHeat() if config.heat_map else None
        self.failover = Failover()
        self.state = "starting"
        self.report: InProcessTakeover | None = None
        self._on_event = listening(on_event)
        self._own = tuple(vm.memory.blocks)
        self._spare: tuple[GuestBlock, ...] | None = None
        self._held: _Held | None = None
        self._following: tuple[Follower, GuestImage] | None = None
        self._requested: str | None = None
        self._by_request = False
        """It was an operator who asked, not a loss."""
        self._stopping = False
        self._result: Future[InProcessTakeover] = Future()
        self._cleanup = contextlib.ExitStack()
        self._wake = Wake()
        self._cleanup.callback(self._wake.close)
        try:
            self._arbiter = arbiter_from_uri(config.arbiter, role="secondary", vm=config.vm)
            self._cleanup.callback(self._arbiter.close)
            self.generation = self._arbiter.current()
            self._listener = self._cleanup.enter_context(
                listen(
                    config.listen, insecure=config.insecure, backlog=PENDING_LIMIT,
                    options=TcpOptions.within(config.deadlines.message_s)))
            self.address = self._listener.address
            self.promises = Promises(
                config.lease_ms, required=config.lease_ms > 0, arbiter=self._arbiter,
                checkpoint=lambda: self.committed.number if self.committed else None,
                tell=lambda text: self._tell("notice", text), wake=self._wake.set)
            self._cleanup.callback(self.promises.close)
            self._door = Door(
                self._listener, handshake_s=config.deadlines.handshake_s, refused=lambda text: self._tell("notice", text),
                lease=self.promises.take, bars=self.promises.bars, parks=True, allow_uids=config.allow_uids)
            self._cleanup.callback(self._door.close)
            if config.control is not None:
                control = ControlServer(Path(config.control), {
                    "status": self.status, "failover": self._failover_command,
                    "heat": lambda: self.heat.summary() if self.heat else None,
                })
                self._cleanup.callback(control.close)
            self.state = "listening"
        except BaseException:
            self._cleanup.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def committed(self) -> Committed | None:
        """The last committed checkpoint, of whichever connection."""
        following = self._following
        if following is not None and following[0].committed is not None:
            return following[0].committed
        return self._held.committed if self._held else None

    def request_failover(self, reason: str = "request") -> Future[InProcessTakeover]:
        """Ask for a takeover; the future has its report, or the error it ended with. Raises NoCheckpoint at once."""
        if self.committed is None:
            raise NoCheckpoint("nothing to resume from: no checkpoint has been committed yet")
        self._by_request = True
        self._ask(reason)
        return self._result

    def _failover_command(self) -> dict[str, Any]:
        return self.request_failover().result(self.config.takeover_s).as_dict()

    def status(self) -> dict[str, Any]:
        """What ``colo status`` shows; keys are stable, and those of :meth:`colo.session.secondary.Secondary.status`
        as far as they mean something here."""
        following = self._following
        committed = self.committed
        return {
            "state": self.state,
            "failover": self.failover.status.value,
            "listen": self.address,
            "protocol_state": following[0].machine.state.value if following else None,
            "checkpoint": committed.number if committed else None,
            "checkpoint_age_ms": round((time.monotonic_ns() - committed.at_ns) / 1e6, 1) if committed else None,
            "machine": committed.configuration.machine if committed else None,
            "ram_bytes": sum(block.length_bytes for block in self._own),
            "staged_high_water_bytes": following[0].staged_high_water_bytes if following else 0,
            "generation": self.generation,
            "lease": self.promises.status(),
            "statistics": self.statistics.as_dict(),
            "takeover": self.report.as_dict() if self.report else None,
        }

    def stop(self) -> None:
        """End :meth:`run` with Interrupted."""
        self._stopping = True
        self._wake.set()

    def close(self) -> None:
        """Let go of sockets and arbiter; :meth:`run` must have ended."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        if not self._result.done():
            self._result.cancel()
        self._cleanup.close()

    def _ask(self, reason: str) -> None:
        self._requested = self._requested or reason
        self._wake.set()

    def run(self) -> InProcessTakeover:
        """Follow a primary; returns when the VM was taken over.

        Raises RuntimeError (another session has the VM), NoCheckpoint (lost before the first commit), ArbitrationLost (the
        other side runs), VmError (the VM did not load the state) or Interrupted (:meth:`stop`). Whatever it raises,
        :attr:`committed` stays as long as this object; run again, it holds that, lets a primary come back, and takes over
        when asked.
        """
        if self._result.done():
            self._result = Future()
            self._requested, self._by_request, self.failover = None, False, Failover()
            self.promises.relent()
            self.promises.alone = 0  # that was heard: the arbiter is asked again when it matters
            self.state = "waiting"
        hold = VmHold(self.vm)
        hold.take()
        try:
            report = self._run_unless_ended()
        except BaseException as error:
            self.state = "failed"
            if not self._result.done():
                self._result.set_exception(
                    error if isinstance(error, ColoError) else Interrupted(f"the session ended: {explain(error)}"))
            raise
        finally:
            hold.release()
        self._result.set_result(report)
        return report

    def _run_unless_ended(self) -> InProcessTakeover:
        """A generation that is over may be so because the VM was ended: whoever ended it may not have been heard yet."""
        try:
            return self._run()
        except ArbitrationLost as lost:
            if not (why := why_ended(self._arbiter)):
                raise
            raise VmEnded(f"the VM was ended at the primary ({why}): nothing is to be taken over") from lost

    def _run(self) -> InProcessTakeover:
        self._tell("listening", self.address)
        reason, noticed_ns = "", 0
        back = False
        while True:
            timer = threading.Timer(self.config.wait_s, self._ask, (f"{reason}; the primary did not come back",)) \
                if back else None
            if timer is not None:
                timer.daemon = True
                timer.start()
            try:
                sock = self._door.wait(self._wake.fd)
            except Interrupted:
                if not self._woken():
                    continue
                noticed_ns = noticed_ns or time.monotonic_ns()
                return self._take_over(self._requested or reason, noticed_ns)
            finally:
                if timer is not None:
                    timer.cancel()
            if self._requested is not None:  # it came, and the timer too: who was asked for first goes first
                sock.close()
                self._woken()
                return self._take_over(self._requested, noticed_ns or time.monotonic_ns())
            reason, noticed_ns = self._follow(sock)
            if self._stopping:
                raise Interrupted("the session was asked to stop")
            self._heed()
            if self._held is None:
                self._tell(
                    "notice", "the primary was lost before its first checkpoint was whole, so there is nothing to resume "
                    "from: "
                    f"{reason}; waiting for it, or another")
                continue
            if self._requested is None and self.config.wait_s > 0:
                back = True
                continue
            return self._take_over(self._requested or reason, noticed_ns)

    def _woken(self) -> bool:
        """Whether a takeover is wanted. Raises Interrupted, VmEnded, ArbitrationLost."""
        self._wake.clear()
        if self._stopping:
            raise Interrupted("the session was asked to stop")
        if self._held is None:
            return False  # the primary's side said something of a session that came to nothing
        self._heed()
        return self._requested is not None

    def _heed(self) -> None:
        """What the primary's side said over the lease connection. Raises VmEnded, ArbitrationLost."""
        if self.promises.ended:
            raise VmEnded(f"the VM was ended at the primary ({self.promises.ended}): nothing is to be taken over")
        if self.promises.alone and self._held is not None and self.failover.status is FailoverStatus.NONE:
            raise ArbitrationLost(
                f"the primary's VM runs on alone, in generation {self.promises.alone}: "
                f"{self.promises.said or 'no reason given'}")

    def _free_blocks(self) -> tuple[GuestBlock, ...]:
        """Blocks that hold no committed checkpoint."""
        if self._held is None or self._held.image.guest_blocks[self._own[0].idstr] is not self._own[0]:
            return self._own
        if self._spare is None:
            self._spare = tuple(GuestBlock.allocate(block.idstr, block.length_bytes) for block in self._own)
        return self._spare

    def _follow(self, sock: Transport) -> tuple[str, int]:
        self.state = "connected"
        self.generation = self._generation_now()
        self._tell("connected")
        image = GuestImage(self._free_blocks())

        def on_commit(committed: Committed, report: CheckpointReport) -> None:
            self.state = "protecting"
            self.promises.progress()
            self.statistics.add(report)
            self._tell("checkpoint", report)

        follower = Follower(
            sock, image, deadlines=self.config.deadlines, limits=self.config.limits, mode=self.config.mode,
            wake_fd=self._wake.fd, on_commit=on_commit,
        )
        follower.heat = self.heat
        self._following = follower, image
        self.promises.follow(sock)
        try:
            follower.run()
        except Interrupted:
            noticed_ns = time.monotonic_ns()
            reason = self._requested or ("stopped" if self._stopping else self.promises.lapsed or "the primary ended it")
            self._wake.clear()
            if self._by_request and not self._stopping and self.committed is not None:
                self._arbitrate(reason)  # before the primary can notice: it would claim too
            follower.abandon()
        except ColoError as error:
            noticed_ns = time.monotonic_ns()
            reason = explain(error)
            self._tell("lost", reason)
        finally:
            self.promises.follow(None)
            sock.end_sending()
            try:
                # However it ended, and also when its acknowledgement did not leave any more.
                if (committed := follower.settle()) is not None:
                    self._held = _Held(committed, image)
            finally:
                follower.close()
                self._following = None
        self.state = "waiting"
        return reason, noticed_ns

    def _take_over(self, reason: str, noticed_ns: int) -> InProcessTakeover:
        held = self._held
        assert held is not None
        self.state = "taking-over"
        self._tell("taking-over", reason)
        if self.failover.status is FailoverStatus.NONE:
            self._arbitrate(reason)
        arbitrated_ns = time.monotonic_ns()
        if held.image.guest_blocks[self._own[0].idstr] is not self._own[0]:
            held.image.load_into(self._own)
        settled_ns = time.monotonic_ns()
        try:
            self.vm.load_state(decode_state(held.committed.device_state, self.config.limits))
            if self.config.resume:
                self.vm.resume()
        except Exception as error:
            self.failover.feed(FailoverEvent.BROKEN)
            raise VmError(
                f"the VM did not take checkpoint {held.committed.number} over: {type(error).__name__}: {error}") from error
        self.failover.feed(FailoverEvent.RUNNING)
        done_ns = time.monotonic_ns()
        report = InProcessTakeover(
            checkpoint=held.committed.number,
            reason=reason,
            generation=self.generation,
            arbitration_ms=(arbitrated_ns - noticed_ns) / 1e6,
            settle_ms=(settled_ns - arbitrated_ns) / 1e6,
            load_ms=(done_ns - settled_ns) / 1e6,
            total_ms=(done_ns - noticed_ns) / 1e6,
            checkpoint_age_ms=(noticed_ns - held.committed.at_ns) / 1e6,
        )
        self.report = report
        self.state = "running"
        self._tell("running", report)
        return report

    def _arbitrate(self, reason: str) -> None:
        """Win the generation, or raise ArbitrationLost. While it cannot be decided, nobody takes over."""
        self.failover.feed(FailoverEvent.REQUEST)
        try:
            if not self._by_request:
                # After a loss this side waits first: the primary, if it lives, is to win, as its VM has lost nothing.
                self.promises.want()
                self._await_leave(self._look_at_generation, won=False)
            self.generation = claim(
                self._arbiter, self.generation, reason=reason, runner=Runner.of(),
                on_undecided=lambda text: self._tell("notice", text), stopping=lambda: self._stopping)
            self.promises.claimed(self.generation)
            self._await_leave(lambda: None, won=True)
        except (ArbitrationLost, VmEnded):
            self.failover.feed(FailoverEvent.REFUSED)
            raise
        except ColoError:
            self.promises.relent()
            self.promises.alone = 0  # that was heard: the arbiter is asked again when it matters
            raise
        self.failover.feed(FailoverEvent.WON)

    def _await_leave(self, look: Callable[[], None], *, won: bool) -> None:
        """Until the primary's VM is known to stand still."""
        self.promises.wait_to_run(
            stopping=lambda: self._stopping, lost=look, told=lambda text: self._tell("notice", text),
            proven=won and self._arbiter.fences, will_fence=self._arbiter.fences)

    def _look_at_generation(self) -> None:
        """While this side waits for the other's lease to end, that side may win."""
        self._heed()
        try:
            holds = self._arbiter.still_holds(self.generation)
        except ArbitrationError:
            return  # it cannot be told just now
        if not holds:
            raise ArbitrationLost("the other side runs the VM: this checkpoint is of no use any more")

    def _generation_now(self) -> int:
        """That of the primary that is let in: what it said when it was met, or what the arbiter says."""
        met = self.promises.generation
        return met if met is not None else self._arbiter.current()

    def _tell(self, kind: str, data: Any = None) -> None:
        self._on_event(kind, data)
