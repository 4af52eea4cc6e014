"""Where a secondary stands towards the arbiter and the other side's lease: what it claims from, and whether it has won."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from colo.arbiter import Arbiter, Runner, claim
from colo.epoch.committed import Committed
from colo.errors import ArbitrationError, ArbitrationLost, VmEnded
from colo.lease.promises import Promises
from colo.protocol import Event, Machine, Role


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a takeover is due. ``noticed_ns``: of CLOCK_MONOTONIC. ``ours``: the connection ended through a fault of this side
    (its disk is full, …), the primary is well. ``asked``: a takeover is what was waited for, whatever is to be done on a
    loss."""

    reason: str
    noticed_ns: int
    ours: bool = False
    asked: bool = False


@dataclass(slots=True)
class Attempt:
    """A takeover under way. ``ready_ns``: when all was there that it takes. ``failure``: why this side may not run the VM,
    or could not find that out."""

    loss: Loss
    ready_ns: int = 0
    failure: BaseException | None = None


def standing(committed: Committed | None) -> Machine:
    """The place in the table of a side without a connection that holds ``committed``."""
    machine = Machine(Role.SECONDARY, committed=committed.number if committed is not None else None)
    machine.feed(Event.CHANNEL_LOST)
    return machine


class ClaimingSide:
    """One secondary's claim on its VM. ``arbiter`` None: it never takes over. ``stopping()``: whether its session is to end;
    ``tell`` hears what people should know. One thread, that of the session."""

    def __init__(
        self, arbiter: Arbiter | None, promises: Promises, generation: int | None, *, stopping: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        self.generation = generation
        """The one that this side claims from, or has won; None: there is no arbiter."""
        self.won = False
        """This side holds the generation: the VM runs here, or nowhere."""
        self._arbiter = arbiter
        self._promises = promises
        self._stopping = stopping
        self._tell = tell

    def generation_of_primary(self) -> int:
        """That of the primary that is let in: what it said when it was met, or what the arbiter says."""
        met = self._promises.generation
        if met is not None:
            return met
        assert self._arbiter is not None
        return self._arbiter.current()

    def heed(self) -> None:
        """What the primary's side said over the lease connection. Raises VmEnded, ArbitrationLost."""
        if self._promises.ended:
            raise VmEnded(f"the VM was ended at the primary ({self._promises.ended}): nothing is to be taken over")
        if self._promises.alone and not self.won:
            raise ArbitrationLost(
                f"the primary's VM runs on alone, in generation {self._promises.alone}: "
                f"{self._promises.said or 'no reason given'}")

    def forget_alone(self) -> None:
        """What the primary said was heard: its side may come back, and the arbiter is asked again when it matters."""
        self._promises.relent()
        self._promises.alone = 0

    def win(
        self, *, asked: bool, reason: str, runner: Runner, undecided: Callable[[str], None],
        has_won: Callable[[int], None] = lambda generation: None,
    ) -> str:
        """Win the generation, and see the other side's VM stand still: by proof, or by the end of its lease. Returns what
        allows this side to run the VM.

        Raises ArbitrationLost, VmEnded. While it cannot be decided, nobody takes over: ``undecided`` is told why. ``asked``
        for, this side claims first, and has the other one stopped; after a loss it waits first: the primary, if it lives, is
        to win, as its VM has lost nothing. ``has_won`` hears the generation at once.
        """
        assert self._arbiter is not None and self.generation is not None
        if not self.won:
            if not asked:
                self._await_leave()
            self.generation = claim(
                self._arbiter, self.generation, reason=reason, runner=runner, on_undecided=undecided,
                stopping=self._stopping)
            self.won = True
            has_won(self.generation)
        self._promises.claimed(self.generation)
        return self._await_leave()

    def give_back(self, reason: str) -> None:
        """This side won and could not run the VM: the other side may have it back, and this one has to claim it anew."""
        assert self.generation is not None
        self._promises.returned(self.generation, reason)
        self.won = False

    def _await_leave(self) -> str:
        assert self._arbiter is not None
        return self._promises.wait_to_run(
            stopping=self._stopping, lost=self._look, told=self._tell, proven=self.won and self._arbiter.fences,
            will_fence=self._arbiter.fences)

    def _look(self) -> None:
        """While this side waits for the other's lease to end, that side may win."""
        self.heed()
        if self.won:
            return
        assert self._arbiter is not None and self.generation is not None
        try:
            holds = self._arbiter.still_holds(self.generation)
        except ArbitrationError:
            return  # it cannot be told just now
        if not holds:
            raise ArbitrationLost("the other side runs the VM: this checkpoint is of no use any more")
