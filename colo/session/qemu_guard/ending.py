"""How protection ends: who runs the VM is settled with the arbiter, and carried out on a QEMU."""

from __future__ import annotations

import time

from colo import trace
from colo.errors import ArbitrationError, ArbitrationLost, QemuError
from colo.qemu.endings import Ending as QemuEnding
from colo.qemu.endings import Follows
from colo.qemu.qmp import QmpError, QmpTimeout
from colo.session.qemu_guard.config import Ending, QemuGuardReport
from colo.session.qemu_guard.protection import Protection
from colo.trace import SessionState

GENERATION_S = 0.2
"""How often the generation is looked at; a takeover is noticed, and this VM ended, within this time."""
RETRY_S = 1.0
TAKEN_S, TAKEN_UNHEARD_S = 30.0, 1.0
"""So long a VM that was taken over is kept, stopped, in case the other side cannot run it: while that is heard of, and
not."""
END_S, MOVE_S = 10.0, 1.0
"""So long a QEMU that ends has for closing its disks: where its VM ends with it, and where the other side waits for it."""
ENDING_S = 2.0
"""So long a process may take to end when its monitor is gone already."""
HAND_OVER_S = 10.0
HAND_OVER_LEASES = 3
"""So long the other side may take to take a VM over that is of no use here: while it is heard of, and, in leases, anyhow."""


class QemuGuardEnding:
    """Each method is one way in which ``protection`` ends, to its end, and returns the report of it."""

    def __init__(self, protection: Protection) -> None:
        self._p = protection

    def settle(self, reason: str, won: Ending = Ending.ALONE) -> QemuGuardReport:
        """The secondary is lost, or let go. Whoever wins the generation runs.

        Raises ArbitrationError when it was asked to end while that was undecided, QemuError when the VM may run and its QEMU
        refuses.
        """
        p = self._p
        noticed = time.monotonic()
        p.state = SessionState.SETTLING
        in_order = won is Ending.UNPROTECTED
        p.tell(trace.Notice(reason) if in_order else trace.Lost(reason))
        p.keeping.answering()
        # Asked to leave, the channel is left whole until the claim is won: if it cannot be, protection goes on.
        in_checkpoint = p.meter is not None and p.meter.stopped_at_us is not None
        if not p.keeping.usable(p.primary, in_checkpoint=in_checkpoint, yank=not in_order):
            # Without a monitor, its process soon will be gone.
            if p.qemu.wait_ended(ENDING_S if p.qemu.qmp.lost else 0):
                return self.ended_itself(p.ends.verdict())
            return self._hand_over(f"{reason}; QEMU does not answer, so its VM could not be freed here")
        told = False
        while True:
            try:
                generation = p.held.claim(reason)
                break
            except ArbitrationLost as error:
                return self.lost(f"{reason}; {error}")
            except ArbitrationError as error:
                if not p.qemu.alive():
                    return self.ended_itself(p.ends.verdict())
                if not told:
                    p.notice(f"who may run is undecided, the VM waits: {error}")
                    told = True
                p.state = SessionState.UNDECIDED
                self._pause_while_undecided()
                if self._wait_undecided():
                    raise ArbitrationError(
                        f"{error}. Its fence keeps the VM as the lease allows (stopped, once that is over): `colo protect` "
                        "again settles it when the arbiter answers") from error
        return self.run_alone(generation, reason, won, noticed)

    def _wait_undecided(self) -> bool:
        """Until the arbiter is asked again; True when it was asked to end meanwhile."""
        p, until = self._p, time.monotonic() + RETRY_S
        while time.monotonic() < until and p.qemu.alive():
            p.keeping.tend()
            if p.leave:
                return True
            p.wait(until)
        return False

    def _pause_while_undecided(self) -> None:
        """While it is open who may run, this VM must not: the other side may have won. A lease ends by itself."""
        p = self._p
        if p.config.lease_ms:
            return
        try:
            p.qemu.qmp.execute("stop", timeout_s=1.0)
        except QmpError as error:
            p.notice(f"QEMU did not stop its VM: {error}")

    # -- this side runs the VM

    def run_alone(self, generation: int, reason: str, won: Ending, noticed: float) -> QemuGuardReport:
        """``generation`` was won. Raises QemuError when QEMU refuses to run the VM."""
        p = self._p
        p.held.number = generation
        p.keeping.alone(generation, reason)
        try:
            if not self._freed():
                return p.report(Ending.PRIMARY_GONE, f"{reason}; its process ended")
        finally:
            p.keeping.release()
        return p.report(won, reason, noticed)

    def _freed(self) -> bool:
        """The VM is this side's: have QEMU run it. False when its process ended. A QEMU that hangs is asked until it answers:
        nobody else may run its VM. Raises QemuError when it refuses, or this session is asked to end before that."""
        p, told = self._p, False
        while True:
            try:
                p.primary.free_from_lost_secondary()
                return True
            except QmpTimeout as error:
                if not p.qemu.alive():
                    return False
                if p.leave or p.end:
                    raise QemuError(f"the VM may run, but QEMU could not be freed from its secondary: {error}") from error
                if not told:
                    told = True
                    p.notice(f"the VM is this side's, and is freed as soon as its QEMU answers: {error}")
            except QmpError as error:
                if not p.qemu.alive():
                    return False
                raise QemuError(f"the VM may run, but QEMU could not be freed from its secondary: {error}") from error

    # -- the other side runs it

    def lost(self, reason: str) -> QemuGuardReport:
        """The other side holds the next generation: this VM stands still, and is ended as soon as that one runs."""
        p = self._p
        p.state = SessionState.LOSING
        if p.keeping.leased:
            p.keeping.prove(reason)
            if (report := self._await_other_side(reason)) is not None:
                return report
            p.keeping.end(reason)
        how = p.primary.end_loser()
        p.keeping.release(stopped=True)
        return p.report(Ending.STOPPED, f"{reason} ({how})")

    def _await_other_side(self, reason: str) -> QemuGuardReport | None:
        """Keep the stopped VM until the other side says that it runs, or cannot run it: then it is claimed back."""
        p, began = self._p, time.monotonic()
        while p.qemu.alive():
            p.keeping.tend()
            fence = p.keeping.fence
            if fence is not None and fence.returned:
                p.notice(f"the other side could not run the VM, it is claimed back: {fence.said}")
                try:
                    generation = p.held.claim_back(fence.returned)
                except ArbitrationError as error:
                    p.notice(f"it cannot be claimed back: {error}")
                    return None
                return self.run_alone(generation, f"{reason}; {fence.said}", Ending.ALONE, began)
            until = began + (TAKEN_S if p.keeping.heard_of else TAKEN_UNHEARD_S)
            if time.monotonic() > until:
                return None
            p.wait(until + 0.001)
        return None

    def _hand_over(self, reason: str) -> QemuGuardReport:
        """QEMU is of no use here: the VM is left to the other side, if that can run it."""
        p = self._p
        if not p.keeping.leased:
            how = p.primary.stop_loser(kill=True)
            return p.report(Ending.HANDED_OVER, f"{reason} ({how})")
        p.notice(f"{reason}: it is left to the other side")
        p.keeping.prove(reason)
        began, unheard_s = time.monotonic(), HAND_OVER_LEASES * p.config.lease_ms / 1000
        while True:
            until = began + (max(HAND_OVER_S, unheard_s) if p.keeping.heard_of else unheard_s)
            if time.monotonic() > until:
                break
            p.keeping.tend()
            if not p.qemu.alive() or p.keeping.taken or p.held.is_gone():
                report = self.lost(reason)
                return report if report.ending is not Ending.STOPPED else p.report(Ending.HANDED_OVER, report.reason)
            p.wait(time.monotonic() + GENERATION_S)
        p.notice("the other side does not take the VM: it is claimed for this one, as it is")
        try:
            generation = p.held.claim(reason)
        except ArbitrationLost as error:
            return self.lost(f"{reason}; {error}")
        return self.run_alone(generation, reason, Ending.ALONE, time.monotonic())

    # -- QEMU ends

    def ended_itself(self, how: QemuEnding | None) -> QemuGuardReport:
        """QEMU ends, or has ended: its VM ends with it, or moves over. The fence tells the other side, and stays until
        that was heard. Raises ArbitrationLost when the VM was to end, and somebody else has it."""
        p = self._p
        if p.keeping.taken:
            return p.report(
                Ending.STOPPED, f"the other side took over, generation {p.keeping.taken} (ended by the fence)")
        text = how.text if how is not None else "its process ended"
        p.state = SessionState.ENDING
        if how is not None and how.outcome(p.config.on_crash) is Follows.ENDS:
            p.keeping.ended(text)  # first: whoever finds the generation closed should know why
            p.held.close(text, p.notice)
            p.ends.wait_gone(END_S)
            return p.report(Ending.ENDED, text)
        p.ends.wait_gone(MOVE_S)
        p.keeping.moves(text)
        return p.report(Ending.PRIMARY_GONE, text)

    def end_on_purpose(self, reason: str) -> QemuGuardReport:
        """End the VM: nobody runs it after this, and nobody revives it."""
        p = self._p
        p.state = SessionState.ENDING
        try:
            p.held.close(reason, p.notice)
        except ArbitrationLost as error:
            return self.lost(f"{reason}; {error}")
        p.keeping.ended(reason)
        p.primary.quit_gently(END_S)
        p.primary.end_loser()
        p.keeping.release(stopped=True)
        return p.report(Ending.ENDED, reason)
