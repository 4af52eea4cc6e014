"""The secondary: follows a primary, and runs its VM from the last committed checkpoint when the primary is lost."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from colo.abc import Transport
from colo.arbiter import Arbiter, Runner, arbiter_from_uri, claim
from colo.arbiter.watch import ArbiterWatch, GenerationLook, why_ended
from colo.control.server import SOCKET_NAME, ControlServer
from colo.epoch.committed import Committed
from colo.epoch.composed import compose
from colo.errors import (
    AddressError,
    ArbitrationError,
    ArbitrationLost,
    ChannelError,
    ColoError,
    Interrupted,
    NoCheckpoint,
    ProtocolError,
    StandbyError,
    StandbyRefused,
    StreamError,
    VmEnded,
    explain,
)
from colo.figures.dirty_heat import DirtyHeat
from colo.figures.secondary_report import CheckpointReport, CheckpointStatistics
from colo.figures.takeover_report import TakeoverReport
from colo.lease.promises import Promises
from colo.link.follower import Follower
from colo.memory import Phase, RamImage, SessionFacts
from colo.protocol import Failover, FailoverEvent
from colo.qemu.foresight import Rehearsal, room_notice
from colo.qemu.standby import Standby
from colo.session.secondary_config import SecondaryConfig
from colo.stream import Configuration, RamBlockInfo
from colo.takeover.keeper import STANDBY_NAMES, StandbyKeeper, check_room_for_sockets
from colo.takeover.kept import (
    RecoveredCopy,
    check_arbiter,
    check_same_vm,
    describe,
    farewell,
    in_doubt,
    mark_lost,
    mark_telling,
    mark_untouched,
    standing,
    state_of,
)
from colo.takeover.left_running import finish_what_began
from colo.trace import listening
from colo.transport import TcpOptions, listen
from colo.transport.admission import PENDING_LIMIT
from colo.transport.door import Door
from colo.wake import Wake

__all__ = ["Secondary", "SecondaryConfig"]

REHEARSAL_NAME = "r"
LOADABLE = "tried: the stand-by can load this VM"
REFUSED_RETRY_S = 2.0
"""A stand-by that would not run the VM (a disk is held) is followed by another after this time: nobody else may run it."""
LOAD_ATTEMPTS = 2
"""Stand-bys that a takeover may use up, as long as the RAM image is untouched."""


@dataclass(frozen=True, slots=True)
class Loss:
    """How a connection ended. ``ours``: through a fault of this side (its disk is full, …), the primary is well."""

    reason: str
    noticed_ns: int
    ours: bool = False
    asked: bool = False
    """A takeover is what was waited for, whatever ``on_loss`` says."""


class Secondary:
    """A secondary session. ::

        with Secondary(SecondaryConfig("tcp:127.0.0.1:9000", "/dev/shm/vm1", standby=argv, arbiter="file:/shared/vm1")) as s:
            report = s.run()          # returns when the VM runs here
            print(report.qmp_path, report.pid)

    ``on_event(kind, data)`` is called, from the session's threads, with ``listening``, ``connected``, ``announced``,
    ``checkpoint``, ``lost``, ``taking-over``, ``settled`` (the image is whole), ``notice``, ``verdict`` (of a trial:
    why the stand-by would refuse the VM, or that it loads it) and ``running``.

    The last committed checkpoint outlives the session, however that ends, in ``ram_dir``; a session that is started on one
    (:attr:`recovered`) holds it, lets its primary come back, and can take over from it.
    :meth:`request_failover`, :meth:`status` and :meth:`stop` may be called from any thread.
    """

    def __init__(
        self, config: SecondaryConfig, *, on_event: Callable[[str, Any], None] = lambda kind, data: None
    ) -> None:
        self.config = config
        self._pid = os.getpid()
        self.statistics = CheckpointStatistics()
        self.heat = DirtyHeat() if config.heat_map else None
        self.failover = Failover()
        self.state = "starting"
        self.report: TakeoverReport | None = None
        self._on_event = listening(on_event)
        self._cleanup = contextlib.ExitStack()
        self._wake = Wake()
        self._cleanup.callback(self._wake.close)
        self._requested: str | None = None
        self._stopping = False
        self._result: Future[TakeoverReport] = Future()
        self._follower: Follower | None = None
        """Of the connection there is, or was last."""
        self._copy: Follower | RecoveredCopy | None = None
        """Who has the last committed checkpoint."""
        self.recovered = False
        """An earlier session committed it: what that one promised is not known here."""
        self._lost_to = ""
        """The other side runs the VM: who, in words."""
        self._eager = ""
        """Why a takeover is due without a request."""
        self._keeper: StandbyKeeper | None = None
        """The stand-by for :attr:`_copy`."""
        self._next_keeper: StandbyKeeper | None = None
        """For a primary whose first copy is not whole yet."""
        self._rehearsal: Rehearsal | None = None
        self._arbiter: Arbiter | None = None
        self._generation: int | None = None
        self._won = False
        """This side holds the generation: the VM runs here, or nowhere."""
        self._spoiled = False
        """A stand-by may have run on the RAM image: it is no checkpoint any more."""
        self._no_lease = ""
        self._left = ""
        """What allowed this side to run the VM."""
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
                    "etcd:URL/PREFIX, exec:COMMAND (your fencing), or none to go without"
                )
            self._arbiter = arbiter_from_uri(config.arbiter, role="secondary", vm=config.vm)
            self._cleanup.callback(self._arbiter.close)
            check_room_for_sockets(Path(config.ram_dir) / STANDBY_NAMES[0], of="--ram-dir")
            self._generation = self._arbiter.current()
        self.image = RamImage(config.ram_dir, max_ram_bytes=config.max_ram_bytes, discard=config.discard)
        self._cleanup.callback(self._leave_image)
        self._cleanup.callback(self._close_keepers)
        self._take_in_copy()
        if config.listen:
            self._listener = self._cleanup.enter_context(
                listen(
                    config.listen, insecure=config.insecure, backlog=PENDING_LIMIT,
                    options=TcpOptions.within(config.deadlines.message_s)))
        elif not self.recovered:
            raise AddressError(f"no address to listen at, and {config.ram_dir} holds no checkpoint")
        self.address = self._listener.address if config.listen else ""
        lease_ms = config.lease_ms
        if self.recovered and lease_ms and self.image.kept.description is not None:
            lease_ms = max(lease_ms, self.image.kept.description.session.lease_ms)  # what was promised then holds
        self.promises = Promises(
            lease_ms, required=config.standby is not None and config.lease_ms > 0, arbiter=self._arbiter,
            checkpoint=self._committed_number, tell=lambda text: self._tell("notice", text), wake=self._wake.set,
            forgotten=self.recovered)
        self._cleanup.callback(self.promises.close)
        if config.standby is not None and not config.lease_ms:
            self._no_lease = (
                "no lease was asked for (--no-lease): a primary that is cut off is not stopped by time, so both sides can "
                "run "
                "unless the arbiter itself fences (exec:)")
        self._door: Door | None = None
        if config.listen:
            self._door = Door(
                self._listener, handshake_s=config.deadlines.handshake_s,
                refused=lambda reason: self._tell("notice", reason), lease=self.promises.take, bars=self.promises.bars,
                allow_uids=config.allow_uids)
            self._cleanup.callback(self._door.close)
        control = ControlServer(
            Path(config.ram_dir) / SOCKET_NAME, {
                "status": self.status, "failover": self._failover_command,
                "heat": lambda: self.heat.summary() if self.heat else None,
            })
        self._cleanup.callback(control.close)
        self.state = "holding" if self.recovered else "listening"

    def _take_in_copy(self) -> None:
        """What an earlier session left in the directory, and where it stands at the arbiter. Raises StorageError,
        ArbitrationError."""
        config, kept = self.config, self.image.kept
        identity = self._arbiter.identity if self._arbiter is not None else None
        kept.session = SessionFacts.of_this_process(
            standby=tuple(config.standby) if config.standby is not None else None, share_ram=config.share_ram,
            arbiter=config.arbiter, arbiter_id=identity.id if identity else "", vm=identity.vm if identity else config.vm,
            uuid=identity.uuid if identity else "", listen=config.listen,
            lease_ms=math.ceil(config.lease_ms))
        if kept.record is None:
            return
        check_arbiter(kept, config.arbiter, identity)
        if self._arbiter is not None:
            found = standing(kept, self._arbiter)
            self._generation = found.generation
            if found.lost_to:
                kept.change(lost_generation=found.lost_generation, lost_to=found.lost_to)
                self._lost_to = found.lost_to
            elif found.eager:
                self._eager = f"this side had won generation {found.generation}, and ended before it ran the VM"
        self.recovered = True
        self._copy = RecoveredCopy(self.image)

    def _leave_image(self) -> None:
        self.image.close()
        if text := farewell(self.image):
            self._tell("notice", text)

    def _close_keepers(self) -> None:
        for keeper in (self._keeper, self._next_keeper):
            if keeper is not None:
                keeper.close()
        self._keeper = self._next_keeper = None

    @property
    def committed(self) -> Committed | None:
        """The last committed checkpoint, of whichever connection or session."""
        follower = self._follower
        if follower is not None and follower.committed is not None:
            return follower.committed
        return self._copy.committed if self._copy is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session: connection, stand-by (unless it took over) and sockets. A committed checkpoint stays where it is,
        unless its VM runs here."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        self._stopping = True
        if self._follower is not None:
            if self.report is None:
                self._follower.abandon()
                self._follower.settle()
            self._follower.close()
            self._follower = None
        if self._rehearsal is not None:
            self._rehearsal.join(5.0)
        if not self._result.done():
            self._result.cancel()
        self._cleanup.close()

    # -- requests, from any thread

    def request_failover(self, reason: str = "request") -> Future[TakeoverReport]:
        """Ask for a takeover; the future has its report, or the error it ended with. Raises NoCheckpoint at once."""
        if self.committed is None:
            raise NoCheckpoint("nothing to resume from: no checkpoint has been committed yet")
        if self.config.standby is None:
            raise StandbyError("this session has no stand-by: give --standby with the primary's command line")
        if self._requested is None:
            self._requested = reason
        self._wake.set()
        return self._result

    def stop(self) -> None:
        """End :meth:`run` with Interrupted."""
        self._stopping = True
        self._wake.set()

    def _failover_command(self) -> dict[str, Any]:
        return self.request_failover().result(self.config.takeover_s + 10).as_dict()

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
            "ram_storage_bytes": self.image.storage_bytes,
            "staged_high_water_bytes": follower.staged_high_water_bytes if follower else 0,
            "standby": keeper.state if (keeper := self._next_keeper or self._keeper) else None,
            "generation": self._generation,
            "recovered": self.recovered,
            "lost_to": self._lost_to or None,
            "lease": self.promises.status(),
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
            report = self._run_unless_ended()
        except BaseException as error:
            self.state = "failed"
            if not self._result.done():
                self._result.set_exception(
                    error if isinstance(error, ColoError) else Interrupted(f"the session ended: {explain(error)}"))
            raise
        self._result.set_result(report)
        return report

    def _run_unless_ended(self) -> TakeoverReport:
        """A generation that is over may be so because the VM was ended: whoever ended it may not have been heard yet."""
        try:
            return self._run()
        except ArbitrationLost as lost:
            if not (why := why_ended(self._arbiter)):
                raise
            self.image.remove_files()
            raise VmEnded(f"the VM was ended at the primary ({why}): nothing is to be taken over") from lost

    def _run(self) -> TakeoverReport:
        if self.address:
            self._tell("listening", self.address)
        if self._no_lease:
            self._tell("notice", self._no_lease)
        if self.recovered:
            kept = self.image.kept
            self._tell("notice", f"{self.image.directory} holds {describe(kept)}: {state_of(kept)[1]}")
            if (done := finish_what_began(self.image, self._generation)) is not None:
                return self._runs(done)
            self._ready_standby()
        elif self.config.standby is not None and self.config.trial:
            self._rehearsal = Rehearsal(
                self.config.standby, Path(self.config.ram_dir) / STANDBY_NAMES[0] / REHEARSAL_NAME,
                lambda text: self._tell("notice", text))
        watch = ArbiterWatch(self._arbiter, self._alarm) if self._arbiter is not None else None
        try:
            return self._serve(watch)
        except VmEnded:
            self.image.remove_files()  # it ended on purpose: nothing is to revive it
            raise
        finally:
            if watch is not None:
                watch.close()

    def _serve(self, watch: ArbiterWatch | None) -> TakeoverReport:
        loss = self._wait(watch, Interrupted("the session was asked to stop"))
        while True:
            copy = self._copy
            assert copy is not None and copy.committed is not None
            if self.config.standby is None:
                raise StandbyError(
                    f"{loss.reason}; checkpoint {copy.committed.number} is committed, but there is no stand-by (--standby)")
            retry_s: float | None = None
            try:
                self._heed()
                if self._requested is None and not loss.asked and (loss.ours or self.config.on_loss == "hold"):
                    if loss.ours:
                        self._tell(
                            "notice", f"the fault is on this side, so the primary may go on: checkpoint "
                            f"{copy.committed.number} is kept, `colo failover` takes over")
                    loss = self._wait(watch, Interrupted(
                        f"the session was asked to stop while it held the checkpoint; {loss.reason}"))
                    continue
                return self._take_over(copy, loss)
            except VmEnded:
                raise
            except ArbitrationLost as lost:
                self._mark_lost(str(lost))
                if self._stopping or not (self.recovered or self.config.wait):
                    raise
                self.promises.relent()  # its primary may come back
                self.promises.alone = 0
                error: ColoError = lost
            except (ColoError, OSError) as failure:
                if self._spoiled or self._stopping:
                    raise
                error = failure if isinstance(failure, ColoError) else StandbyError(f"the takeover failed: {failure}")
                retry_s = REFUSED_RETRY_S if self._won and isinstance(error, StandbyRefused) else None
                # The VM's state is here, and maybe nowhere else: it is not thrown away for a fault that may pass.
                again = f"it is tried again in {retry_s:g} s" if retry_s else "`colo failover` tries again"
                self._tell(
                    "notice", f"the takeover failed: {error}; checkpoint {copy.committed.number} is kept, {again}")
                if self._won:
                    self._give_back(str(error))
            self._requested = None
            self._result.set_exception(error)
            self._result = Future()
            loss = self._wait(watch, error, retry_s=retry_s)

    def take_over_kept(self, reason: str) -> TakeoverReport:
        """In the place of :meth:`run`: take over at once from what an earlier session left (:attr:`recovered`).

        Raises what :meth:`run` does, and whatever a takeover fails with; the checkpoint then stays.
        """
        if not self.recovered or self._copy is None:
            raise NoCheckpoint(f"{self.image.directory} holds no checkpoint of an earlier session")
        if (done := finish_what_began(self.image, self._generation)) is not None:
            return self._runs(done)
        if self.config.standby is None:
            raise StandbyError("no stand-by's command line is known: give --standby with the primary's command line")
        self._requested = reason
        self._ready_standby()
        try:
            return self._take_over(self._copy, Loss(reason, time.monotonic_ns(), asked=True))
        except ArbitrationLost as lost:
            self._mark_lost(str(lost))
            raise
        except BaseException as error:
            if self._won and not self._spoiled:
                self._give_back(str(error))
            raise

    def _give_back(self, reason: str) -> None:
        """This side won and could not run the VM: the other side may have it back, and this one has to claim it anew."""
        assert self._generation is not None
        self.promises.returned(self._generation, reason)
        self._won = False
        self.failover = Failover()

    def _wait(self, watch: ArbiterWatch | None, unless: ColoError, *, retry_s: float | None = None) -> Loss:
        """Follow one primary after another, or hold what there is, until there is a checkpoint to take over from.

        Raises ``unless`` when the session is stopped, ArbitrationLost when the other side runs the VM that is held.
        """
        timers: list[threading.Timer] = []
        look: GenerationLook | None = None
        if self._copy is not None:
            self.state = "holding"
            if self._arbiter is not None and not self._lost_to:
                assert self._generation is not None
                look = GenerationLook(self._arbiter, self._generation, self._wake.set)
            if retry_s is not None:
                timers.append(self._be_eager(retry_s, "another try"))
            elif self.recovered and not self._eager and self._returns_are_awaited():
                timers.append(self._be_eager(
                    self.config.return_s, f"the primary did not come back within {self.config.return_s:g} s"))
        try:
            while True:
                if self._copy is not None:
                    if self._requested is not None:
                        return Loss(self._requested, time.monotonic_ns(), asked=True)
                    if self._eager:
                        reason, self._eager = self._eager, ""
                        return Loss(reason, time.monotonic_ns(), asked=True)
                    self._look_while_holding(look)
                try:
                    sock = self._next_connection(look)
                except Interrupted:
                    self._wake.clear()
                    if self._stopping:
                        raise unless from None
                    continue  # a request, or what the primary's side said
                for timer in timers:
                    timer.cancel()
                if (loss := self._follow_one(sock, watch)) is not None:
                    return loss
        finally:
            for timer in timers:
                timer.cancel()
            if look is not None:
                look.close()

    def _be_eager(self, after_s: float, reason: str) -> threading.Timer:
        def now() -> None:
            if self._lost_to:
                return
            self._eager = reason
            self._wake.set()

        timer = threading.Timer(after_s, now)
        timer.daemon = True
        timer.start()
        return timer

    def _returns_are_awaited(self) -> bool:
        """Whether this side, started on a checkpoint, asks for the VM by itself when its primary does not come back.

        An arbiter that keeps nothing cannot say that the VM runs on elsewhere: it is asked only on request.
        """
        return (self.config.on_loss == "takeover" and self.config.standby is not None and self._arbiter is not None
                and self._arbiter.identity is not None and not self._lost_to)

    def _next_connection(self, look: GenerationLook | None) -> Transport:
        if self._door is not None:
            return self._door.wait(self._wake.fd)
        poller = select.poll()
        poller.register(self._wake.fd, select.POLLIN)
        poller.poll()
        raise Interrupted("woken")

    def _look_while_holding(self, look: GenerationLook | None) -> None:
        try:
            if self._lost_to:
                return
            self._heed()
            if look is not None and look.lost:
                raise ArbitrationLost(f"the other side runs the VM: {look.lost}")
        except ArbitrationLost as lost:
            self._mark_lost(str(lost))
            if not (self.recovered or self.config.wait):
                raise
            self.promises.alone = 0
            self._tell("notice", f"{lost}; the checkpoint is kept as it is, and its primary may come back")

    def _mark_lost(self, why: str) -> None:
        """The other side holds a later generation: that is put down with the checkpoint, which stays."""
        if self._arbiter is not None and self._generation is not None:
            self._lost_to = mark_lost(self.image.kept, self._arbiter, self._generation, why)

    def _follow_one(self, sock: Transport, watch: ArbiterWatch | None) -> Loss | None:
        """Follow a primary to its end. None: nothing of it was committed, and all is as before."""
        held_generation = self._generation
        if self._generation is not None:
            self._generation = self._generation_now()
            self.image.kept.generation = self._generation
        if watch is not None:
            watch.expect(self._generation)
        self.state = "connected"
        self._tell("connected")
        follower = self._follower = Follower(
            sock, self.image, deadlines=self.config.deadlines, limits=self.config.limits, mode=self.config.mode,
            wake_fd=self._wake.fd, on_announced=self._announced, on_commit=self._committed,
        )
        follower.heat = self.heat
        loss = self._follow(follower)
        if watch is not None:
            watch.expect(None)
        if follower.committed is not None:
            self._take_the_place(follower)  # also when its acknowledgement did not leave any more
            if self._stopping:
                raise Interrupted("the session was asked to stop")
            return loss
        self._forget(follower)
        if self._stopping:
            raise Interrupted("the session was asked to stop")
        if self._copy is None:
            self._tell(
                "notice", "the primary was lost before its first checkpoint was whole, so there is nothing to resume from: "
                f"{loss.reason}; waiting for it, or another")
            return None
        self._generation = held_generation
        self.state = "holding"
        self._tell(
            "notice", f"the primary was lost before its first checkpoint was whole: {loss.reason}; what was held before "
            "is held")
        if self._requested is not None:
            return Loss(self._requested, loss.noticed_ns, asked=True)
        return None

    def _take_the_place(self, follower: Follower) -> None:
        """A primary's first checkpoint is committed: it is what is held from here on."""
        if self._copy is follower:
            return
        self._copy = follower
        self._lost_to = self._eager = ""
        self.recovered = False
        before, self._keeper, self._next_keeper = self._keeper, self._next_keeper, None
        if before is not None:
            before.close()

    def _generation_now(self) -> int:
        """That of the primary that is let in: what it said when it was met, or what the arbiter says."""
        met = self.promises.generation
        if met is not None:
            return met
        assert self._arbiter is not None
        return self._arbiter.current()

    def _forget(self, follower: Follower) -> None:
        """What a primary sent of a first checkpoint that was never whole."""
        follower.close()
        self._follower = None
        if self._next_keeper is not None:
            self._next_keeper.close()
            self._next_keeper = None
        self.image.forget()
        self.state = "listening"

    def _heed(self) -> None:
        """What the primary's side said over the lease connection. Raises VmEnded, ArbitrationLost."""
        if self.promises.ended:
            raise VmEnded(f"the VM was ended at the primary ({self.promises.ended}): nothing is to be taken over")
        if self.promises.alone and not self._won:
            raise ArbitrationLost(
                f"the primary's VM runs on alone, in generation {self.promises.alone}: "
                f"{self.promises.said or 'no reason given'}")

    def _foreseen(self, text: str | None) -> None:
        """What a trial of the stand-by found, or None: it can load the VM. The primary's user is to know it too."""
        self.promises.notice(text or "")
        self._tell("verdict", text or LOADABLE)

    def _alarm(self, text: str) -> None:
        """What this side sees at the arbiter does not fit, so nothing would be protected; "": it does again."""
        self.promises.notice(text)
        self._tell("notice", text or "the arbiter shows again what it should")

    def _committed_number(self) -> int | None:
        committed = self.committed
        return committed.number if committed is not None else None

    def _announced(self, configuration: Configuration, blocks: list[RamBlockInfo]) -> None:
        if self._copy is not None:
            check_same_vm(self.image.kept, configuration, blocks)
        self._tell("announced", (configuration, blocks))
        if text := room_notice(self.config.ram_dir, sum(block.used_length for block in blocks)):
            self._tell("notice", text)
        self._next_keeper = self._new_keeper(configuration, blocks)

    def _new_keeper(self, configuration: Configuration, blocks: list[RamBlockInfo]) -> StandbyKeeper | None:
        if self.config.standby is None:
            return None
        keeper = StandbyKeeper(
            self.config.standby, self.image, Path(self.config.ram_dir) / STANDBY_NAMES[self.image.set_in_use],
            share_ram=self.config.share_ram, on_event=lambda text: self._tell("notice", text),
            rehearsal=self._rehearsal, trial=self.config.trial,
            on_verdict=self._foreseen,
        )
        keeper.start(configuration, blocks)
        return keeper

    def _ready_standby(self) -> None:
        """A stand-by for the checkpoint that was found here."""
        if isinstance(self._copy, RecoveredCopy) and self._keeper is None:
            self._keeper = self._new_keeper(self._copy.committed.configuration, self._copy.block_infos)
            if self._keeper is not None:
                self._keeper.committed(self._copy.committed)

    def _committed(self, committed: Committed, report: CheckpointReport) -> None:
        assert self._follower is not None
        self._take_the_place(self._follower)
        self.state = "protecting"
        self.promises.progress()
        self.statistics.add(report)
        if self._keeper is not None:
            self._keeper.committed(committed)
        self._tell("checkpoint", report)

    def _follow(self, follower: Follower) -> Loss:
        """Follow until the connection ends; why, and when it was noticed."""
        self.promises.follow(follower.sock)
        try:
            follower.run()
            raise AssertionError("a connection ends with an error that says how")
        except Interrupted:
            noticed_ns = time.monotonic_ns()
            self._wake.clear()
            if self._requested is None or self._stopping or follower.committed is None:
                self._cut(follower)
            # Else the connection lives until the takeover has claimed the VM: a primary that saw it go would claim too.
            return Loss(
                self._requested or ("stopped" if self._stopping else self.promises.lapsed or "the primary ended "
                                                                                             "it"), noticed_ns)
        except Exception as error:
            # Whatever it is: what was committed before must survive it.
            noticed_ns = time.monotonic_ns()
            reason = explain(error)
            self._tell("lost", reason)
            self._cut(follower)
            return Loss(reason, noticed_ns, ours=not isinstance(error, (ChannelError, StreamError, ProtocolError)))
        except BaseException:
            follower.sock.abort()
            raise
        finally:
            self.promises.follow(None)

    @staticmethod
    def _cut(follower: Follower | RecoveredCopy) -> None:
        """End the connection and drop what is not committed. Any number of times."""
        follower.abandon()
        if follower.sock is not None:
            follower.sock.abort()

    def _look_at_generation(self) -> None:
        assert self._arbiter is not None and self._generation is not None
        try:
            holds = self._arbiter.still_holds(self._generation)
        except ArbitrationError:
            return  # it cannot be told just now
        if not holds:
            raise ArbitrationLost("the other side runs the VM: this checkpoint is of no use any more")

    def _look_while_waiting(self) -> None:
        """While this side waits for the other's lease to end, that side may win."""
        self._heed()
        if not self._won:
            self._look_at_generation()

    # -- the takeover

    def _take_over(self, follower: Follower | RecoveredCopy, loss: Loss) -> TakeoverReport:
        assert self._keeper is not None
        self._check_usable()
        self.state = "taking-over"
        self._tell("taking-over", loss.reason)
        self.failover.feed(FailoverEvent.REQUEST)
        if self._requested is None:
            self.promises.want()
        # First what it takes: who has nothing to run the VM with must not stop the other side's.
        try:
            standby = self._keeper.take(self.config.takeover_s)
        except BaseException:
            self._cut(follower)
            self.failover.feed(FailoverEvent.BROKEN if self._won else FailoverEvent.REFUSED)
            if not self._won:
                self.promises.relent()
            raise
        ready_ns = time.monotonic_ns()
        try:
            self._arbitrate(standby, loss.reason)
            self._cut(follower)
            arbitrated_ns = time.monotonic_ns()
            committed = follower.settle()
            assert committed is not None
            self._tell("settled", committed)
        except BaseException as error:
            self._cut(follower)
            standby.close()
            if isinstance(error, ArbitrationError) and (
                    self.recovered or self.config.wait or not isinstance(error, ArbitrationLost)):
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
                self.failover.feed(FailoverEvent.BROKEN)
                if standby.may_have_run:
                    self._spoiled = True
                    raise in_doubt(standby, committed, error) from error
                standby.close()
                mark_untouched(self.image.kept)
                self._keeper.replace()
                if attempt == LOAD_ATTEMPTS or not isinstance(error, (ColoError, OSError)) \
                        or isinstance(error, StandbyRefused):
                    raise
                self._tell("notice", f"the stand-by failed, the image is untouched, another tries: {error}")
                standby = self._keeper.take(self.config.takeover_s)
                settled_ns = time.monotonic_ns()
        self.failover.feed(FailoverEvent.RUNNING)
        return self._runs(report)

    def _runs(self, report: TakeoverReport) -> TakeoverReport:
        self.report = report
        self.state = "running"
        self._tell("running", report)
        return report

    def _check_usable(self) -> None:
        """Raises StandbyError when a VM has run on what is held."""
        record = self.image.kept.record
        if record is not None and record.phase is Phase.RUNNING:
            raise StandbyError(f"checkpoint {record.checkpoint} cannot be run: {state_of(self.image.kept)[1]}")

    def _arbitrate(self, standby: Standby, reason: str) -> None:
        """Win the generation, and see the other side's VM stand still: by proof, or by the end of its lease.

        Raises ArbitrationLost. While it cannot be decided, nobody takes over. Asked for, this side claims first, and has the
        other one stopped; after a loss it waits first: the primary, if it lives, is to win, as its VM has lost nothing.
        """
        assert self._arbiter is not None
        won_before = self._won
        asked = self._requested is not None
        try:
            if not self._won:
                if not asked:
                    self._await_leave()
                self._claim(standby, reason)
            assert self._generation is not None
            self.promises.claimed(self._generation)
            self._await_leave()
        except (ArbitrationLost, VmEnded):
            self.failover.feed(FailoverEvent.REFUSED)
            raise
        except BaseException:
            if not self._won:
                self.promises.relent()
            raise
        if not won_before:
            self.failover.feed(FailoverEvent.WON)

    def _claim(self, standby: Standby, reason: str) -> None:
        assert self._arbiter is not None and self._generation is not None
        if self._lost_to and self._requested is not None and (holder := self._arbiter.holder()).free:
            # The user has released who held it: a word that this copy may run, older as it is.
            self._generation = holder.generation
        self._arbiter.know_vm(vm=standby.vm_name, uuid=standby.vm_uuid)
        self._generation = claim(
            self._arbiter, self._generation, reason=reason, runner=Runner.of(standby.process.pid),
            on_undecided=self._undecided, stopping=lambda: self._stopping)
        self._won = True
        self.image.kept.change(generation=self._generation, won=True, lost_generation=-1, lost_to="")
        self._lost_to = ""

    def _await_leave(self) -> None:
        assert self._arbiter is not None
        how = self.promises.wait_to_run(
            stopping=lambda: self._stopping, lost=self._look_while_waiting,
            told=lambda text: self._tell("notice", text), proven=self._won and self._arbiter.fences,
            will_fence=self._arbiter.fences)
        self._left = how

    def _undecided(self, text: str) -> None:
        if self._follower is not None:
            self._cut(self._follower)  # who waits at the other end is not to wait for this
        self._tell("notice", text)

    def _end_other_side(self) -> None:
        """The stand-by has loaded the checkpoint: what the loser still holds (locks of images) is to be let go."""
        assert self._generation is not None
        self.promises.about_to_run(self._generation)

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
            outcome = standby.finish(
                self.config.takeover_s, before_run=self._end_other_side,
                telling=lambda told: mark_telling(self.image.kept, standby, told))
        running_ns = time.monotonic_ns()
        qmp_path, pid = standby.hand_over()
        self.image.remove_files()
        if outcome.status != "running":
            self._tell("notice", f"the VM ran here, and its status is now {outcome.status!r}: see to it at {qmp_path}")
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
