"""What every secondary does: it follows one primary after another, and holds what is committed while none is there."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from dataclasses import replace

from colo import trace
from colo.abc import Transport
from colo.arbiter.watch import ArbiterWatch, GenerationLook
from colo.epoch.committed import Committed
from colo.errors import (
    ArbitrationLost,
    ChannelError,
    ColoError,
    Interrupted,
    ProtocolError,
    StreamError,
    explain,
)
from colo.figures.secondary_report import CheckpointReport
from colo.link.endings import end_by
from colo.link.follower import Follower
from colo.protocol import Event
from colo.session.secondary_config import QemuSecondaryConfig, VmSecondaryConfig
from colo.session.taking_over import R, TakingOver
from colo.stream import Configuration, RamBlockInfo
from colo.takeover.claiming_side import Loss
from colo.trace import OnEvent, SessionState, Sink


class Following(TakingOver[R]):
    """:meth:`_wait` follows and holds, until there is a checkpoint to take over from."""

    WAITS = SessionState.HOLDING
    """:attr:`state` while a checkpoint is held."""

    def __init__(
        self, config: QemuSecondaryConfig | VmSecondaryConfig, on_event: OnEvent | None, sinks: Iterable[Sink]
    ) -> None:
        self._watch: ArbiterWatch | None = None
        self._eager: Loss | None = None
        """A takeover is due without a request."""
        self._placed: Follower | None = None
        """The one whose checkpoint is held."""
        self._last_byte_ns = 0
        super().__init__(config, on_event, sinks)

    # -- a subclass's part

    def _announced(self, configuration: Configuration, blocks: list[RamBlockInfo]) -> None:
        """What a primary is about to send."""

    def _place_is_taken(self) -> None:
        """A primary's first checkpoint is committed: it is what is held from here on."""

    def _came_to_nothing(self) -> None:
        """What a primary sent of a first checkpoint was never whole."""
        self.image.forget()

    def _kept(self, committed: Committed) -> None:
        """A checkpoint was committed."""

    def _due_while_holding(self) -> list[tuple[float, Loss]]:
        """What a takeover is due for where nothing else makes it due: see :meth:`_await_loss`."""
        return []

    def _look_at_arbiter(self) -> GenerationLook | None:
        """Who looks whether the other side runs the VM, while a checkpoint is held."""
        return None

    # -- until a takeover is due

    def _wait(self, unless: ColoError, *, retry_s: float | None = None) -> Loss:
        """Follow one primary after another, or hold what there is, until there is a checkpoint to take over from: after a
        loss its primary has ``wait_s`` to come back. ``retry_s``: then another try is due.

        Raises ``unless`` when the session is stopped, ArbitrationLost when the other side runs the VM that is held.
        """
        loss = self._await_loss(unless, [(retry_s, Loss("another try", 0, asked=True))] if retry_s is not None else [])
        while not loss.asked and self._requested is None and self._may_come_back(loss):
            loss = self._await_loss(unless, [(self.config.wait_s, Loss(
                f"{loss.reason}; the primary did not come back", loss.noticed_ns, asked=True))])
        return loss

    def _may_come_back(self, loss: Loss) -> bool:
        return self.config.wait_s > 0

    def _await_loss(self, unless: ColoError, due: list[tuple[float, Loss]]) -> Loss:
        """``due``: after how many seconds without a primary a takeover is due, and why."""
        self._cut()
        if self.committed is not None:
            self.state = self.WAITS
            due = due or self._due_while_holding()
        with contextlib.ExitStack() as watching:
            look: GenerationLook | None = None
            watched = False
            while True:
                if not watched:
                    watched = True
                    look = self._look_at_arbiter() if self.committed is not None else None
                    if look is not None:
                        watching.callback(look.close)
                    for after_s, loss in due:
                        watching.callback(self._be_eager(after_s, loss).cancel)
                if self.committed is not None:
                    if (takeover := self._what_is_due()) is not None:
                        return takeover
                    self._look_while_holding(look)
                try:
                    sock = self._reception.next_connection(self._wake.fd)
                except Interrupted:
                    self._wake.clear()
                    if self._stopping:
                        raise unless from None
                    continue  # a request, or what the primary's side said
                watching.close()  # of a primary that is there, another look is taken
                watched = False
                if (lost := self._follow_one(sock)) is not None:
                    return lost

    def _what_is_due(self) -> Loss | None:
        if self._requested is not None:
            return Loss(self._requested, time.monotonic_ns(), asked=True)
        eager, self._eager = self._eager, None
        return eager

    def _be_eager(self, after_s: float, loss: Loss) -> threading.Timer:
        def now() -> None:
            self._eager = loss if loss.noticed_ns else replace(loss, noticed_ns=time.monotonic_ns())
            self._wake.set()

        timer = threading.Timer(after_s, now)
        timer.daemon = True
        timer.start()
        return timer

    def _look_while_holding(self, look: GenerationLook | None) -> None:
        """Raises VmEnded, ArbitrationLost when there is nothing to wait for any more."""
        self.claiming.heed()
        if look is not None and look.lost:
            raise ArbitrationLost(f"the other side runs the VM: {look.lost}")

    # -- one connection

    def _follow_one(self, sock: Transport) -> Loss | None:
        """Follow a primary to its end. None: nothing of it was committed, and all is as before."""
        held_generation, held = self.generation, self.committed
        if held_generation is not None:
            self._set_generation(self.claiming.generation_of_primary())
        if self._watch is not None:
            self._watch.expect(self.generation)
        loss = self._follow(sock)
        if self._watch is not None:
            self._watch.expect(None)
        if self._stopping:
            raise Interrupted("the session was asked to stop")
        if self.committed is not held:
            return loss
        if held is None:
            self.state = SessionState.LISTENING
            self._notice(
                "the primary was lost before its first checkpoint was whole, so there is nothing to resume from: "
                f"{loss.reason}; waiting for it, or another")
            return None
        if held_generation is not None:
            self._set_generation(held_generation)
        self.state = self.WAITS
        self._notice(
            f"the primary was lost before its first checkpoint was whole: {loss.reason}; what was held before is held")
        return Loss(self._requested, loss.noticed_ns, asked=True) if self._requested is not None else None

    def _set_generation(self, generation: int) -> None:
        self.claiming.generation = generation

    def _follow(self, sock: Transport) -> Loss:
        """Follow the primary at the other end of ``sock``; why that ended, and when it was noticed."""
        self.state = SessionState.CONNECTED
        self._tell(trace.Connected())
        held = self.committed
        follower = self._follower = Follower(
            sock, self.ram, self.last, deadlines=self.config.deadlines, limits=self.config.limits, mode=self.config.mode,
            wake_fd=self._wake.fd, on_announced=self._announced, on_commit=self._committed)
        self.promises.follow(sock)
        try:
            return self._run_to_its_end(follower)
        finally:
            self.promises.follow(None)
            if self.committed is held:
                follower.end(Event.CHANNEL_LOST)
                self._follower = None
                self._came_to_nothing()
            else:
                self._take_the_place(follower)  # also when its acknowledgement did not leave any more

    def _run_to_its_end(self, follower: Follower) -> Loss:
        try:
            follower.run()
            raise AssertionError("a connection ends with an error that says how")
        except Interrupted:
            noticed_ns = time.monotonic_ns()
            self._wake.clear()
            reason = self._requested or (
                "stopped" if self._stopping else self.promises.lapsed or "the primary ended it")
            if self._requested is None or self._stopping or follower.committed is None:
                self._end(follower)
            # Else the connection lives until the takeover has claimed the VM: a primary that saw it go would claim too.
            return Loss(reason, noticed_ns)
        except Exception as error:
            # Whatever it is: what was committed before must survive it.
            noticed_ns = time.monotonic_ns()
            reason = explain(error)
            self._tell(trace.Lost(reason))
            return Loss(reason, noticed_ns, ours=not isinstance(error, (ChannelError, StreamError, ProtocolError)))

    def _committed(self, committed: Committed, report: CheckpointReport) -> None:
        assert self._follower is not None
        self._take_the_place(self._follower)
        self.state = SessionState.PROTECTING
        self.promises.progress()
        self.statistics.add(report)
        self._kept(committed)
        self._tell(trace.Checkpoint(report))

    def _take_the_place(self, follower: Follower) -> None:
        self._last_byte_ns = follower.last_byte_ns
        if self._placed is not follower:
            self._placed = follower
            self._eager = None
            self._place_is_taken()

    def _end(self, follower: Follower) -> None:
        """This side ends the connection, and no takeover waits for it."""
        if self.promises.alone or self.promises.ended:
            end_by(follower.machine, Event.TAKEOVER_LOST, {**self.endings, **follower.endings})
        else:
            follower.end(Event.DEADLINE if self.promises.lapsed else Event.CHANNEL_LOST)
