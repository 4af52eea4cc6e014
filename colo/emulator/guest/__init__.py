"""The guest of the demo: a program whose every line depends on all that its VM did before.

``walk.S`` is its source, ``walk.bin`` what ``build`` makes of it, and ``transcript`` computes in Python what it prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from .transcript import transcript

if TYPE_CHECKING:
    from colo.emulator.machine import EmbeddedVm

FIRST_PAGE = 16
"""Below it lie the program and its stack."""


@dataclass(frozen=True, slots=True)
class Walk:
    """How long and how far the guest walks: ``lines`` lines, one each ``ticks_per_line`` ticks of its timer, and
    ``steps_per_tick`` steps a tick, each to eight words of one of ``pages`` pages. Raises ValueError."""

    pages: int
    lines: int
    steps_per_tick: int = 200
    ticks_per_line: int = 5
    seed: int = 1

    def __post_init__(self) -> None:
        for name, most in (("pages", 10**8), ("lines", 10**6), ("steps_per_tick", 10**6), ("ticks_per_line", 10**6)):
            if not 0 < getattr(self, name) < most:
                raise ValueError(f"{name} is {getattr(self, name)}: 1 to {most - 1}")

    @classmethod
    def over(cls, ram_bytes: int, **settings: int) -> Walk:
        """A walk over all that a machine of so much memory has free."""
        return cls(pages=ram_bytes // 4096 - FIRST_PAGE, **settings)

    def load_into(self, vm: EmbeddedVm) -> None:
        """Ready to run from the start. Raises ValueError when the machine has too little memory."""
        from colo.emulator.machine import RAM_ADDRESS

        if FIRST_PAGE + self.pages > vm.ram_bytes // 4096:
            raise ValueError(f"{self.pages} pages from page {FIRST_PAGE} on do not fit into {vm.ram_bytes} bytes of RAM")
        vm.boot(files(__package__).joinpath("walk.bin").read_bytes(), [
            RAM_ADDRESS + FIRST_PAGE * 4096, self.pages, self.steps_per_tick, self.ticks_per_line, self.lines, self.seed])

    def expected(self) -> Iterator[bytes]:
        """The lines it prints, computed without it."""
        return transcript(**asdict(self))
