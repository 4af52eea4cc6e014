"""The secondary: follows a primary, and runs its VM from the last committed checkpoint when the primary is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from colo import trace
from colo.arbiter import Runner, arbiter_from_uri
from colo.arbiter.watch import ArbiterWatch, GenerationLook
from colo.control.server import SOCKET_NAME
from colo.epoch.committed import Committed
from colo.errors import (
    AddressError,
    ArbitrationLost,
    ColoError,
    Interrupted,
    NoCheckpoint,
    StandbyError,
    StandbyRefused,
    VmEnded,
)
from colo.figures.takeover_report import TakeoverReport
from colo.memory import Phase, RamImage, SessionFacts
from colo.protocol import Failover
from colo.qemu.foresight import room_notice
from colo.qemu.standby import Standby
from colo.session.following import Following
from colo.session.secondary_config import NO_LEASE, QemuSecondaryConfig
from colo.stream import Configuration, RamBlockInfo
from colo.takeover.claiming_side import Loss
from colo.takeover.keeper import STANDBY_NAMES, check_room_for_sockets
from colo.takeover.kept import check_same_vm, describe, farewell, mark_lost, recovered, state_of, take_in
from colo.takeover.left_running import finish_what_began
from colo.takeover.resume import Before, resume
from colo.takeover.standbys import Standbys
from colo.trace import OnEvent, SessionState, Sink

__all__ = ["QemuSecondary", "QemuSecondaryConfig"]

LOADABLE = "tried: the stand-by can load this VM"
REFUSED_RETRY_S = 2.0
"""A stand-by that would not run the VM (a disk is held) is followed by another after this time: nobody else may run it."""


class QemuSecondary(Following[TakeoverReport]):
    """A secondary session. ::

        config = QemuSecondaryConfig("tcp:127.0.0.1:9000", "/dev/shm/vm1", standby=argv, arbiter="file:/shared/vm1")
        with QemuSecondary(config) as s:
            report = s.run()          # returns when the VM runs here
            print(report.qmp_path, report.pid)

    ``sinks`` take the events (:mod:`colo.trace`); ``on_event(kind, data)`` is called, from the session's threads, with
    ``listening``, ``connected``, ``announced``, ``checkpoint``, ``lost``, ``taking-over``, ``settled``, ``notice``,
    ``running`` and ``verdict`` (of a trial: why the stand-by would refuse the VM, or that it loads it).

    The last committed checkpoint outlives the session, however that ends, in ``ram_dir``; a session that is started on one
    (:attr:`recovered`) holds it, lets its primary come back, and can take over from it.
    :meth:`request_failover`, :meth:`status` and :meth:`stop` may be called from any thread.
    """

    config: QemuSecondaryConfig
    image: RamImage

    def __init__(self, config: QemuSecondaryConfig, *, on_event: OnEvent | None = None, sinks: Iterable[Sink] = ()) -> None:
        self.recovered = False
        """An earlier session committed it: what that one promised is not known here."""
        self._lost_to = ""
        """The other side runs the VM: who, in words."""
        self._standbys: Standbys | None = None
        super().__init__(config, on_event, sinks)

    def _open(self) -> None:
        config = self.config
        config.check()
        generation = None
        if config.standby is not None:
            generation = self._ask(arbiter_from_uri(config.arbiter, role="secondary", vm=config.vm))
            check_room_for_sockets(Path(config.ram_dir) / STANDBY_NAMES[0], of="--ram-dir")
        self.image = RamImage(config.ram_dir, max_ram_bytes=config.max_ram_bytes, discard=config.discard)
        self._cleanup.callback(self._leave_image)
        if config.standby is not None:
            self._standbys = Standbys(
                config.standby, self.image, share_ram=config.share_ram, trial=config.trial, notice=self._notice,
                on_verdict=self._foreseen)
            self._cleanup.callback(self._standbys.close)
        self._keep_in(self.image)
        generation = self._take_in_copy(generation)
        if not config.listen and not self.recovered:
            raise AddressError(f"no address to listen at, and {config.ram_dir} holds no checkpoint")
        lease_ms = config.lease_ms
        if self.recovered and lease_ms and self.image.kept.description is not None:
            lease_ms = max(lease_ms, self.image.kept.description.session.lease_ms)  # what was promised then holds
        self._receive(
            generation, required=config.standby is not None and config.lease_ms > 0, parks=config.wait_s > 0,
            lease_ms=lease_ms, forgotten=self.recovered, control=Path(config.ram_dir) / SOCKET_NAME)
        self.state = self.WAITS if self.recovered else SessionState.LISTENING

    def _take_in_copy(self, generation: int | None) -> int | None:
        """What an earlier session left in the directory, and where it stands at the arbiter; returns the generation to claim
        from. Raises StorageError, ArbitrationError."""
        config, kept = self.config, self.image.kept
        identity = self._arbiter.identity if self._arbiter is not None else None
        kept.session = SessionFacts.of_this_process(
            standby=tuple(config.standby) if config.standby is not None else None, share_ram=config.share_ram,
            arbiter=config.arbiter, arbiter_id=identity.id if identity else "", vm=identity.vm if identity else config.vm,
            uuid=identity.uuid if identity else "", listen=config.listen,
            lease_ms=math.ceil(config.lease_ms))
        found = take_in(kept, self._arbiter, config.arbiter)
        if found is None:
            return generation
        self._lost_to = found.lost_to
        if found.eager:
            self._eager = Loss(
                f"this side had won generation {found.generation}, and ended before it ran the VM", time.monotonic_ns(),
                asked=True)
        committed = recovered(self.image)
        self.last.recover(committed)
        self._last_byte_ns = committed.at_ns
        self.recovered = True
        return found.generation if self._arbiter is not None else None

    def _leave_image(self) -> None:
        self.image.close()
        if text := farewell(self.image):
            self._notice(text)

    # -- requests, from any thread

    def request_failover(self, reason: str = "request") -> Future[TakeoverReport]:
        """As :meth:`Following.request_failover`; raises StandbyError when there is nothing to run the VM with."""
        if self.committed is not None and self.config.standby is None:
            raise StandbyError("this session has no stand-by: give --standby with the primary's command line")
        return super().request_failover(reason)

    def _failover_command(self) -> dict[str, Any]:
        return self.request_failover().result(self.config.takeover_s + 10).as_dict()

    def status(self) -> dict[str, Any]:
        """What ``colo status`` shows; keys are stable."""
        return super().status() | {
            "ram_storage_bytes": self.image.storage_bytes,
            "standby": self._standbys.state if self._standbys is not None else None,
            "recovered": self.recovered,
            "lost_to": self._lost_to or None,
            "takeover": self.report.as_dict() if self.report else None,
        }

    # -- the session

    def run(self) -> TakeoverReport:
        """Wait for a primary, follow it, take over when it is lost. Returns the takeover's report.

        Raises NoCheckpoint (lost before the first commit), ArbitrationLost (the other side runs), StandbyError (there is
        none, or one has spoiled the image), Interrupted (:meth:`stop`). A takeover that fails otherwise is told as a
        ``notice``; the checkpoint is then held until :meth:`request_failover` tries again, and :meth:`stop` ends that
        with the failure.
        """
        try:
            return super().run()
        except VmEnded:
            self.image.remove_files()  # it ended on purpose: nothing is to revive it
            raise

    def _run(self) -> TakeoverReport:
        if self.address:
            self._tell(trace.Listening(self.address))
        if self.config.standby is not None and not self.config.lease_ms:
            self._notice(NO_LEASE)
        if self.recovered:
            kept = self.image.kept
            self._notice(f"{self.image.directory} holds {describe(kept)}: {state_of(kept)[1]}")
            if (done := finish_what_began(self.image, self.generation)) is not None:
                return self._runs_already(done)
            if self._standbys is not None and self.committed is not None:
                self._standbys.have_for(self.committed)
        elif self._standbys is not None:
            self._standbys.rehearse()
        if self._arbiter is None:
            return self._serve()
        self._watch = ArbiterWatch(self._arbiter, self._alarm)
        try:
            return self._serve()
        finally:
            self._watch.close()

    def _serve(self) -> TakeoverReport:
        loss = self._wait(Interrupted("the session was asked to stop"))
        while True:
            committed = self.committed
            assert committed is not None
            if self._standbys is None:
                raise StandbyError(
                    f"{loss.reason}; checkpoint {committed.number} is committed, but there is no stand-by (--standby)")
            retry_s: float | None = None
            try:
                self.claiming.heed()
                if self._requested is None and not loss.asked and (loss.ours or self.config.on_loss == "hold"):
                    if loss.ours:
                        self._notice(
                            f"the fault is on this side, so the primary may go on: checkpoint {committed.number} is kept, "
                            "`colo failover` takes over")
                    loss = self._wait(Interrupted(
                        f"the session was asked to stop while it held the checkpoint; {loss.reason}"))
                    continue
                return self._take_over(loss)
            except VmEnded:
                raise
            except ArbitrationLost as lost:
                self._mark_lost(str(lost))
                if self._stopping or not (self.recovered or self.config.wait):
                    raise
                self.claiming.forget_alone()  # its primary may come back
                error: ColoError = lost
            except (ColoError, OSError) as failure:
                if self._standbys.spoiled or self._stopping:
                    raise
                error = failure if isinstance(failure, ColoError) else StandbyError(f"the takeover failed: {failure}")
                retry_s = REFUSED_RETRY_S if self.claiming.won and isinstance(error, StandbyRefused) else None
                # The VM's state is here, and maybe nowhere else: it is not thrown away for a fault that may pass.
                again = f"it is tried again in {retry_s:g} s" if retry_s else "`colo failover` tries again"
                self._notice(f"the takeover failed: {error}; checkpoint {committed.number} is kept, {again}")
                if self.claiming.won:
                    self._give_back(str(error))
            self._requested = None
            self._result.set_exception(error)
            self._result = Future()
            loss = self._wait(error, retry_s=retry_s)

    def take_over_kept(self, reason: str) -> TakeoverReport:
        """In the place of :meth:`run`: take over at once from what an earlier session left (:attr:`recovered`).

        Raises what :meth:`run` does, and whatever a takeover fails with; the checkpoint then stays.
        """
        if not self.recovered:
            raise NoCheckpoint(f"{self.image.directory} holds no checkpoint of an earlier session")
        if (done := finish_what_began(self.image, self.generation)) is not None:
            return self._runs_already(done)
        if self._standbys is None or self.committed is None:
            raise StandbyError("no stand-by's command line is known: give --standby with the primary's command line")
        self._requested = reason
        self._standbys.have_for(self.committed)
        try:
            return self._take_over(Loss(reason, time.monotonic_ns(), asked=True))
        except ArbitrationLost as lost:
            self._mark_lost(str(lost))
            raise
        except BaseException as error:
            if self.claiming.won and not self._standbys.spoiled:
                self._give_back(str(error))
            raise

    def _give_back(self, reason: str) -> None:
        self.claiming.give_back(reason)
        self.failover = Failover()

    def _runs_already(self, report: TakeoverReport) -> TakeoverReport:
        """A session before this one had begun it."""
        self.report, self.state = report, SessionState.RUNNING
        self._tell(trace.Running(report))
        return report

    def _mark_lost(self, why: str) -> None:
        """The other side holds a later generation: that is put down with the checkpoint, which stays."""
        if self._arbiter is not None and self.generation is not None:
            self._lost_to = mark_lost(self.image.kept, self._arbiter, self.generation, why)

    # -- holding what is committed, and following

    def _may_come_back(self, loss: Loss) -> bool:
        return super()._may_come_back(loss) and self.config.on_loss == "takeover" and not loss.ours

    def _due_while_holding(self) -> list[tuple[float, Loss]]:
        """Started on a checkpoint, this side asks for the VM by itself when its primary does not come back: but only an
        arbiter that keeps who holds the VM, as another cannot say that it runs on elsewhere."""
        config = self.config
        if not self.recovered or self._eager is not None or self._lost_to or config.on_loss != "takeover" \
                or self._standbys is None or self._arbiter is None or self._arbiter.identity is None:
            return []
        return [(config.return_s, Loss(f"the primary did not come back within {config.return_s:g} s", 0, asked=True))]

    def _look_at_arbiter(self) -> GenerationLook | None:
        if self._arbiter is None or self._lost_to:
            return None
        assert self.generation is not None
        return GenerationLook(self._arbiter, self.generation, self._wake.set)

    def _what_is_due(self) -> Loss | None:
        if self._lost_to:
            self._eager = None
        return super()._what_is_due()

    def _look_while_holding(self, look: GenerationLook | None) -> None:
        if self._lost_to:
            return
        try:
            super()._look_while_holding(look)
        except ArbitrationLost as lost:
            self._mark_lost(str(lost))
            if not (self.recovered or self.config.wait):
                raise
            self.promises.alone = 0
            self._notice(f"{lost}; the checkpoint is kept as it is, and its primary may come back")

    def _set_generation(self, generation: int) -> None:
        super()._set_generation(generation)
        self.image.kept.generation = generation

    def _place_is_taken(self) -> None:
        self._lost_to = ""
        self.recovered = False
        if self._standbys is not None:
            self._standbys.take_the_place()

    def _came_to_nothing(self) -> None:
        if self._standbys is not None:
            self._standbys.came_to_nothing()
        super()._came_to_nothing()

    def _foreseen(self, text: str | None) -> None:
        """What a trial of the stand-by found, or None: it can load the VM. The primary's user is to know it too."""
        self.promises.notice(text or "")
        self._tell(trace.Verdict(text or LOADABLE))

    def _alarm(self, text: str) -> None:
        """What this side sees at the arbiter does not fit, so nothing would be protected; "": it does again."""
        self.promises.notice(text)
        self._notice(text or "the arbiter shows again what it should")

    def _announced(self, configuration: Configuration, blocks: list[RamBlockInfo]) -> None:
        if self.committed is not None:
            check_same_vm(self.image.kept, configuration, blocks)
        self._tell(trace.Announced(configuration, blocks))
        if text := room_notice(self.config.ram_dir, sum(block.used_length for block in blocks)):
            self._notice(text)
        if self._standbys is not None:
            self._standbys.announced(configuration, blocks)

    def _kept(self, committed: Committed) -> None:
        if self._standbys is not None:
            self._standbys.committed(committed)

    # -- the takeover: what the table asks for

    def _take_over(self, loss: Loss) -> TakeoverReport:
        record = self.image.kept.record
        if record is not None and record.phase is Phase.RUNNING:
            raise StandbyError(f"checkpoint {record.checkpoint} cannot be run: {state_of(self.image.kept)[1]}")
        return super()._take_over(loss)

    def _get_ready(self) -> Runner:
        assert self._standbys is not None and self._arbiter is not None
        standby = self._standbys.take(self.config.takeover_s)
        if self._lost_to and self._requested is not None and (holder := self._arbiter.holder()).free:
            # The user has released who held it: a word that this copy may run, older as it is.
            self.claiming.generation = holder.generation
        self._arbiter.know_vm(vm=standby.vm_name, uuid=standby.vm_uuid)
        return Runner.of(standby.process.pid)

    def _has_won(self, generation: int) -> None:
        self.image.kept.change(generation=generation, won=True, lost_generation=-1, lost_to="")
        self._lost_to = ""

    def _stop_vm(self) -> None:
        if self._standbys is not None:
            self._standbys.put_away(again=not self._stopping and (self.recovered or self.config.wait))

    def _not_run(self) -> None:
        if self._standbys is not None:
            self._standbys.put_away(again=not self._stopping)

    def _run_here(self) -> None:
        attempt, committed, standbys = self._attempt, self.committed, self._standbys
        assert attempt is not None and committed is not None and standbys is not None
        loss, arbitrated_ns = attempt.loss, time.monotonic_ns()
        self.ram.settle()
        self._tell(trace.Settled(committed))
        settled_ns = time.monotonic_ns()
        before = Before(
            loss.reason, self.generation, loss.noticed_ns, detection_ns=loss.noticed_ns - self._last_byte_ns,
            arbitration_ns=arbitrated_ns - attempt.ready_ns,
            settle_ns=attempt.ready_ns - loss.noticed_ns + settled_ns - arbitrated_ns)
        self.report = standbys.run(
            committed, lambda standby: self._resume(committed, standby, before), self.config.takeover_s)

    def _resume(self, committed: Committed, standby: Standby, before: Before) -> TakeoverReport:
        return resume(
            committed, standby, self.image, before, takeover_s=self.config.takeover_s, before_run=self._end_other_side,
            told=self._notice)

    def _end_other_side(self) -> None:
        """The stand-by has loaded the checkpoint: what the loser still holds (locks of images) is to be let go."""
        assert self.generation is not None
        self.promises.about_to_run(self.generation)
