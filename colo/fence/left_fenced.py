"""A VM whose guard is gone: what its fence says of it, and how the VM is guarded again."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

from colo.errors import ColoError
from colo.fence.fence import FenceLost, FenceStatus, look_at_fence
from colo.fence.place import GuardCard, find_guard, guard_answers
from colo.lease.clock import now_ns

UNGUARDED, UNFENCED = "unguarded", "unfenced"
"""States in the place of a guard's own: its fence is left; not even that."""


def answering_guard(vm: str = "", qmp: str = "") -> Path:
    """The directory of the guard of that VM, as :func:`colo.fence.place.find_guard` finds it; one that is there.

    Raises ColoError when there is none: also where only the fence is left, and what then.
    """
    card, path = find_guard(vm, qmp)
    if not guard_answers(path):
        raise ColoError(left_status(card, path)["text"])
    return path


def left_status(card: GuardCard, directory: Path) -> dict[str, Any]:
    """How a VM is whose guard is gone: ``text`` says it, and what to do; the keys are as a guard's status has them."""
    try:
        fence = look_at_fence(directory)
        hangs = ""
    except FenceLost as error:
        fence, hangs = None, str(error)
    again = _again(card, fence)
    if fence is not None:
        how = _how(fence)
    elif hangs:
        how = f"its fence is there and hangs ({hangs}): kill that"
    else:
        how = f"no fence is beside it either: nothing stops the VM (pid {card.pid}) by time when it is cut off"
    left_ms = None if fence is None or not fence.lease_end_ns else max(0.0, (fence.lease_end_ns - now_ns()) / 1e6)
    return {
        "state": UNFENCED if fence is None and not hangs else UNGUARDED,
        "over": False,
        "vm": card.vm,
        "pid": card.pid,
        "to": card.to,
        "text": f"VM {card.vm or card.qmp} has no guard any more (`colo protect` is gone); {how}. {again}",
        "guard_again": again.partition(": ")[2],
        "generation": fence.generation if fence is not None else None,
        "lease": {
            "lease_ms": fence.lease_ns / 1e6 if fence is not None else None,
            "left_ms": None if left_ms is None else round(left_ms, 1),
            "fence": fence.state.lower() if fence is not None else None,
            "fence_pid": fence.fence_pid if fence is not None else None,
        },
        "secondary_notice": fence.notice if fence is not None else "",
    }


def _how(fence: FenceStatus) -> str:
    who = f"its fence (pid {fence.fence_pid})"
    if fence.state == "LEASED":
        return (
            f"the VM still runs, under {who}, which asks for the next promise by itself: as long as the secondary promises, "
            f"and without another promise until {_at(fence.lease_end_ns)}, when the VM is stopped")
    if fence.state == "OVER":
        return (
            f"the VM stands still, stopped by {who} when the lease ran out at {_at(fence.lease_end_ns)}: it goes on when "
            "the secondary promises again")
    if fence.state == "STANDS":
        return f"the VM stands still, stopped by {who}: {fence.reason}"
    if fence.state == "UNLEASED":
        return f"the VM still runs; {who} has had no promise yet, so nobody can take the VM over"
    if fence.vm_gone or fence.state in ("ENDING", "GONE"):
        return f"the VM's process has ended, and {who} tells the secondary so: {fence.reason or 'no reason known'}"
    return f"the VM still runs, alone; {who} has nothing more to do"


def _at(at_ns: int) -> str:
    """A time on the fence's clock, as people read it."""
    seconds = (at_ns - now_ns()) / 1e9
    moment = time.time() + seconds
    clock = time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment % 1 * 10)}"
    return f"{clock} (in {seconds * 1000:.0f} ms)" if seconds > 0 else clock


def _again(card: GuardCard, fence: FenceStatus | None) -> str:
    arbiter = str(fence.notes.get("arbiter", "")) if fence is not None else ""
    command = ["colo", "protect", "--qmp", card.qmp, "--to", card.to, "--arbiter", arbiter or "ARBITER"]
    takes = "A new `colo protect` takes it over" if fence is not None else "A new `colo protect` guards it again"
    return f"{takes}, with the arguments of before: {shlex.join(command)}"
