"""COLO's checkpointing for both roles, as one table.

``ROWS`` holds every expected step: (role, state, event[, conditions]) -> (next state, actions).
:func:`lookup` is total: what no row expects has the outcome that :func:`unexpected` gives for the state.
:mod:`states` says of each state which deadline runs in it, whether the epoch's clock does, and what is read
from the peer.

It follows the order of QEMU's migration/colo.c (colo_process_checkpoint, colo_do_checkpoint_transaction,
colo_process_incoming_thread, colo_incoming_process_checkpoint), with two changes: a secondary commits
before it says RECEIVED, and a lost connection leads to arbitration on both sides instead of to a failover
on either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from functools import cache
from typing import NamedTuple

from colo.protocol.primary_rows import primary_rows
from colo.protocol.rows import Row, row_of
from colo.protocol.secondary_rows import secondary_rows
from colo.protocol.states import COMMITS_RUNNING, FACTS, OVER, PRIMARY, states
from colo.protocol.words import FROM_PEER, Action, Condition, Event, Role, State


class Outcome(NamedTuple):
    """What an event leads to. ``expected`` False: it fits no row, and is a protocol error."""

    next_state: State
    actions: tuple[Action, ...]
    commits: bool
    expected: bool


LATE = frozenset(
    {
        Event.RAM_CONVERGED,
        Event.VM_STOPPED,
        Event.STATE_SAVED,
        Event.INITIAL_SENT,
        Event.CHECKPOINT_DUE,
        Event.RAM_SENT,
        Event.DEVICE_SENT,
        Event.VALIDATED,
        Event.APPLIED,
        Event.OUTPUT_AGREES,
        Event.OUTPUT_DIFFERS,
    }
)
"""Work of this side that may report after the connection is over: nothing follows from it any more."""


def _both() -> Iterator[Row]:
    for role in Role:
        for state in states(role):
            if state not in OVER:
                continue
            for event in Event:
                if event not in LATE:
                    continue
                yield row_of(role, state, event, state)
            if state is State.FINISHING_COMMIT:
                continue
            for event in (Event.CHANNEL_LOST, Event.DEADLINE, Event.FAILED):
                yield row_of(role, state, event, state)
            # Fenced after all: whoever finds the generation gone stops, also one that had won an older one.
            if state in {State.LOST, State.ALONE}:
                dropped = (Action.DROP_ALL,) if role is PRIMARY else ()
                yield row_of(role, state, Event.TAKEOVER_LOST, State.STOPPED, *dropped, Action.STOP_VM)
            elif state is State.STOPPED:
                yield row_of(role, state, Event.TAKEOVER_LOST, state)
            # A takeover happens once: asked again, it is already under way or over.
            if state is not State.LOST:
                yield row_of(role, state, Event.FAILOVER_REQUESTED, state)


def _ordered(rows: Iterable[Row]) -> tuple[Row, ...]:
    """In the order of the states and events, so that what is printed from the table is stable."""
    place = {key: number for number, key in enumerate(FACTS)}
    event_place = {event: number for number, event in enumerate(Event)}
    return tuple(sorted(rows, key=lambda row: (place[row.role, row.state], event_place[row.event])))


ROWS: tuple[Row, ...] = _ordered([*primary_rows(), *secondary_rows(), *_both()])
"""Every step that is expected."""

_BY_KEY: dict[tuple[Role, State, Event], list[Row]] = defaultdict(list)
for _each in ROWS:
    _BY_KEY[_each.role, _each.state, _each.event].append(_each)


def matching(role: Role, state: State, event: Event, holds: Set[Condition]) -> list[Row]:
    """The rows that apply; never more than one for conditions that can hold together."""
    return [row for row in _BY_KEY.get((role, state, event), ()) if row.when <= holds]


def unexpected(role: Role, state: State) -> Outcome:
    """The outcome of an event that no row expects: nothing of this epoch is believed, and the channel is
    reset."""
    if state in OVER:
        return Outcome(state, (), commits=False, expected=False)
    if role is PRIMARY:
        return Outcome(
            State.LOST, (Action.TAKE_BACK_EPOCH, Action.ABORT_CHANNEL), commits=False, expected=False
        )
    if state in COMMITS_RUNNING:
        return Outcome(State.FINISHING_COMMIT, (Action.ABORT_CHANNEL,), commits=False, expected=False)
    return Outcome(State.LOST, (Action.DROP_EPOCH, Action.ABORT_CHANNEL), commits=False, expected=False)


@cache  # it is asked some ten times per checkpoint, while the primary's VM stands still
def lookup(role: Role, state: State, event: Event, holds: frozenset[Condition]) -> Outcome:
    """What ``event`` leads to in ``state``. Total: every event in every state of the role has an outcome.

    Raises KeyError if the role has no such state.
    """
    if (role, state) not in FACTS:
        raise KeyError(f"a {role.value} is never in state {state.value}")
    rows = matching(role, state, event, holds)
    if not rows:
        return unexpected(role, state)
    row = rows[0]
    return Outcome(row.next_state, row.actions, row.commits, expected=True)


def expected_events(role: Role, state: State, holds: Set[Condition]) -> tuple[Event, ...]:
    """The events that carry the protocol on from ``state``, without those that may come at any time."""
    found = []
    for event in Event:
        rows = matching(role, state, event, holds)
        if not rows or rows[0].next_state in OVER:
            continue
        if event in FROM_PEER or rows[0].next_state is not state:
            found.append(event)
    if state in OVER:
        found = [event for event in Event if event not in LATE and matching(role, state, event, holds)]
    return tuple(found)
