"""The failover status: what a session says of the takeover it may be at, over all of its connections.

The statuses and their order are those of QEMU's migration/colo-failover.c (failover_request_active, colo_failover_bh) and
migration/colo.c (secondary_vm_do_failover). Here REQUIRE lasts as long as it is not known whether this side may run: it ends
in ACTIVE when arbitration is won, and in NONE when it is lost or undecided, or there is nothing to run the VM with. QEMU's
RELAUNCH, a request that came while a commit was under way, has no place here: a session takes requests between two steps, and
a commit is one. What is done about all this is in the rows of the checkpointing table.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from colo.errors import ProtocolError


class FailoverStatus(Enum):
    """QEMU's names (qapi: FailoverStatus)."""

    NONE = "none"
    REQUIRE = "require"
    ACTIVE = "active"
    COMPLETED = "completed"


class FailoverEvent(Enum):
    REQUEST = "request"
    """An operator, a lost channel or a deadline asks for a failover."""
    WON = "won"
    """This side may run."""
    REFUSED = "refused"
    """It may not, or cannot: arbitration lost or undecided, or nothing to run the VM with."""
    RUNNING = "running"
    """The VM runs on this side."""
    BROKEN = "broken"
    """The stand-by died or refused the state; this side still holds the generation and may try again."""


class FailoverOutcome(NamedTuple):
    next_status: FailoverStatus
    expected: bool


_S, _E = FailoverStatus, FailoverEvent

FAILOVER_ROWS: dict[tuple[FailoverStatus, FailoverEvent], FailoverStatus] = {
    (_S.NONE, _E.REQUEST): _S.REQUIRE,
    # A second request changes nothing while the first is under way.
    (_S.REQUIRE, _E.REQUEST): _S.REQUIRE,
    (_S.REQUIRE, _E.WON): _S.ACTIVE,
    (_S.REQUIRE, _E.REFUSED): _S.NONE,
    (_S.ACTIVE, _E.REQUEST): _S.ACTIVE,
    (_S.ACTIVE, _E.RUNNING): _S.COMPLETED,
    (_S.ACTIVE, _E.BROKEN): _S.ACTIVE,
    (_S.COMPLETED, _E.REQUEST): _S.COMPLETED,
}
"""(status, event) -> next status. What is not here changes nothing and is a protocol error."""


def failover_lookup(status: FailoverStatus, event: FailoverEvent) -> FailoverOutcome:
    """Total: an event that does not fit leaves the status as it is, with ``expected`` False."""
    following = FAILOVER_ROWS.get((status, event))
    return FailoverOutcome(status if following is None else following, expected=following is not None)


class Failover:
    """The failover status of one side, from the first connection to the takeover."""

    __slots__ = ("status",)

    def __init__(self) -> None:
        self.status = FailoverStatus.NONE

    def __repr__(self) -> str:
        return f"<Failover {self.status.value}>"

    def feed(self, event: FailoverEvent) -> None:
        """Take one event. Raises ProtocolError when it does not fit the status, which stays as it is."""
        outcome = failover_lookup(self.status, event)
        if not outcome.expected:
            expected = tuple(each.value for each in FailoverEvent if (self.status, each) in FAILOVER_ROWS)
            raise ProtocolError(
                f"failover status {self.status.value}: got {event.value}, expected {' or '.join(expected)}",
                state=self.status.value,
                got=event.value,
                expected=expected,
            )
        self.status = outcome.next_status
