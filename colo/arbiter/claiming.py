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


def until_decided(
    ask: Callable[[], int],
    *,
    on_undecided: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
    wait: Callable[[float], bool] = _sleep,
) -> int:
    """What ``ask`` returns: the generation that it won. While that cannot be decided, it asks again.

    ``on_undecided`` is told once. ``wait`` waits so many seconds, and says whether to give up, as ``stopping`` does; what it
    raises ends the asking. Raises ArbitrationLost (the other side runs), or ArbitrationError when it was given up.
    """
    told = False
    while True:
        try:
            return ask()
        except ArbitrationLost:
            raise
        except ArbitrationError as error:
            if not told:
                on_undecided(f"who may run is undecided, trying again: {error}")
                told = True
            if stopping() or wait(RETRY_S):
                raise


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
    """Win the generation after ``generation``, and return it; asked again as :func:`until_decided` does, and raises as it.

    ``runner`` is the process that runs the VM, or will (this one if not given).
    """
    return until_decided(
        lambda: arbiter.claim(generation, reason=reason, runner=runner).generation,
        on_undecided=on_undecided, stopping=stopping, wait=wait)
