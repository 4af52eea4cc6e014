"""Who may begin to run the VM as primary."""

from __future__ import annotations

from colo.arbiter.arbiter import Arbiter, Claim, Holder
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationLost


def may_take_first(holder: Holder, runner: Runner) -> None:
    """Raises ArbitrationLost when it may not."""
    if holder.closed:
        raise ArbitrationLost(f"the VM was ended on purpose ({holder.reason})")
    if holder.free or holder.unknown or holder.runner is None:
        return
    if holder.runner == runner or holder.runner.alive() is False:
        return
    raise ArbitrationLost(f"the VM runs on {holder.describe()}: start it as secondary")


def take_first(arbiter: Arbiter, runner: Runner, *, reason: str) -> Claim:
    """Claim the next generation for ``runner``."""
    holder = arbiter.holder()
    may_take_first(holder, runner)
    return arbiter.claim(holder.generation, reason=reason, runner=runner)
