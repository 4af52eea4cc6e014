"""The failover status, as a table of its own.

The statuses and their order are those of QEMU's migration/colo-failover.c (failover_request_active,
colo_failover_bh) and migration/colo.c (secondary_vm_do_failover). Here REQUIRE lasts as long as it is not
known whether this side may run: it ends in ACTIVE when arbitration is won, and in NONE when it is lost,
undecided, or there is nothing to resume from. RELAUNCH is a request that came while a commit was under way:
it is made again when the commit has ended, one way or the other, so that it is known which checkpoint is
the highest.
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
    RELAUNCH = "relaunch"


class FailoverEvent(Enum):
    REQUEST = "request"
    """An operator, a lost channel or a deadline asks for a failover."""
    REQUEST_BUSY = "request-busy"
    """The same, while a commit is under way."""
    SETTLED = "settled"
    """The commit under way has ended."""
    WON = "won"
    """This side may run."""
    REFUSED = "refused"
    """It may not, or cannot: arbitration lost or undecided, or nothing to resume from."""
    RUNNING = "running"
    """The VM runs on this side."""
    BROKEN = "broken"
    """The stand-by died or refused the state; this side still holds the generation and may try again."""


class FailoverAction(Enum):
    ARBITRATE = "ask the arbiter"
    TAKE_OVER = "make the VM run here"
    REQUEST_AGAIN = "make the request again"
    REPORT = "report the outcome"


class FailoverOutcome(NamedTuple):
    next_status: FailoverStatus
    actions: tuple[FailoverAction, ...]
    expected: bool


_S, _E, _A = FailoverStatus, FailoverEvent, FailoverAction

FailoverStep = tuple[FailoverStatus, tuple[FailoverAction, ...]]

FAILOVER_ROWS: dict[tuple[FailoverStatus, FailoverEvent], FailoverStep] = {
    (_S.NONE, _E.REQUEST): (_S.REQUIRE, (_A.ARBITRATE,)),
    (_S.NONE, _E.REQUEST_BUSY): (_S.RELAUNCH, ()),
    (_S.NONE, _E.SETTLED): (_S.NONE, ()),
    # A second request changes nothing while the first is under way.
    (_S.REQUIRE, _E.REQUEST): (_S.REQUIRE, ()),
    (_S.REQUIRE, _E.REQUEST_BUSY): (_S.REQUIRE, ()),
    (_S.REQUIRE, _E.SETTLED): (_S.REQUIRE, ()),
    (_S.REQUIRE, _E.WON): (_S.ACTIVE, (_A.TAKE_OVER,)),
    (_S.REQUIRE, _E.REFUSED): (_S.NONE, (_A.REPORT,)),
    (_S.ACTIVE, _E.REQUEST): (_S.ACTIVE, ()),
    (_S.ACTIVE, _E.REQUEST_BUSY): (_S.ACTIVE, ()),
    (_S.ACTIVE, _E.RUNNING): (_S.COMPLETED, (_A.REPORT,)),
    (_S.ACTIVE, _E.BROKEN): (_S.ACTIVE, (_A.REPORT,)),
    (_S.COMPLETED, _E.REQUEST): (_S.COMPLETED, ()),
    (_S.COMPLETED, _E.REQUEST_BUSY): (_S.COMPLETED, ()),
    (_S.RELAUNCH, _E.REQUEST): (_S.RELAUNCH, ()),
    (_S.RELAUNCH, _E.REQUEST_BUSY): (_S.RELAUNCH, ()),
    (_S.RELAUNCH, _E.SETTLED): (_S.NONE, (_A.REQUEST_AGAIN,)),
}
"""(status, event) -> (next status, actions). What is not here changes nothing and is a protocol error."""


def failover_lookup(status: FailoverStatus, event: FailoverEvent) -> FailoverOutcome:
    """Total: an event that does not fit leaves the status as it is, with ``expected`` False."""
    row = FAILOVER_ROWS.get((status, event))
    if row is None:
        return FailoverOutcome(status, (), expected=False)
    return FailoverOutcome(*row, expected=True)


class Failover:
    """The failover status of one side, from the first connection to the takeover."""

    __slots__ = ("status",)

    def __init__(self) -> None:
        self.status = FailoverStatus.NONE

    def __repr__(self) -> str:
        return f"<Failover {self.status.value}>"

    def feed(self, event: FailoverEvent) -> tuple[FailoverAction, ...]:
        """Take one event; returns the actions it asks for.

        :raises ProtocolError: the event does not fit the status, which stays as it is.
        """
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
        return outcome.actions
