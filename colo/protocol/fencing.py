"""What a fence does: it holds the lease beside the VM's process, and stops that process when it runs out.

A table in code, without I/O: each input returns the :class:`FenceAction` s to be carried out, in order. Whoever drives it
reads
``CLOCK_BOOTTIME``, sends signals and frames (:mod:`colo.fence.fence_process`); a simulation drives the same class.

::

    UNLEASED ──promise──► LEASED ◄──promise── OVER        OVER: the lease ran out, the VM is stopped, reversibly
        │                   │ └──────end────────►│
        │    stop, prove, or nobody answers for the primary
        └──────────────► STANDS ◄────────────────┘        STANDS: it is proven that the VM will not go on in this generation
    any ──alone (a newer generation was won)──► ALONE     any ──end──► ENDING ──► GONE
"""

from __future__ import annotations

from enum import Enum

from colo.protocol.lease import LeaseHolder

VERDICT_NS = 300_000_000
"""So long a guard has to say how a process came to its end, which is heard of sooner than it is known why."""
ANSWER_SHARE = 2
"""A guard has this part of a lease (1/2) to say that it is at it, before the fence answers for it."""


class FenceState(Enum):
    """Where a fence stands."""

    UNLEASED = "unleased"
    """Nothing was promised yet: the VM runs, as nobody could take it over."""
    LEASED = "leased"
    OVER = "lease over"
    STANDS = "stands still"
    ALONE = "alone"
    ENDING = "ending"
    GONE = "gone"


class FenceAction(Enum):
    """What is to be done, at once and in this order."""

    STOP_VM = "stop the VM's process, and see it stand still"
    CONTINUE_VM = "let the VM's process go on"
    KILL_VM = "kill the VM's process"
    CERTIFY = "send the proof that there is (:attr:`Fence.certificate`)"
    TELL_GUARD = "tell the guard the state"


class Certificate(Enum):
    """What a fence has proven of its generation."""

    NONE = "nothing"
    STANDS = "the VM stands still, and will not go on in this generation"
    GONE = "the VM's process is gone"
    ENDED = "the VM was ended on purpose"


_STOPPED = (FenceState.OVER, FenceState.STANDS)
Actions = tuple[FenceAction, ...]


class Fence:
    """One VM's fence in one generation. Times are nanoseconds of ``CLOCK_BOOTTIME``."""

    def __init__(self, generation: int, lease_ns: int, *, end_ns: int = 0) -> None:
        self.generation = generation
        self.lease = LeaseHolder(lease_ns, end_ns=end_ns)
        self.state = FenceState.LEASED if end_ns else FenceState.UNLEASED
        self.certificate = Certificate.NONE
        self.reason = ""
        """Why the VM does not run, where it does not."""
        self.guarded = False
        """A guard is connected."""
        self.wanted = False
        """The secondary wants to take over, or has."""
        self._answer_ns: int | None = None
        self._verdict_ns: int | None = None

    # -- the lease

    @property
    def renews(self) -> bool:
        """Whether renewals are sent."""
        return self.state in (FenceState.UNLEASED, FenceState.LEASED, FenceState.OVER)

    def promised(self, sequence: int, lease_ns: int, now_ns: int) -> Actions:
        """A promise came."""
        if not self.renews or not self.lease.promised(sequence, lease_ns) or not self.lease.left_ns(now_ns):
            return ()
        self.wanted, self._answer_ns = False, None
        if self.state is FenceState.OVER:
            self.state, self.reason = FenceState.LEASED, ""
            return (FenceAction.CONTINUE_VM, FenceAction.TELL_GUARD)
        first = self.state is FenceState.UNLEASED
        self.state = FenceState.LEASED
        return (FenceAction.TELL_GUARD,) if first else ()

    def tick(self, now_ns: int) -> Actions:
        """Time has passed: to be called at :attr:`next_ns` at the latest."""
        if self._answer_ns is not None and now_ns >= self._answer_ns:
            self._answer_ns = None
            return self.prove("nobody answered for the primary")
        if self._verdict_ns is not None and now_ns >= self._verdict_ns:
            return self.moves("its process ended, and nobody said why")
        if self.state is FenceState.LEASED and not self.lease.left_ns(now_ns):
            self.state, self.reason = FenceState.OVER, "the lease ran out"
            return (FenceAction.STOP_VM, FenceAction.TELL_GUARD)
        return ()

    def next_ns(self) -> int | None:
        """When :meth:`tick` is next to be called; None: nothing is due."""
        end_ns = self.lease.end_ns if self.state is FenceState.LEASED else None
        return min((at for at in (self._answer_ns, self._verdict_ns, end_ns) if at is not None), default=None)

    # -- what the secondary says

    def wants(self, now_ns: int) -> Actions:
        """The secondary promises no more: somebody must answer, with a claim or a proof."""
        if self.state not in (FenceState.UNLEASED, FenceState.LEASED, FenceState.OVER):
            return (FenceAction.CERTIFY,) if self.certificate is not Certificate.NONE else ()
        self.wanted = True
        if not self.guarded:
            return self.prove("the secondary takes over, and nobody guards the VM here")
        if self._answer_ns is None:
            self._answer_ns = now_ns + self.lease.lease_ns // ANSWER_SHARE
        return (FenceAction.TELL_GUARD,)

    def stop(self) -> Actions:
        """The secondary has claimed the generation after this one."""
        self.wanted = True
        return self.prove("the other side has taken over")

    def end(self, reason: str) -> Actions:
        """The VM runs elsewhere from now on, or must not be anywhere: its process is ended."""
        if self.state in (FenceState.ENDING, FenceState.GONE):
            return ()
        self.state, self.reason, self._answer_ns = FenceState.ENDING, reason, None
        return (FenceAction.KILL_VM, FenceAction.TELL_GUARD)

    # -- what the guard says

    def guard(self, connected: bool, now_ns: int) -> Actions:
        """A guard came, or went."""
        self.guarded = connected
        if not connected and self._verdict_ns is not None:
            return self.moves("its process ended, and nobody is there to say why")
        if not connected and self.wanted and self.renews:
            return self.prove("the secondary takes over, and nobody guards the VM here")
        if not connected:
            return ()
        if self.state is FenceState.LEASED and self.lease.left_ns(now_ns):
            # A guard before it may have stopped the VM, late or in this fence's stead, and be gone: nobody else would know.
            return (FenceAction.CONTINUE_VM, FenceAction.TELL_GUARD)
        return (FenceAction.TELL_GUARD,)

    def answering(self) -> None:
        """The guard is at it: it claims, or will say what is proven."""
        self._answer_ns = None

    def prove(self, reason: str) -> Actions:
        """The VM stands still from here on: only a newer generation makes it go on."""
        if self.state in (FenceState.ALONE, FenceState.ENDING, FenceState.GONE):
            return ()
        stop = () if self.state in _STOPPED else (FenceAction.STOP_VM,)
        if self.state is not FenceState.STANDS:
            self.state, self.reason, self.certificate = FenceState.STANDS, reason, Certificate.STANDS
        self._answer_ns = None
        return (*stop, FenceAction.CERTIFY, FenceAction.TELL_GUARD)

    def alone(self, generation: int) -> Actions:
        """This side holds ``generation``, which is newer: the VM runs without a lease. Raises ValueError if it is not."""
        if generation <= self.generation:
            raise ValueError(f"generation {generation} is not newer than {self.generation}")
        if self.state in (FenceState.ALONE, FenceState.ENDING, FenceState.GONE):
            return ()
        stopped = self.state in _STOPPED
        self.state, self.reason, self.wanted, self._answer_ns = FenceState.ALONE, "", False, None
        self.certificate = Certificate.NONE
        return (FenceAction.CONTINUE_VM, FenceAction.TELL_GUARD) if stopped else (FenceAction.TELL_GUARD,)

    def ended(self, reason: str) -> Actions:
        """The VM was ended on purpose, by its guest or its user: nobody is to run it. Its process ends by itself, or is
        killed by :meth:`end`."""
        if self.state is FenceState.ALONE:
            return ()
        self.certificate, self.reason, self._verdict_ns = Certificate.ENDED, reason, None
        return (FenceAction.CERTIFY, FenceAction.TELL_GUARD)

    def moves(self, reason: str) -> Actions:
        """Its process is gone, and that was not the end of the VM: the other side may run it."""
        self._verdict_ns = None
        if self.state is not FenceState.GONE or self.certificate is Certificate.ENDED:
            return ()
        self.certificate, self.reason = Certificate.GONE, reason
        return (FenceAction.CERTIFY, FenceAction.TELL_GUARD)

    # -- the process

    def gone(self, now_ns: int) -> Actions:
        """The VM's process is gone. Whether that ends the VM, its guard is asked first, if there is one and it was not
        this fence that killed it."""
        if self.state is FenceState.GONE:
            return ()
        was, self.state, self._answer_ns = self.state, FenceState.GONE, None
        if was is FenceState.ALONE:
            return (FenceAction.TELL_GUARD,)
        if self.guarded and was is not FenceState.ENDING and self.certificate is Certificate.NONE:
            self._verdict_ns = now_ns + VERDICT_NS
            return (FenceAction.TELL_GUARD,)
        if self.certificate is Certificate.ENDED:
            return (FenceAction.CERTIFY, FenceAction.TELL_GUARD)
        return self.moves(self.reason or "its process ended")
