"""What a protector is told, and what came of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from colo.errors import ArbitrationError
from colo.protocol.lease import LEASE_MS, lease_ns_of
from colo.qemu.primary import ColoSettings


@dataclass(frozen=True, slots=True)
class QemuGuardConfig:
    """What ``colo protect`` needs to know. Only ``qmp``, ``to`` and ``arbiter`` have no default."""

    qmp: str | os.PathLike[str]
    """QMP socket of the running QEMU."""
    to: str
    """Where its secondary listens: ``tcp:HOST:PORT`` or ``unix:PATH``."""
    arbiter: str
    """``file:DIR``, ``etcd:URL/PREFIX``, ``exec:COMMAND`` or ``none``; the secondary's own."""
    vm: str = ""
    """The VM's name; "": what QEMU's ``-name`` says, or the arbiter's own."""
    settings: ColoSettings = field(default_factory=ColoSettings)
    deadline_ms: float = 5000.0
    """Most that the VM may stand still for a checkpoint, and that a checkpoint which is due may take to begin."""
    lease_ms: float = LEASE_MS
    """The VM runs only while the secondary has promised, for so long, not to run it. 0: no lease, for a secondary that cannot
    promise (a QEMU): then the arbiter must be one that fences (``exec:``), or ``none``."""
    set_up_s: float = 60.0
    """Most that the first copy may take."""
    on_crash: str = "takeover"
    """When the guest's kernel panics: ``takeover`` from the checkpoint before it, or ``end``: the VM ends."""
    init_arbiter: bool = False
    """Make the arbiter where there is none yet."""
    reconnect: bool = False
    """Running alone, go on trying to reach a (new) secondary, for ever."""
    watchdog: str = ""
    """A watchdog device (``/dev/watchdog``) that resets this machine when the fence cannot say any more that all is well."""
    insecure: bool = False
    """Allow plaintext TCP beyond loopback."""
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may listen there."""

    def __post_init__(self) -> None:
        if not self.arbiter:
            raise ArbitrationError(
                "without an arbiter both sides may run after a loss: --arbiter file:DIR, etcd:URL/PREFIX, exec:COMMAND, "
                "or none")
        if self.on_crash not in ("takeover", "end"):
            raise ValueError(f"on_crash is 'takeover' or 'end', not {self.on_crash!r}")
        if self.lease_ms:
            lease_ns_of(self.lease_ms)
        elif not self.arbiter.startswith("exec:") and self.arbiter != "none":
            raise ArbitrationError(
                "without a lease nothing stops this VM by time when it is cut off: use an arbiter that fences the other side "
                "(exec:COMMAND), or none, by name, and both may run")


class Ending(Enum):
    """How protection ended."""

    ALONE = "the secondary is lost: the VM runs on alone, unprotected"
    UNPROTECTED = "protection was ended on request: the VM runs on alone"
    STOPPED = "the other side runs the VM: the one here was ended"
    ENDED = "the VM was ended on purpose: it runs nowhere"
    PRIMARY_GONE = "the primary's QEMU is gone"
    HANDED_OVER = "QEMU hangs here: its VM was left to the other side"


@dataclass(frozen=True, slots=True)
class QemuGuardReport:
    """What came of it; ``freed_ms`` is from the loss being noticed to the VM running alone."""

    ending: Ending
    reason: str
    checkpoints: int
    freed_ms: float | None = None

    def __str__(self) -> str:
        return f"{self.ending.value} ({self.reason})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ending": self.ending.name.lower(), "text": self.ending.value, "reason": self.reason,
            "checkpoints": self.checkpoints, "freed_ms": self.freed_ms,
        }
