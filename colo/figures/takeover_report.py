"""Taking over: the last committed checkpoint becomes a running VM, and how long each part of it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TakeoverReport:
    """A takeover that succeeded. The parts are in milliseconds and follow one another.

    ``detection_ms`` is the silence before the loss was noticed (0 for a reset, an EOF or a request), and is not part of
    ``total_ms``, which runs from the moment it was noticed to the stand-by reporting that it runs.
    """

    checkpoint: int
    reason: str
    generation: int | None
    detection_ms: float
    arbitration_ms: float
    settle_ms: float
    """Until the committed pages were all in the image, and the stand-by was ready."""
    compose_ms: float
    """Making the stream and writing it."""
    load_ms: float
    """Until QEMU had loaded it."""
    running_ms: float
    """From there until it reported that it runs."""
    total_ms: float
    checkpoint_age_ms: float
    """What the VM's clock lost: from the commit of the checkpoint to the loss being noticed."""
    sent_bytes: int
    shared_blocks: tuple[str, ...]
    """RAM blocks the stand-by maps: their pages were not sent."""
    qmp_path: str
    """The VM is the user's now: its monitor, and its process."""
    pid: int

    def __str__(self) -> str:
        return f"running from checkpoint {self.checkpoint} after {self.total_ms:.1f} ms (pid {self.pid}, QMP {self.qmp_path})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; milliseconds with three digits."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class VmTakeover:
    """A takeover that succeeded; parts in milliseconds."""

    checkpoint: int
    reason: str
    generation: int
    arbitration_ms: float
    settle_ms: float
    load_ms: float
    total_ms: float
    checkpoint_age_ms: float

    def __str__(self) -> str:
        return f"running from checkpoint {self.checkpoint} after {self.total_ms:.1f} ms"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}
