"""The generation of a VM that a guard holds for its QEMU: taken, won anew, looked at, closed."""

from __future__ import annotations

from collections.abc import Callable

from colo.arbiter import Arbiter, Runner, may_protect, take_first
from colo.errors import ArbitrationError, ArbitrationLost


class HeldGeneration:
    """What ``arbiter`` says of the VM that ``runner``, its QEMU's process, runs (None: that process is not known here)."""

    def __init__(self, arbiter: Arbiter, runner: Runner | None) -> None:
        """Raises ArbitrationError when it cannot be told which generation holds."""
        self.arbiter = arbiter
        self.number = arbiter.current()
        self.token = ""
        """Of the claim that won it; "" where the arbiter keeps none."""
        self.won: int | None = None
        """A newer generation, which a guard before this one has won for this very QEMU, as :meth:`is_gone` found."""
        self._runner = runner

    def take_first(self) -> None:
        """Take the VM for a protection that begins, if the arbiter keeps who holds it. Raises ArbitrationLost when somebody
        else has it, ArbitrationError when it cannot be told."""
        if self.arbiter.identity is None:
            return
        assert self._runner is not None
        claimed = take_first(self.arbiter, self._runner, reason="protect")
        self.number, self.token = claimed.generation, claimed.token

    def take_running(self, uri: str, vm: str) -> bool:
        """Whether this very QEMU holds the VM already: then that generation is this one's. Raises ArbitrationLost when
        somebody else has the VM (it must not run here), ArbitrationError when it cannot be told."""
        if self.arbiter.identity is None:
            return False
        assert self._runner is not None
        held = self.arbiter.holder()
        may_protect(held, self._runner, uri=uri, vm=vm)
        if held.runner != self._runner:
            return False
        self.number, self.token = held.generation, held.token
        return True

    def is_gone(self) -> bool:
        """Whether somebody else holds the VM now. Where it is a newer generation of this very QEMU's, :attr:`won` says so.
        While it cannot be told, nobody takes over as long as the lease lasts."""
        try:
            if self.arbiter.still_holds(self.number):
                return False
            self.won = self._newer()
        except ArbitrationError:
            return False
        return self.won is None

    def claim(self, reason: str) -> int:
        """The generation that is won. Raises ArbitrationLost, ArbitrationError."""
        try:
            return self.arbiter.claim(self.number, reason=reason, runner=self._runner).generation
        except ArbitrationLost:
            if (won := self.won_before()) is None:
                raise
            return won

    def claim_back(self, number: int) -> int:
        """The generation that is won from ``number``, the other side's, which gave it up. Raises as :meth:`claim`."""
        return self.arbiter.claim(number, reason="returned", runner=self._runner).generation

    def won_before(self) -> int | None:
        """The newer generation that a guard before this one won for this very QEMU, and ended before it could say so."""
        try:
            return self._newer()
        except ArbitrationError:
            return None  # it cannot be told just now: whoever has to know asks again

    def _newer(self) -> int | None:
        if self._runner is None or self.arbiter.identity is None:
            return None
        held = self.arbiter.holder()
        mine = held.generation > self.number and held.runner == self._runner and not held.closed
        return held.generation if mine else None

    def close(self, reason: str, tell: Callable[[str], None]) -> None:
        """The VM was ended on purpose; ``tell`` hears when the arbiter could not be told so. Raises ArbitrationLost when the
        generation is over."""
        try:
            self.arbiter.close_generation(self.number, reason, runner=self._runner)
        except ArbitrationLost:
            raise
        except ArbitrationError as error:
            tell(f"the arbiter was not told that the VM was ended: {error}")
