"""What a secondary is told: one with a stand-by QEMU, and one whose VM is in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from colo.errors import ArbitrationError
from colo.protocol import Mode
from colo.protocol.deadlines import Deadlines
from colo.protocol.lease import LEASE_MS
from colo.stream import StreamLimits

RETURN_S = 30.0

NO_LEASE = (
    "no lease was asked for (--no-lease): a primary that is cut off is not stopped by time, so both sides can run unless the "
    "arbiter itself fences (exec:)")


@dataclass(frozen=True, slots=True)
class QemuSecondaryConfig:
    """What a secondary needs to know. Only ``listen`` and ``ram_dir`` have no default."""

    listen: str
    """``tcp:HOST:PORT`` or ``unix:PATH``. "": nobody is let in; for a directory that holds a checkpoint."""
    ram_dir: str | os.PathLike[str]
    """Directory of the RAM image and of the control socket; on tmpfs, for speed (mode 0700, made if missing)."""
    standby: Sequence[str] | None = None
    """QEMU command line (the primary's will do) of the VM that takes over. None: checkpoints are kept, no takeover."""
    arbiter: str = ""
    """``file:DIR``, ``etcd:URL/PREFIX``, ``exec:COMMAND`` or ``none``; a takeover needs one."""
    vm: str = ""
    """The VM's name: an arbiter of another VM is refused. "": whichever the arbiter's is."""
    lease_ms: float = 3000.0
    """The longest lease that this side promises, in milliseconds; the primary's decides within that. 0: none, and a primary
    that nobody guards is let in. Then nothing stops its VM by time: use an arbiter that fences (``exec:``)."""
    share_ram: bool = True
    """Let the stand-by map the RAM image; False sends all pages at takeover."""
    trial: bool = True
    """Find out beforehand, in a twin that never runs, whether the stand-by can load the VM."""
    on_loss: str = "takeover"
    """``takeover``, or ``hold``: wait for a request."""
    wait_s: float = 0.0
    """After a loss, with ``on_loss`` takeover: so long the primary may come back (its ``resync_s``) before this side takes
    over."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: StreamLimits = field(default_factory=StreamLimits)
    max_ram_bytes: int | None = None
    """Most RAM a primary may announce; default: this machine's physical memory."""
    mode: Mode = Mode.EARLY
    insecure: bool = False
    """Allow plaintext TCP beyond loopback."""
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may connect."""
    discard: bool = False
    """Delete the checkpoint that an earlier session left in ``ram_dir``."""
    return_s: float = RETURN_S
    """Started on such a checkpoint, with ``on_loss`` takeover: its primary has so long to come back before this side asks the
    arbiter. (Only one that keeps who holds the VM: with ``exec:`` and ``none`` it waits for a request.)"""
    wait: bool = False
    """When the other side won: keep the checkpoint and wait for its primary, instead of ending with ArbitrationLost."""
    takeover_s: float = 30.0
    """Most a stand-by may take to load the checkpoint and run."""
    heat_map: bool = False
    """Count the pages of each checkpoint by place (:attr:`QemuSecondary.heat`)."""

    def check(self) -> None:
        """Raises ValueError, ArbitrationError for what cannot be."""
        if self.on_loss not in ("takeover", "hold"):
            raise ValueError(f"on_loss is 'takeover' or 'hold', not {self.on_loss!r}")
        if self.standby is not None and not self.arbiter:
            raise ArbitrationError(
                "a takeover needs an arbiter, or both sides may run: --arbiter file:DIR (storage both reach), "
                "etcd:URL/PREFIX, exec:COMMAND (your fencing), or none to go without")


@dataclass(frozen=True, slots=True)
class VmSecondaryConfig:
    """What an in-process secondary needs to know. Only ``listen`` and ``arbiter`` have no default."""

    listen: str
    arbiter: str
    """``file:DIR``, ``etcd:URL/PREFIX``, ``exec:COMMAND`` or ``none``."""
    vm: str = ""
    """The VM's name: an arbiter of another VM is refused. "": whichever the arbiter's is."""
    lease_ms: float = LEASE_MS
    """The longest lease that this side promises, in milliseconds; the primary's decides within that. 0: none, and a
    primary that asks for none is let in."""
    wait_s: float = 0.0
    """After a loss: so long the primary may come back (its ``resync_s``) before this side takes over."""
    resume: bool = True
    """Let the VM run after the takeover."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: StreamLimits = field(default_factory=StreamLimits)
    mode: Mode = Mode.EARLY
    insecure: bool = False
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may connect."""
    heat_map: bool = False
    """Count the pages of each checkpoint by place (:attr:`VmSecondary.heat`)."""
    control: str | None = None
    """Path of a control socket (mode 0600) that answers ``status``, ``heat`` and ``failover``; see `colo status`."""
    takeover_s: float = 30.0
    """Most that a takeover asked for there may take before it is said to be late; it goes on."""
