"""Watches a COLO channel by the protocol's table, from what its primary says alone."""

from __future__ import annotations

from colo.errors import StreamError
from colo.protocol import Condition, Event, Reads, Role, State, facts, lookup
from colo.protocol.table import expected_events

ROLE = Role.SECONDARY
"""What is read is what a secondary reads."""
MAY_HOLD = frozenset(Condition) - {Condition.STRICT, Condition.HYBRID, Condition.NO_CHECKPOINT}
"""What the two ends agreed on is not heard: all of it may be so. How a secondary commits makes no difference to what it
reads."""


class Observer:
    """Begins behind the initial stream. Whatever the secondary has to do before it reads on counts as done."""

    def __init__(self) -> None:
        self.state = State.START
        for event in (Event.STREAM_OPENED, Event.INITIAL_STAGED):
            self.see(event)

    @property
    def reads(self) -> Reads:
        """What comes next."""
        return facts(ROLE, self.state).reads

    @property
    def expected(self) -> tuple[Event, ...]:
        """The events that carry the protocol on from here."""
        return expected_events(ROLE, self.state, MAY_HOLD)

    def see(self, event: Event, *, offset: int | None = None) -> None:
        """``event`` was read at ``offset``. Raises StreamError when the table does not expect it here."""
        outcome = lookup(ROLE, self.state, event, MAY_HOLD)
        if not outcome.expected:
            wanted = " or ".join(each.value for each in self.expected)
            raise StreamError(
                f"{event.value}, expected {wanted}", where="COLO channel", offset=offset, value=event.value)
        self.state = outcome.next_state
        while self.reads is Reads.NOTHING and (own := self.expected):
            self.state = lookup(ROLE, self.state, own[0], MAY_HOLD).next_state
