"""A committed checkpoint, and what is reported of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from colo._fast.ramblock import RamBlock
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


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """One checkpoint as its secondary saw it. Times in milliseconds, sizes in bytes."""

    number: int
    interval_ms: float
    """Since the checkpoint before was committed."""
    held_ms: float
    """From VMSTATE_SEND to RECEIVED and LOADED sent: what of the primary's pause passes between the two ends."""
    ram_ms: float
    device_ms: float
    validate_ms: float
    stream_bytes: int
    device_bytes: int
    zero_pages: int
    normal_pages: int
    xbzrle_pages: int
    xbzrle_bytes: int
    compressed_pages: int
    compressed_bytes: int

    @property
    def dirty_pages(self) -> int:
        """Pages of all kinds."""
        return self.zero_pages + self.normal_pages + self.xbzrle_pages + self.compressed_pages

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
