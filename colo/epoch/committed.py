"""A committed checkpoint: what a takeover resumes from."""

from __future__ import annotations

from dataclasses import dataclass

from colo._fast.kernels.ramblock import RamBlock
from colo.stream import Configuration


@dataclass(frozen=True, slots=True)
class Committed:
    """Everything a takeover needs, but the pages: those are in the blocks' memory, plus what is still being applied."""

    number: int
    configuration: Configuration
    ram_section_id: int
    """The id the ``ram`` section had: none of the device sections has it."""
    device_state: bytes
    """FULL sections up to their EOF, as received."""
    blocks: tuple[RamBlock, ...]
    at_ns: int
    """CLOCK_MONOTONIC."""
