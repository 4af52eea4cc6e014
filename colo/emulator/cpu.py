"""The CPU's registers as device state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from colo.vmstate import U32, U64, Description


@dataclass
class Cpu:
    """The registers of an ARM64 CPU at EL1 with the MMU off and no exceptions taken. Integers are unsigned."""

    x: Annotated[list[int], U64(count=31)] = field(default_factory=lambda: [0] * 31)
    sp: Annotated[int, U64()] = 0
    pc: Annotated[int, U64()] = 0
    nzcv: Annotated[int, U32()] = 0
    """The condition flags, in bits 31 to 28."""
    tpidr_el0: Annotated[int, U64()] = 0
    tpidr_el1: Annotated[int, U64()] = 0
    q: list[int] = field(default_factory=lambda: [0] * 64)
    """The vector registers q0 to q31, two halves each, the low one first."""
    fpcr: int = 0
    fpsr: int = 0

    @property
    def uses_vectors(self) -> bool:
        return any(self.q) or bool(self.fpcr or self.fpsr)

    def forget_vectors(self) -> None:
        """What a state without the subsection means."""
        self.q = [0] * 64
        self.fpcr = self.fpsr = 0


CPU = Description.of(
    Cpu,
    "cpu",
    subsections=[
        Description(
            "cpu/fpsimd",
            fields=[U64("q", count=64), U32("fpcr"), U32("fpsr")],
            needed=lambda cpu: cpu.uses_vectors,
        )
    ],
    pre_load=Cpu.forget_vectors,
)
"""``cpu/fpsimd`` is sent only for a guest that has used the vector registers."""
