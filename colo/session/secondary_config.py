"""What a secondary is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from colo.protocol import Mode
from colo.session.deadlines import Deadlines
from colo.stream import StreamLimits


@dataclass(frozen=True, slots=True)
class SecondaryConfig:
    """What a secondary needs to know. Only ``listen`` and ``ram_dir`` have no default."""

    listen: str
    """``tcp:HOST:PORT`` or ``unix:PATH``."""
    ram_dir: str | os.PathLike[str]
    """Directory of the RAM image and of the control socket; on tmpfs, for speed (mode 0700, made if missing)."""
    standby: Sequence[str] | None = None
    """QEMU command line (the primary's will do) of the VM that takes over. None: checkpoints are kept, no takeover."""
    arbiter: str = ""
    """``file:DIR``, ``exec:COMMAND`` or ``none``; a takeover needs one."""
    share_ram: bool = True
    """Let the stand-by map the RAM image; False sends all pages at takeover."""
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
    takeover_s: float = 30.0
    """Most a stand-by may take to load the checkpoint and run."""
    heat_map: bool = False
    """Count the pages of each checkpoint by place (:attr:`Secondary.heat`)."""
