"""A QEMU that a signal has stopped, and whose guard is gone: its monitor answers nobody until it goes on again.

Its fence, or the guard that is gone, stopped it, as its lease was over. So before a new guard can speak with it, the arbiter
decides: won, the fence lets it go on; lost, it is ended. Where the lease holds again, the fence lets it go on by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from colo.arbiter import Arbiter, Runner
from colo.errors import ArbitrationError, ArbitrationLost, QemuError
from colo.fence.fence import FenceHandle, FenceLost, FenceStatus, GuardLock
from colo.fence.held_generation import HeldGeneration
from colo.fence.place import GuardCard, guard_answers, guarded
from colo.fence.processes import thread_states

GOES_ON_S = 1.0
"""So long a process may take to go on, or to be gone."""
UNDECIDED_S = 30.0
"""So long an arbiter that cannot be reached is asked again."""
ASK_S = 0.5


def let_go_on(qmp: str | os.PathLike[str], arbiter: Callable[[], Arbiter], notice: Callable[[str], None]) -> int | None:
    """Make the QEMU with monitor ``qmp`` answer, if it was guarded and a signal has stopped it; else do nothing. Returns the
    generation that was won for that; None: none had to be.

    Raises ArbitrationLost when the other side has the VM (its QEMU here is ended then), ArbitrationError when that could not
    be decided (it stays stopped), QemuError when it stays stopped for another reason.
    """
    found = _stopped(qmp)
    if found is None:
        return None
    card, directory = found
    lock = GuardLock(directory)
    try:
        fence = FenceHandle.find(directory, lambda status: None)
        if fence is None:
            raise QemuError(
                f"QEMU (pid {card.pid}) is stopped by a signal, and no fence is beside it that could tell whether it may "
                f"run: see that the other side does not run the VM, then `kill -CONT {card.pid}`")
        try:
            return _decide(card, fence, arbiter, notice)
        finally:
            fence.close()
    finally:
        lock.release()


def _stopped(qmp: str | os.PathLike[str]) -> tuple[GuardCard, Path] | None:
    wanted = os.path.realpath(qmp)
    for card, directory in guarded():
        if os.path.realpath(card.qmp) == wanted and _is_stopped(card.pid) and not guard_answers(directory):
            return card, directory
    return None


def _is_stopped(pid: int) -> bool:
    states = set(thread_states(pid))
    return bool(states) and states <= {"T", "t"}


def _goes_on(pid: int) -> bool:
    deadline = time.monotonic() + GOES_ON_S
    while _is_stopped(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _decide(
    card: GuardCard, fence: FenceHandle, arbiter: Callable[[], Arbiter], notice: Callable[[str], None],
) -> int | None:
    won = None
    try:
        status = fence.status()
        if status.state in ("OVER", "STANDS"):
            won = _claim(card, fence, status, arbiter, notice)
    except FenceLost as error:
        raise QemuError(f"QEMU (pid {card.pid}) is stopped by a signal, and its fence hangs ({error}): kill that") from error
    if not _goes_on(card.pid):
        raise QemuError(
            f"QEMU (pid {card.pid}) is stopped by a signal, and not by its fence ({status.state.lower()}): "
            f"`kill -CONT {card.pid}` if that was yours")
    return won


def _claim(
    card: GuardCard, fence: FenceHandle, status: FenceStatus, arbiter: Callable[[], Arbiter], notice: Callable[[str], None],
) -> int | None:
    reason = f"the VM was stopped by its fence ({status.reason})"
    notice(f"{reason}, and nobody guarded it: the arbiter is asked")
    until = time.monotonic() + UNDECIDED_S
    told = False
    while True:
        fence.answering()
        if fence.status().state not in ("OVER", "STANDS"):
            return None  # the secondary promises again
        try:
            asked = arbiter()
            try:
                held = HeldGeneration(asked, Runner.of(card.pid))
                held.number = status.generation
                won = held.claim(reason)
            finally:
                asked.close()
        except ArbitrationLost as error:
            fence.prove(str(error))
            fence.end(str(error))
            raise ArbitrationLost(f"{reason}, and the other side has it: its QEMU here is ended; {error}") from error
        except ArbitrationError as error:
            if time.monotonic() > until:
                raise ArbitrationError(
                    f"{error}. {reason}, and stays stopped: `colo protect` again settles it when the arbiter answers"
                ) from error
            if not told:
                told = True
                notice(f"who may run is undecided, the VM waits: {error}")
            time.sleep(ASK_S)
            continue
        fence.alone(won, reason)
        return won
