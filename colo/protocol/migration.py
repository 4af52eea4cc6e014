"""The status of a live migration, as a table: QEMU's names, what follows what, and where the VM may run meanwhile.

The names are those of QEMU's qapi (MigrationStatus); the order is that of migration/migration.c (migration_thread,
migration_completion, migrate_fd_cancel). Postcopy's and COLO's statuses are not here.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from colo.errors import ProtocolError


class MigrationStatus(Enum):
    """QEMU's names (qapi: MigrationStatus)."""

    NONE = "none"
    SETUP = "setup"
    """Connecting, tracking begins, the stream is opened."""
    ACTIVE = "active"
    """Rounds over RAM; the VM runs."""
    PRE_SWITCHOVER = "pre-switchover"
    """The VM stands still and waits to be told to go on."""
    DEVICE = "device"
    """The VM stands still; the rest of RAM and the device state are sent, and the destination's answer is awaited."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class StatusFacts(NamedTuple):
    """``runs_here``: whether the VM runs at the source (where it ran before); ``over``: whether this is the end."""

    runs_here: bool
    over: bool
    next: tuple[MigrationStatus, ...]


_S = MigrationStatus
_STOPPED_EARLY = (_S.FAILED, _S.CANCELLING)

STATUSES: dict[MigrationStatus, StatusFacts] = {
    _S.NONE: StatusFacts(True, False, (_S.SETUP,)),
    _S.SETUP: StatusFacts(True, False, (_S.ACTIVE, *_STOPPED_EARLY)),
    _S.ACTIVE: StatusFacts(True, False, (_S.PRE_SWITCHOVER, _S.DEVICE, *_STOPPED_EARLY)),
    _S.PRE_SWITCHOVER: StatusFacts(False, False, (_S.DEVICE, *_STOPPED_EARLY)),
    # Cancelling is possible until the stream's last byte is handed out: see the session.
    _S.DEVICE: StatusFacts(False, False, (_S.COMPLETED, *_STOPPED_EARLY)),
    _S.CANCELLING: StatusFacts(True, False, (_S.CANCELLED, _S.FAILED)),
    _S.COMPLETED: StatusFacts(False, True, ()),
    # Undecided: somebody who knows whether the destination runs may still say so.
    _S.FAILED: StatusFacts(True, True, (_S.COMPLETED,)),
    _S.CANCELLED: StatusFacts(True, True, ()),
}
"""What may follow each status. FAILED has ``runs_here`` but for a migration whose outcome is not known."""


def next_status(now: MigrationStatus, then: MigrationStatus) -> MigrationStatus:
    """``then``. Raises ProtocolError when it cannot follow ``now``."""
    if then not in STATUSES[now].next:
        expected = tuple(each.value for each in STATUSES[now].next)
        raise ProtocolError(
            f"migration status {now.value}: {then.value} cannot follow, only {' or '.join(expected) or 'nothing'}",
            state=now.value, got=then.value, expected=expected,
        )
    return then
