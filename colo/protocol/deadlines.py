"""How long a peer may take for each part of the protocol. QEMU itself waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, replace

from colo.protocol import Phase, StateFacts

_OF_PHASE = {
    Phase.HANDSHAKE: "handshake_s",
    Phase.INITIAL: "epoch_s",
    Phase.IDLE: "idle_s",
    Phase.MESSAGE: "message_s",
    Phase.RAM: "epoch_s",
    Phase.DEVICE: "epoch_s",
}


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. All but ``progress_s`` are counted from the phase's start, so that trickling bytes do not extend them."""

    handshake_s: float = 10.0
    """From the connection to the stream's CONFIGURATION."""
    message_s: float = 5.0
    """One COLO message, from its first byte or from the one it answers."""
    progress_s: float = 2.0
    """Without a single byte, while bytes are due."""
    epoch_s: float = 30.0
    """A whole checkpoint; also one section of the initial stream."""
    idle_s: float | None = 60.0
    """Silence between two checkpoints; more than the primary's x-checkpoint-delay. None: only TCP tells."""

    def capped(self, deadline_ms: float) -> Deadlines:
        """The same with no silence allowed to last longer than ``deadline_ms``."""
        seconds = deadline_ms / 1000
        if seconds <= 0:
            raise ValueError(f"a deadline of {deadline_ms} ms; it must be more than 0")
        return replace(
            self, message_s=min(self.message_s, seconds), progress_s=min(self.progress_s, seconds), idle_s=seconds
        )

    def of(self, facts: StateFacts) -> float | None:
        """Seconds the state described by ``facts`` may last, None without limit."""
        name = _OF_PHASE.get(facts.phase)
        return None if name is None else getattr(self, name)
