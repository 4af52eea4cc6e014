"""The machine's timer: the guest waits for ticks, and ends the machine by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from colo.vmstate import U64, Bool, Description

WAIT = 0
"""Written: the CPU's next WFI lasts until the next tick."""
OFF = 8
"""Written: the machine is switched off."""


@dataclass
class Timer:
    """Counts the ticks that the guest waited for. It knows no clock, and has no register to read: what the guest computes
    does not depend on when, or on which side, it runs."""

    ticks: Annotated[int, U64()] = 0
    waiting: Annotated[bool, Bool()] = False
    off: Annotated[bool, Bool()] = False

    def tick(self) -> None:
        """The time that the guest waits for has come."""
        if self.waiting:
            self.waiting = False
            self.ticks += 1


TIMER = Description.of(Timer, "timer")
