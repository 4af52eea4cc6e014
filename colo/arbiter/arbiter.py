"""Who may run: what every arbiter promises.

The VM's *generation* counts who ran it. It begins at 0, which nobody holds; who wants to run the VM, first or after a loss,
claims the next one. An arbiter lets exactly one claim of each generation win. Who loses, or later finds its generation gone,
stops its VM; who cannot find out does not start it.

An arbiter that keeps something (``file:``, ``etcd:``) belongs to one VM: its :class:`ArbiterIdentity` is made once, by
:func:`colo.arbiter.init_arbiter`, and it says who holds the generation.
"""

from __future__ import annotations

import shlex
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

from colo.arbiter.runner import Runner
from colo.errors import ArbitrationError
from colo.wire import GENERATION_MAX


@dataclass(frozen=True, slots=True)
class ArbiterIdentity:
    """What makes two views of an arbiter the same one: ``id`` (32 hexadecimal digits, drawn when it was made), and whose it
    is."""

    id: str
    vm: str
    uuid: str

    def describe(self) -> str:
        """For messages: whose it is."""
        return f"VM {self.vm!r}" + (f" ({self.uuid})" if self.uuid else "")


@dataclass(frozen=True, slots=True)
class Claim:
    """A won generation: who may run the VM, and since when (``time_s``, Unix time).

    ``revision`` grows with every change of whatever keeps the generation (0 where nothing counts them): storage that is
    told it can refuse who comes with an older one.
    """

    generation: int
    role: str
    token: str
    time_s: float
    runner: Runner | None
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the generation, as far as the arbiter knows.

    ``role`` is "primary", "secondary", or "" where nobody holds it or nobody knows who does: see :attr:`free` and
    :attr:`unknown`. ``closed``: the VM was ended on purpose; it is started from here only after a word of the user's.
    All text is printable.
    """

    generation: int
    role: str
    runner: Runner | None
    since_s: float
    reason: str
    token: str
    closed: bool

    @property
    def free(self) -> bool:
        """Nobody holds it: it was just made, or released."""
        return self.runner is None and not self.role and bool(self.token) and not self.closed

    @property
    def unknown(self) -> bool:
        """Somebody holds it, and what is kept does not say who: made by hand, or its record could not be written."""
        return self.runner is None and not self.role and not self.token

    def describe(self) -> str:
        """``HOST (pid 12, primary) since 2026-11-25 10:00:00 UTC``, and what it is if nobody's."""
        since = f" since {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(self.since_s))}" if self.since_s else ""
        if self.unknown:
            return f"somebody unknown{since}"
        if self.runner is None:
            return f"nobody{since}"
        who = f"{self.runner.host} (pid {self.runner.pid}" + (f", {self.role})" if self.role else ")")
        return f"{who}{since}"


class Arbiter(ABC):
    """Decides who may run. One object per side and VM; its methods may be called from any thread.

    Every method raises ArbitrationError when it cannot be told: whoever gets that must not start anything.
    """

    uri: str = ""
    """What names it, without secrets; for messages."""
    identity: ArbiterIdentity | None = None
    """None for one that keeps nothing (``exec:``, ``none``)."""
    fences: bool = False
    """A won claim is proof that the other side does not run."""
    excludes: bool = True
    """Of two claims from one generation at most one wins."""

    @abstractmethod
    def claim(self, generation: int, *, reason: str = "", runner: Runner | None = None) -> Claim:
        """Take the VM over from ``generation``: the claim that is returned holds ``generation + 1``.

        ``reason`` is for humans and the fencing script: "reset", "silence", "requested", … ``runner``: the process that runs
        the VM, or will; this one if not given.

        Raises ArbitrationLost when ``generation`` is over: somebody (also this side, earlier) has claimed from it, or the VM
        was ended on purpose; ArbitrationError when it could not be decided. The VM must not be started then; trying again is
        allowed.
        """

    @abstractmethod
    def current(self) -> int:
        """The generation that holds now."""

    @abstractmethod
    def holder(self) -> Holder:
        """Who holds the generation that holds now."""

    @abstractmethod
    def close_generation(self, generation: int, reason: str, *, runner: Runner | None = None) -> None:
        """The VM ended on purpose: nobody runs it from here without a word of the user's.

        It takes a generation of its own, ``generation + 1``, so that no claim from ``generation`` can win after it. Only the
        holder can: this object, or another one with the same ``runner`` (default: this process). Idempotent.

        Raises ArbitrationLost for anybody else, or when ``generation`` is over.
        """

    @abstractmethod
    def release(self, generation: int, *, reason: str) -> Holder:
        """A user's word that whoever holds ``generation`` runs the VM no more and never will: nobody holds the next one.

        Raises ArbitrationLost when ``generation`` is over.
        """

    def know_vm(self, *, vm: str = "", uuid: str = "") -> None:  # noqa: B027 - only a fencing script is told
        """What this side has found out about the VM since: :class:`ExecArbiter` tells its script, where it was told nothing
        else. Of what runs, or stands by, on this side only: whom the script fences is not for the other side to name."""

    def seen(self, holder: Holder) -> bool | None:
        """Is the session alive that made this claim? None where nothing tells; False proves nothing."""
        return None

    def still_holds(self, generation: int) -> bool:
        """Is ``generation``, which this side holds, still the one that may run?

        Who gets ArbitrationError must not let anything out.
        """
        return self.current() == generation

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of what the arbiter uses. The generation stays as it is."""

    def __enter__(self) -> Arbiter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_generation(generation: int) -> None:
    """Raises ValueError when no generation can have this number."""
    if isinstance(generation, bool) or not isinstance(generation, int) or not 0 <= generation < GENERATION_MAX:
        raise ValueError(f"a generation is an integer from 0 to {GENERATION_MAX - 1}, got {generation!r}")


def init_command(uri: str) -> str:
    """What makes the arbiter that ``uri`` names."""
    return f"colo arbiter init {shlex.quote(uri)} --vm NAME"


def release_command(uri: str, vm: str) -> str:
    """What says that whoever holds the generation runs the VM no more."""
    return f"colo arbiter release {shlex.quote(uri or 'ARBITER')} --vm {shlex.quote(vm or 'NAME')}"


def reopen_command(uri: str, vm: str) -> str:
    """What lets a VM that was ended on purpose be started again."""
    return f"colo arbiter reopen {shlex.quote(uri or 'ARBITER')} --vm {shlex.quote(vm or 'NAME')}"


def ended_on_purpose(holder: Holder, uri: str, vm: str) -> str:
    """What to say of a closed generation."""
    return (
        f"the VM was ended on purpose ({holder.reason or 'no reason given'}; {holder.describe()}); to start it again: "
        f"{reopen_command(uri, vm)}")


def check_vm(identity: ArbiterIdentity, vm: str, where: str) -> None:
    """Raises ArbitrationError when ``vm`` is given and the arbiter is another VM's."""
    if vm and identity.vm != vm:
        raise ArbitrationError(
            f"arbiter {where} belongs to {identity.describe()}, not to {vm!r}: each VM has one of its own "
            f"(colo arbiter init, with another place, --vm {vm})")
