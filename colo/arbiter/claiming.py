"""Claiming a VM from an arbiter that may not be able to tell just now."""

from __future__ import annotations

import time
from collections.abc import Callable

from colo.arbiter.arbiter import Arbiter
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationError, ArbitrationLost

RETRY_S = 1.0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def claim(
    arbiter: Arbiter,
    generation: int,
    *,
    reason: str,
    on_undecided: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
    wait: Callable[[float], bool] = _sleep,
    runner: Runner | None = None,
) -> int:
    """Win the generation after ``generation``, and return it. While that cannot be decided, it is asked again.

    ``runner`` is the process that runs the VM, or will (this one if not given). ``on_undecided`` is told once, ``wait``
    waits, and says whether to give up, as ``stopping`` does. Raises ArbitrationLost (the other side runs), or
    ArbitrationError when it was given up.
    """
    told = False
    while True:
        try:
            return arbiter.claim(generation, reason=reason, runner=runner).generation
        except ArbitrationLost:
            raise
        except ArbitrationError as error:
            if not told:
                on_undecided(f"who may run is undecided, trying again: {error}")
                told = True
            if stopping() or wait(RETRY_S):
                raise
