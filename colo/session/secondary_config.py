"""What a secondary is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from colo.protocol import Mode
from colo.protocol.deadlines import Deadlines
from colo.stream import StreamLimits

RETURN_S = 30.0


@dataclass(frozen=True, slots=True)
class SecondaryConfig:
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
    """Count the pages of each checkpoint by place (:attr:`Secondary.heat`)."""
