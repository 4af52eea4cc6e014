"""Arbiters that keep nothing: what they know is what this object has seen."""

from __future__ import annotations

import threading
import time

from colo.arbiter.arbiter import Arbiter, Claim, Holder, check_generation
from colo.arbiter.record import new_holder
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationLost


class ForgetfulArbiter(Arbiter):
    """What ``exec:`` and ``none`` share. A new object begins with generation 0, held by nobody that it knows."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._lock = threading.Lock()
        self._holder = self._nobody(0)

    def current(self) -> int:
        return self._holder.generation

    def holder(self) -> Holder:
        return self._holder

    def close_generation(self, generation: int, reason: str, *, runner: Runner | None = None) -> None:
        runner = runner or Runner.of()
        check_generation(generation)
        with self._lock:
            holder = self._holder
            if holder.closed and holder.generation == generation + 1 and holder.runner == runner:
                return
            self._check_standing(generation)
            self._holder = new_holder(
                generation + 1, holder.token, role=self._role, runner=runner, since_s=time.time(), reason=reason, closed=True)

    def release(self, generation: int, *, reason: str) -> Holder:
        check_generation(generation)
        with self._lock:
            if generation < self._holder.generation:
                raise ArbitrationLost(f"generation {generation} is over: {self._holder.generation} has begun")
            self._holder = self._nobody(generation + 1, reason)
            return self._holder

    def _check_standing(self, generation: int) -> None:
        check_generation(generation)
        if generation < self._holder.generation:
            raise ArbitrationLost(f"generation {generation} is over: {self._holder.generation} has begun")
        if self._holder.closed:
            raise ArbitrationLost(f"the VM was ended on purpose: {self._holder.reason or 'no reason given'}")

    def _win(self, generation: int, token: str, reason: str, runner: Runner) -> Claim:
        now = time.time()
        self._holder = new_holder(generation, token, role=self._role, runner=runner, since_s=now, reason=reason)
        return Claim(generation, self._role, token, now, runner)

    def _lose(self, generation: int) -> None:
        """The other side holds ``generation``; who that is is not known."""
        self._holder = Holder(generation, "", None, 0.0, "", "", False)

    @staticmethod
    def _nobody(generation: int, reason: str = "") -> Holder:
        return new_holder(generation, "0" * 32, since_s=0.0, reason=reason)
