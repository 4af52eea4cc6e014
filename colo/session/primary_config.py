"""What a primary is told, and what came of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from enum import Enum

from colo.abc import DirtyTracker
from colo.errors import ArbitrationError
from colo.link.extensions import METHODS, compression, offered
from colo.protocol import Dialect, Mode
from colo.protocol.deadlines import Deadlines
from colo.protocol.lease import LEASE_MS, lease_ns_of
from colo.stream import StreamLimits
from colo.wire import Extension


@dataclass(frozen=True, slots=True)
class PrimaryConfig:
    """What a primary needs to know. Only ``to`` and ``arbiter`` have no default."""

    to: str
    """Where the secondary listens: ``tcp:HOST:PORT`` or ``unix:PATH``."""
    arbiter: str
    """``file:DIR``, ``etcd:URL/PREFIX``, ``exec:COMMAND`` or ``none``."""
    vm: str = ""
    """The VM's name: an arbiter of another VM is refused. "": whichever the arbiter's is."""
    lease_ms: float = LEASE_MS
    """Between two colo ends: the VM runs only while the secondary has promised, for so long, not to run it. 0: no lease;
    towards a QEMU none can be had, and the arbiter must be one that fences (``exec:``), or ``none``."""
    fence: bool = True
    """With a lease: a small process beside this one tells the secondary at once when this one is killed, so that it need not
    wait for the lease's end. False where other processes execute the VM too, as this one's end does not prove theirs."""
    interval_ms: float = 100.0
    """From the begin of one checkpoint to that of the next; 0: one after the other. With a target pause, the most."""
    target_pause_ms: float | None = None
    """Adapt the interval so that pauses stay near this, as far as fewer dirty pages make them shorter."""
    link_share: float | None = None
    """Adapt the interval so that checkpoints take no more than this part of the link's measured rate, above 0 to 1: what
    else uses the link keeps the rest."""
    sending: str = "copy"
    """``copy``: the VM runs on as soon as its dirty pages are copied; ``direct``: when the secondary has loaded them."""
    copy_ahead: bool = True
    """With ``copy``: copy dirty pages before the pause too, so that only those written again meanwhile are copied in it.
    It needs a tracker that finds writes of a running VM (``pagemap``, ``explicit``); with others it is left out, and so
    it is for a while when it spared the pause little."""
    tracker: str | DirtyTracker = "auto"
    xbzrle: str | int | None = None
    """Send changed pages as deltas: ``"shadow"`` (a copy of all memory), or the bytes of a cache as QEMU's."""
    compress: str | None = None
    """Between two colo ends: ``"lz4"``, ``"zstd"``, ``"mask"`` (needs no library) or ``"auto"`` (what both have, where it
    pays at the link's measured rate), tried on pages that XBZRLE does not make small."""
    machine: str = "colo"
    """The machine type in the stream: a QEMU secondary's must be the same."""
    sections: bool | None = None
    """Whether ``save_state`` gives device sections (True), any bytes (False), or whichever the first state is (None)."""
    dialect: Dialect | None = None
    """None: ENABLE_COLO, and between two colo ends their own extensions."""
    mode: Mode = Mode.EARLY
    """What counts as committed: ``EARLY`` (RECEIVED) between colo ends; ``STRICT`` (LOADED) towards a QEMU."""
    digest: bool = True
    """Between two colo ends: send each checkpoint's digest, so that what was damaged on its way is not committed."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: StreamLimits = field(default_factory=StreamLimits)
    vm_s: float = 2.0
    """Most that one of the VM's own methods may take; less than the secondary's patience (``message_s``)."""
    connect_s: float = 10.0
    """Most that the first connection may take."""
    resync_s: float = 0.0
    """After a loss: so long the same secondary is tried again, with outputs held, before the arbiter is asked. It must
    wait as long on its side."""
    reconnect: bool = False
    """Running alone, go on trying to reach a (new) secondary."""
    insecure: bool = False
    """Allow plaintext TCP beyond loopback."""
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may listen there."""
    control: str | None = None
    """Path of a control socket (mode 0600) that answers ``status``, ``checkpoint`` and ``stop``; see `colo status`."""

    precopy: bool | None = None
    """Former name of ``copy_ahead``; goes with the next release."""

    def __post_init__(self) -> None:
        if self.precopy is not None:
            warnings.warn("PrimaryConfig.precopy is copy_ahead now", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "copy_ahead", self.precopy)
        if self.sending not in ("copy", "direct"):
            raise ValueError(f"sending is 'copy' or 'direct', not {self.sending!r}")
        if not self.arbiter:
            raise ArbitrationError(
                "without an arbiter both sides may run after a loss: file:DIR, etcd:URL/PREFIX, exec:COMMAND, or none")
        if self.lease_ms and self.mode is Mode.EARLY:
            lease_ns_of(self.lease_ms)
        elif self.mode is not Mode.EARLY and not self.arbiter.startswith("exec:") and self.arbiter != "none":
            raise ArbitrationError(
                "a QEMU promises no lease, so nothing would stop this VM by time when it is cut off: use an arbiter that "
                "fences "
                "the other side (exec:COMMAND), or none, by name, and both may run")
        if self.compress not in (None, "auto", *METHODS):
            raise ValueError(f"compress is None, 'auto', {' or '.join(map(repr, METHODS))}, not {self.compress!r}")
        if self.compress is not None and self.mode is not Mode.EARLY:
            raise ValueError("compress is for two colo ends (mode EARLY): a QEMU knows XBZRLE only")

    @property
    def leased(self) -> bool:
        """Whether a lease is held."""
        return self.lease_ms > 0 and self.mode is Mode.EARLY

    @property
    def spoken(self) -> Dialect:
        """The dialect to speak."""
        return self.dialect or Dialect(enable_colo=True, extended=self.mode is Mode.EARLY)

    @property
    def methods(self) -> tuple[str, ...]:
        """The compression to offer: what is wanted and works here. Raises Unsupported when that is nothing."""
        return compression(self.compress)

    @property
    def extensions(self) -> Extension:
        """What to offer to a colo secondary."""
        return offered(self.methods, digest=self.digest)


class PrimaryEnding(Enum):
    """How protection ended."""

    ALONE = "the VM runs on alone, unprotected"
    STOPPED = "the other side runs the VM: this one stands still"


@dataclass(frozen=True, slots=True)
class PrimaryOutcome:
    """What came of a session."""

    ending: PrimaryEnding
    reason: str
    generation: int


class PrimaryEnded(Exception):
    """No error: how a session may end."""

    def __init__(self, outcome: PrimaryOutcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome
