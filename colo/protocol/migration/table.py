"""A live migration for both roles, as one table.

``ROWS`` holds every expected step: (role, state, event[, conditions]) -> (next state, actions). :func:`lookup` is total: what
no row expects is a failure of the state it comes in.

It follows QEMU's migration/migration.c (migration_thread, migration_iteration_run, migration_completion,
source_return_path_thread, process_incoming_migration_co) and migration/savevm.c (loadvm_process_command), with these changes:
a source knows by a PING behind the devices that a QEMU refused none, before it hands out the end; between two colo ends the
end is a last word that the destination was told at the beginning; and a source whose destination may run does not go on by
itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from functools import cache
from typing import NamedTuple

from colo.errors import ProtocolError
from colo.protocol.migration.destination_rows import destination_rows
from colo.protocol.migration.rows import Row
from colo.protocol.migration.source_rows import source_rows
from colo.protocol.migration.states import FACTS, SOURCE
from colo.protocol.migration.words import Action, Condition, Event, MigrationStatus, Role, State


class Outcome(NamedTuple):
    """What an event leads to. ``expected`` False: it fits no row, and is a protocol error."""

    next_state: State
    actions: tuple[Action, ...]
    hands_out: bool
    expected: bool


_PLACE = {key: number for number, key in enumerate(FACTS)}
_EVENT_PLACE = {event: number for number, event in enumerate(Event)}
ROWS: tuple[Row, ...] = tuple(sorted(
    (*source_rows(), *destination_rows()), key=lambda row: (_PLACE[row.role, row.state], _EVENT_PLACE[row.event])))
"""Every step that is expected."""

_BY_KEY: dict[tuple[Role, State, Event], list[Row]] = defaultdict(list)
for _each in ROWS:
    _BY_KEY[_each.role, _each.state, _each.event].append(_each)


def matching(role: Role, state: State, event: Event, holds: Set[Condition]) -> list[Row]:
    """The rows that apply; never more than one for conditions that can hold together."""
    return [row for row in _BY_KEY.get((role, state, event), ()) if row.when <= holds]


@cache
def lookup(role: Role, state: State, event: Event, holds: frozenset[Condition]) -> Outcome:
    """What ``event`` leads to in ``state``. Total: every event in every state of the role has an outcome.

    Raises KeyError if the role has no such state.
    """
    if (role, state) not in FACTS:
        raise KeyError(f"a {role.value} is never in state {state.value}")
    rows = matching(role, state, event, holds)
    if rows:
        return Outcome(rows[0].next_state, rows[0].actions, rows[0].hands_out, expected=True)
    return unexpected(role, state, holds)


def unexpected(role: Role, state: State, holds: Set[Condition]) -> Outcome:
    """The outcome of an event that no row expects: as of a failure; where nothing can fail any more, nothing."""
    rows = matching(role, state, Event.FAILED, holds)
    if not rows:
        return Outcome(state, (), hands_out=False, expected=False)
    return Outcome(rows[0].next_state, rows[0].actions, hands_out=False, expected=False)


def expected_events(role: Role, state: State, holds: Set[Condition]) -> tuple[Event, ...]:
    """The events that carry the migration on from ``state``, without those that end it."""
    failed = unexpected(role, state, holds)
    return tuple(
        event for event in Event
        for row in matching(role, state, event, holds)
        if event not in ENDING_EVENTS and (row.next_state, row.actions) != (failed.next_state, failed.actions))


ENDING_EVENTS = frozenset(list(Event)[list(Event).index(Event.CANCELLED) :])
"""What ends a migration in any state."""


class StatusFacts(NamedTuple):
    """``runs_here``: whether the VM runs at the source (where it ran before); ``over``: whether this is the end."""

    runs_here: bool
    over: bool
    next: tuple[MigrationStatus, ...]


def _status_facts(status: MigrationStatus) -> StatusFacts:
    mine = [state for (role, state), fact in FACTS.items() if role is SOURCE and fact.status is status]
    follow = {FACTS[SOURCE, row.next_state].status for row in ROWS if row.role is SOURCE and row.state in mine} - {status}
    over = status in (MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED)
    runs_here = any(FACTS[SOURCE, state].runs_here for state in mine)
    return StatusFacts(runs_here, over, tuple(each for each in MigrationStatus if each in follow))


STATUSES: dict[MigrationStatus, StatusFacts] = {status: _status_facts(status) for status in MigrationStatus}
"""What may follow each status of a source. FAILED has ``runs_here`` but for a migration whose outcome is not known:
somebody who knows whether the destination runs may still say so."""


def next_status(now: MigrationStatus, then: MigrationStatus) -> MigrationStatus:
    """``then``. Raises ProtocolError when it cannot follow ``now``."""
    if then not in STATUSES[now].next:
        expected = tuple(each.value for each in STATUSES[now].next)
        raise ProtocolError(
            f"migration status {now.value}: {then.value} cannot follow, only {' or '.join(expected) or 'nothing'}",
            state=now.value, got=then.value, expected=expected,
        )
    return then
