"""What a migration needs to know, and what it comes to, on either side."""

from __future__ import annotations

from dataclasses import dataclass, field

from colo.abc import DirtyTracker
from colo.protocol.deadlines import Deadlines
from colo.protocol.migration import MigrationStatus, VmPlace
from colo.stream import StreamLimits


@dataclass(frozen=True, slots=True)
class MigrationSourceConfig:
    """Only ``to`` has no default."""

    to: str
    """Where the destination listens: ``tcp:HOST:PORT`` or ``unix:PATH``; a QEMU's ``-incoming``, or a
    :class:`~colo.session.migration.MigrationDestination`."""
    downtime_limit_ms: float = 300.0
    """Switch over once what is left takes at most this long at the measured bandwidth."""
    max_bandwidth_bytes_per_s: int | None = None
    """While the VM runs; None or 0: no limit. What is left when it stands still is sent without one."""
    auto_converge: bool = False
    """Slow the VM down (:class:`colo.abc.Throttled`) while it dirties more than half of what is sent."""
    throttle_initial_percent: int = 20
    throttle_increment_percent: int = 10
    throttle_max_percent: int = 99
    pause_before_switchover: bool = False
    """Stand still in status ``pre-switchover`` until ``continue_()``."""
    return_path: bool = True
    """Ask the destination to confirm. False: what was sent whole counts as arrived."""
    arbiter: str = "none"
    """``file:DIR``, ``etcd:URL/PREFIX`` or ``exec:COMMAND``: who may run when the answer is lost. The destination must be
    given the same."""
    tracker: str | DirtyTracker = "auto"
    xbzrle: str | int | None = None
    """Send changed pages as deltas from the second round on: ``"shadow"``, or the bytes of a cache as QEMU's. A QEMU
    destination needs nothing for it."""
    machine: str = "colo"
    """The machine type in the stream: a QEMU destination's must be the same."""
    sections: bool | None = None
    """Whether ``save_state`` gives device sections (True), any bytes (False), or whichever it turns out to be (None)."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: StreamLimits = field(default_factory=StreamLimits)
    vm_s: float = 2.0
    """Most that one of the VM's own methods may take."""
    connect_s: float = 10.0
    insecure: bool = False
    """Allow plaintext TCP beyond loopback."""
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may listen there."""


@dataclass(frozen=True, slots=True)
class MigrationOutcome:
    """How a migration ended: COMPLETED or CANCELLED (one that failed ends with its error)."""

    status: MigrationStatus
    vm: VmPlace
    reason: str
    downtime_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class MigrationDestinationConfig:
    """Only ``listen`` has no default."""

    listen: str
    """``tcp:HOST:PORT`` or ``unix:PATH``."""
    resume: bool = True
    """Let the VM run when it has arrived."""
    machine: str | None = None
    """Take only a stream of this machine type; None: any."""
    arbiter: str = "none"
    """``file:DIR``, ``etcd:URL/PREFIX`` or ``exec:COMMAND``, the source's too: asked before the VM runs, so that a source
    that lost this side's answer can find out."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """``idle_s`` is how long the source may be silent between two sections, as one that waits for leave to switch over."""
    limits: StreamLimits = field(default_factory=StreamLimits)
    insecure: bool = False
    """Allow plaintext TCP beyond loopback."""
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may connect."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A migration that arrived. Times in milliseconds, sizes in bytes."""

    machine: str
    confirmed: bool
    """Whether the source was told, which it must have asked for."""
    stream_bytes: int
    device_bytes: int
    load_ms: float
    """From the stream's last byte to the VM running."""
    total_ms: float
