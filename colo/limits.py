"""How much a peer may ask for: every bound the parsers of this folder apply, with defaults for real
machines."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds on what one stream may contain; each is checked before memory is taken for it."""

    device_state_bytes: int = 64 * MIB
    """All device sections of one stream together; also a PACKAGED stream."""
    device_sections: int = 4096
    vmdesc_bytes: int = 16 * MIB
    vmdesc_depth: int = 32
    vmdesc_values: int = 400_000
    """Objects, arrays, members and elements of the vmdesc (a ``pc`` has about 7,000)."""
    ram_blocks: int = 4096
    capabilities: int = 256
    quiet_ms: float = 200.0
    """How long nothing may follow an EOF before the stream is taken to have no vmdesc
    (``-machine suppress-vmdesc=on``), when the channel stays open."""


DEFAULT_LIMITS = StreamLimits()
