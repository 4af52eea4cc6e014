"""Who may start protecting a VM: asked before anything is streamed, by who holds the generation."""

from __future__ import annotations

import time

from colo.arbiter.arbiter import Arbiter, Claim, Holder, ended_on_purpose, release_command
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationLost


def may_protect(holder: Holder, runner: Runner, *, uri: str = "", vm: str = "") -> str:
    """May ``runner``, the process that runs the VM here, claim the generation after ``holder``'s? Returns why it may.

    ======================================================  ========================
    who holds it                                            may it be claimed?
    ======================================================  ========================
    nobody yet, or it was released                          yes
    the VM was ended on purpose                             no: reopen it
    somebody unknown                                        no: release it
    ``runner`` itself                                       yes
    a process of this host that is gone, or of its last boot  yes
    another process of this host, which lives               no: end that one
    another host's (or it cannot be told from here)         no: be its secondary
    ======================================================  ========================

    ``uri`` is the arbiter's, and ``vm`` its VM's name, for the commands that the refusal names.

    Raises ArbitrationLost when it may not; the message says who runs the VM and what to do.
    """
    release = release_command(uri, vm)
    if holder.closed:
        raise ArbitrationLost(ended_on_purpose(holder, uri, vm))
    if holder.free:
        return "nobody holds the VM"
    if holder.runner is None:
        raise ArbitrationLost(
            f"generation {holder.generation} is held, and what is kept does not say by whom: find out which side runs the "
            f"VM; if none does: {release}")
    if holder.runner == runner:
        return "this process holds the VM"
    alive = holder.runner.alive()
    if alive is False:
        return f"the process that held it is gone: {holder.describe()}"
    if alive:
        raise ArbitrationLost(
            f"the VM runs on this host already, as {holder.describe()}: protect that process, or end it first")
    raise ArbitrationLost(
        f"the VM runs on {holder.describe()}: start it here as its secondary (colo secondary); if that host is gone for "
        f"good: {release}")


def take_first(arbiter: Arbiter, runner: Runner, *, reason: str) -> Claim:
    """Claim the VM for ``runner``, which is to be its primary, if nobody else can be running it (:func:`may_protect`).

    An arbiter that keeps nothing (``exec:``, ``none``) is not asked: nobody was fenced, and the claim that is returned holds
    the generation that it is at.

    Raises ArbitrationLost when somebody else has the VM, ArbitrationError when it cannot be told.
    """
    if arbiter.identity is None:
        return Claim(arbiter.current(), "primary", "", time.time(), runner)
    holder = arbiter.holder()
    may_protect(holder, runner, uri=arbiter.uri, vm=arbiter.identity.vm)
    return arbiter.claim(holder.generation, reason=reason, runner=runner)
