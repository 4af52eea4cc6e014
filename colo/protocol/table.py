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

from colo.protocol.states import (
    COMMITS_RUNNING,
    FACTS,
    NOTHING_SENT_WHOLE,
    OVER,
    PRIMARY,
    SECONDARY,
    facts,
    states,
)
from colo.protocol.words import FROM_PEER, Action, Condition, Event, Reads, Role, State


class Row(NamedTuple):
    """One step. ``commits``: with it, the epoch's checkpoint counts as committed on this side."""

    role: Role
    state: State
    event: Event
    next_state: State
    actions: tuple[Action, ...] = ()
    when: frozenset[Condition] = frozenset()
    commits: bool = False

    @property
    def served(self) -> bool:
        """False for rows of the hybrid mode: they are part of the protocol, and refused for now."""
        return Condition.HYBRID not in self.when


class Outcome(NamedTuple):
    """What an event leads to. ``expected`` False: it fits no row, and is a protocol error."""

    next_state: State
    actions: tuple[Action, ...]
    commits: bool
    expected: bool


def _row(
    role: Role,
    state: State,
    event: Event,
    next_state: State,
    *actions: Action,
    when: Iterable[Condition] = (),
    commits: bool = False,
) -> Row:
    return Row(role, state, event, next_state, actions, frozenset(when), commits)


def _primary() -> Iterator[Row]:
    a, c, e, s = Action, Condition, Event, State

    def row(
        state: State,
        event: Event,
        to: State,
        *actions: Action,
        when: Iterable[Condition] = (),
        commits: bool = False,
    ) -> Row:
        return _row(PRIMARY, state, event, to, *actions, when=when, commits=commits)

    # The initial stream. Which of the optional commands are sent is the dialect's choice (Machine drops the
    # others).
    yield row(
        s.START,
        e.CONNECTED,
        s.INITIAL_RAM,
        a.SEND_HEADER,
        a.SEND_OPEN_RETURN_PATH,
        a.SEND_PING,
        a.SEND_ENABLE_COLO,
        a.SEND_INITIAL_RAM,
    )
    yield row(s.INITIAL_RAM, e.RAM_CONVERGED, s.INITIAL_STOPPING, a.SUSPEND)
    yield row(s.INITIAL_STOPPING, e.VM_STOPPED, s.INITIAL_SAVING, a.SAVE)
    yield row(s.INITIAL_SAVING, e.STATE_SAVED, s.INITIAL_SENDING, a.SEND_SWITCHOVER_START, a.SEND_INITIAL_END)
    yield row(s.INITIAL_SENDING, e.INITIAL_SENT, s.AWAIT_READY, when=[c.NO_RETURN_PATH])
    yield row(s.INITIAL_SENDING, e.INITIAL_SENT, s.AWAIT_SHUT, when=[c.RETURN_PATH])
    for state in (s.INITIAL_RAM, s.INITIAL_STOPPING, s.INITIAL_SAVING, s.AWAIT_SHUT):
        yield row(state, e.PONG, state, when=[c.RETURN_PATH])
    yield row(s.AWAIT_SHUT, e.SHUT, s.AWAIT_READY, when=[c.RETURN_PATH])
    yield row(s.AWAIT_READY, e.EXTENSIONS, s.AWAIT_READY, when=[c.EXTENSIONS_DUE])
    for mode in (c.EARLY, c.STRICT):
        yield row(s.AWAIT_READY, e.CHECKPOINT_READY, s.RUNNING, a.RESUME, when=[mode], commits=True)
    yield row(
        s.AWAIT_READY,
        e.CHECKPOINT_READY,
        s.RUNNING,
        a.RESUME,
        a.START_COMPARING,
        when=[c.HYBRID],
        commits=True,
    )

    # A checkpoint.
    yield row(s.RUNNING, e.CHECKPOINT_DUE, s.AWAIT_REPLY, a.SEND_CHECKPOINT_REQUEST)
    yield row(s.RUNNING, e.OUTPUT_AGREES, s.RUNNING, a.RELEASE_PACKETS, when=[c.HYBRID])
    yield row(s.RUNNING, e.OUTPUT_DIFFERS, s.AWAIT_REPLY, a.SEND_CHECKPOINT_REQUEST, when=[c.HYBRID])
    yield row(s.AWAIT_REPLY, e.CHECKPOINT_REPLY, s.STOPPING, a.SUSPEND)
    yield row(s.STOPPING, e.VM_STOPPED, s.SAVING, a.SAVE)
    send = (a.SEND_VMSTATE_SEND, a.SEND_SWITCHOVER_START, a.SEND_RAM)
    yield row(s.SAVING, e.STATE_SAVED, s.SENDING_RAM, *send, when=[c.DIRECT])
    yield row(s.SAVING, e.STATE_SAVED, s.SENDING_RAM, a.RESUME, *send, when=[c.COPY])
    yield row(
        s.SENDING_RAM, e.RAM_SENT, s.SENDING_DEVICE, a.SEND_DIGEST, a.SEND_VMSTATE_SIZE, a.SEND_DEVICE
    )
    yield row(s.SENDING_DEVICE, e.DEVICE_SENT, s.AWAIT_RECEIVED)
    yield row(
        s.AWAIT_RECEIVED, e.VMSTATE_RECEIVED, s.AWAIT_LOADED, a.RELEASE_PACKETS, when=[c.EARLY], commits=True
    )
    yield row(s.AWAIT_RECEIVED, e.VMSTATE_RECEIVED, s.AWAIT_LOADED, when=[c.STRICT])
    yield row(s.AWAIT_RECEIVED, e.VMSTATE_RECEIVED, s.AWAIT_LOADED, when=[c.HYBRID])
    yield row(s.AWAIT_LOADED, e.VMSTATE_LOADED, s.RUNNING, a.RESUME, when=[c.EARLY, c.DIRECT])
    yield row(s.AWAIT_LOADED, e.VMSTATE_LOADED, s.RUNNING, when=[c.EARLY, c.COPY])
    yield row(
        s.AWAIT_LOADED,
        e.VMSTATE_LOADED,
        s.RUNNING,
        a.RELEASE_PACKETS,
        a.RESUME,
        when=[c.STRICT, c.DIRECT],
        commits=True,
    )
    yield row(
        s.AWAIT_LOADED, e.VMSTATE_LOADED, s.RUNNING, a.RELEASE_PACKETS, when=[c.STRICT, c.COPY], commits=True
    )
    # Two VMs that are to agree must start from the same state: hybrid goes with DIRECT only.
    yield row(
        s.AWAIT_LOADED,
        e.VMSTATE_LOADED,
        s.RUNNING,
        a.RELEASE_PACKETS,
        a.RESUME,
        a.START_COMPARING,
        when=[c.HYBRID, c.DIRECT],
        commits=True,
    )
    for state in states(PRIMARY):
        if FACTS[PRIMARY, state].in_epoch:
            yield row(state, e.CHECKPOINT_DUE, state, a.DEFER_CHECKPOINT)
            yield row(state, e.OUTPUT_DIFFERS, state, a.DEFER_CHECKPOINT, when=[c.HYBRID])

    # The end of a connection. Before the secondary can have anything whole, the VM simply runs on.
    for state in states(PRIMARY):
        if state in OVER:
            continue
        for event, close in (
            (e.CHANNEL_LOST, a.CLOSE_CHANNEL),
            (e.DEADLINE, a.ABORT_CHANNEL),
            (e.FAILED, a.ABORT_CHANNEL),
            # The secondary gives up: it could not load the stream.
            (e.SHUT_FAILED, a.ABORT_CHANNEL),
        ):
            when = [c.RETURN_PATH] if event is e.SHUT_FAILED else []
            if when and facts(PRIMARY, state).reads is not Reads.RETURN_PATH:
                continue
            back = (a.GIVE_BACK_DIRTY, close)
            if state in NOTHING_SENT_WHOLE:
                yield row(state, event, s.ALONE, *back, a.RESUME, when=[*when, c.NO_CHECKPOINT])
                yield row(state, event, s.LOST, *back, when=[*when, c.CHECKPOINT])
            else:
                yield row(state, event, s.LOST, *back, when=when)
        if state in NOTHING_SENT_WHOLE:
            yield row(
                state,
                e.FAILOVER_REQUESTED,
                s.ALONE,
                a.GIVE_BACK_DIRTY,
                a.ABORT_CHANNEL,
                a.RESUME,
                when=[c.NO_CHECKPOINT],
            )
            yield row(
                state,
                e.FAILOVER_REQUESTED,
                s.ARBITRATING,
                a.GIVE_BACK_DIRTY,
                a.ARBITRATE,
                a.ABORT_CHANNEL,
                when=[c.CHECKPOINT],
            )
        else:
            yield row(
                state, e.FAILOVER_REQUESTED, s.ARBITRATING, a.GIVE_BACK_DIRTY, a.ARBITRATE, a.ABORT_CHANNEL
            )
        yield row(state, e.TAKEOVER_LOST, s.STOPPED, a.DROP_PACKETS, a.STOP_VM, a.ABORT_CHANNEL)
    # Even with nothing acknowledged the secondary may have committed checkpoint 0: only the arbiter can tell.
    yield row(s.LOST, e.FAILOVER_REQUESTED, s.ARBITRATING, a.ARBITRATE)
    yield row(s.ARBITRATING, e.TAKEOVER_WON, s.ALONE, a.RELEASE_PACKETS, a.RESUME)
    yield row(s.ARBITRATING, e.TAKEOVER_LOST, s.STOPPED, a.DROP_PACKETS, a.STOP_VM)
    yield row(s.ARBITRATING, e.TAKEOVER_UNDECIDED, s.LOST)


def _secondary() -> Iterator[Row]:
    a, c, e, s = Action, Condition, Event, State

    def row(
        state: State,
        event: Event,
        to: State,
        *actions: Action,
        when: Iterable[Condition] = (),
        commits: bool = False,
    ) -> Row:
        return _row(SECONDARY, state, event, to, *actions, when=when, commits=commits)

    # The initial stream.
    yield row(s.START, e.CONNECTED, s.START)
    yield row(s.START, e.STREAM_OPENED, s.INITIAL_STREAM, a.RECEIVE_INITIAL)
    here = s.INITIAL_STREAM
    yield row(here, e.OPEN_RETURN_PATH, here, when=[c.NO_RETURN_PATH])
    yield row(here, e.PING, here, a.SEND_PONG, when=[c.RETURN_PATH])
    yield row(here, e.ENABLE_COLO, here, when=[c.COLO_NOT_ENABLED])
    yield row(here, e.SWITCHOVER_START, here, when=[c.NOT_SWITCHED_OVER])
    yield row(here, e.INITIAL_STAGED, s.INITIAL_VALIDATING, a.VALIDATE)
    yield row(s.INITIAL_VALIDATING, e.VALIDATED, s.INITIAL_COMMITTING, a.COMMIT)
    # QEMU 11.1 takes a COLO message for one of the return path unless that was shut before.
    ready = (a.SEND_SHUT, a.SEND_EXTENSIONS, a.SEND_CHECKPOINT_READY)
    yield row(s.INITIAL_COMMITTING, e.COMMITTED, s.IDLE, *ready, a.LOAD, when=[c.EARLY], commits=True)
    yield row(s.INITIAL_COMMITTING, e.COMMITTED, s.INITIAL_LOADING, a.LOAD, when=[c.STRICT], commits=True)
    yield row(s.INITIAL_COMMITTING, e.COMMITTED, s.INITIAL_LOADING, a.LOAD, when=[c.HYBRID], commits=True)
    yield row(s.INITIAL_LOADING, e.APPLIED, s.IDLE, *ready, when=[c.STRICT])
    yield row(s.INITIAL_LOADING, e.APPLIED, s.IDLE, *ready, a.RESUME, when=[c.HYBRID])

    # A checkpoint.
    for mode in (c.EARLY, c.STRICT):
        yield row(s.IDLE, e.CHECKPOINT_REQUEST, s.AWAIT_VMSTATE_SEND, a.SEND_CHECKPOINT_REPLY, when=[mode])
    yield row(s.IDLE, e.CHECKPOINT_REQUEST, s.SUSPENDING, a.SUSPEND, when=[c.HYBRID])
    yield row(s.SUSPENDING, e.VM_STOPPED, s.AWAIT_VMSTATE_SEND, a.SEND_CHECKPOINT_REPLY, when=[c.HYBRID])
    yield row(s.AWAIT_VMSTATE_SEND, e.VMSTATE_SEND, s.RECEIVING_RAM, a.RECEIVE_RAM)
    yield row(s.RECEIVING_RAM, e.SWITCHOVER_START, s.RECEIVING_RAM, when=[c.NOT_SWITCHED_OVER])
    yield row(s.RECEIVING_RAM, e.RAM_STAGED, s.AWAIT_SIZE)
    yield row(s.AWAIT_SIZE, e.CHECKPOINT_DIGEST, s.AWAIT_SIZE, when=[c.DIGEST_DUE])
    yield row(s.AWAIT_SIZE, e.VMSTATE_SIZE, s.RECEIVING_DEVICE, a.RECEIVE_DEVICE, when=[c.NO_DIGEST_DUE])
    yield row(s.RECEIVING_DEVICE, e.DEVICE_RECEIVED, s.VALIDATING, a.VALIDATE)
    yield row(s.VALIDATING, e.VALIDATED, s.COMMITTING, a.COMMIT)
    yield row(
        s.COMMITTING,
        e.COMMITTED,
        s.IDLE,
        a.SEND_VMSTATE_RECEIVED,
        a.SEND_VMSTATE_LOADED,
        a.LOAD,
        when=[c.EARLY],
        commits=True,
    )
    for mode in (c.STRICT, c.HYBRID):
        yield row(
            s.COMMITTING, e.COMMITTED, s.APPLYING, a.SEND_VMSTATE_RECEIVED, a.LOAD, when=[mode], commits=True
        )
    yield row(s.APPLYING, e.APPLIED, s.IDLE, a.SEND_VMSTATE_LOADED, when=[c.STRICT])
    yield row(
        s.APPLYING, e.APPLIED, s.IDLE, a.SEND_VMSTATE_LOADED, a.RESUME, a.START_COMPARING, when=[c.HYBRID]
    )
    # Applying goes on beside the next checkpoint, and tells when it is through, whatever the state then is.
    for state in states(SECONDARY):
        if state not in OVER:
            yield row(state, e.APPLIED, state, when=[c.EARLY, c.CHECKPOINT])

    # The end of a connection.
    for state in states(SECONDARY):
        if state in OVER:
            continue
        over = s.FINISHING_COMMIT if state in COMMITS_RUNNING else s.LOST
        drop = () if state in COMMITS_RUNNING else (a.DROP_EPOCH,)
        yield row(state, e.CHANNEL_LOST, over, *drop, a.CLOSE_CHANNEL)
        yield row(state, e.DEADLINE, over, *drop, a.ABORT_CHANNEL)
        # Told while a commit runs, FAILED is about the commit itself: it did not come to be.
        yield row(state, e.FAILED, s.LOST, a.DROP_EPOCH, a.ABORT_CHANNEL)
        yield row(state, e.FAILOVER_REQUESTED, state, a.REFUSE_FAILOVER, when=[c.NO_CHECKPOINT])
        if state in COMMITS_RUNNING:
            # As in QEMU, where a failover waits for a load under way and is then launched again.
            yield row(state, e.FAILOVER_REQUESTED, over, a.ABORT_CHANNEL, when=[c.CHECKPOINT])
        else:
            yield row(
                state,
                e.FAILOVER_REQUESTED,
                s.ARBITRATING,
                a.DROP_EPOCH,
                a.ARBITRATE,
                a.ABORT_CHANNEL,
                when=[c.CHECKPOINT],
            )
        if state in COMMITS_RUNNING:
            yield row(state, e.TAKEOVER_LOST, over, a.ABORT_CHANNEL)
        else:
            yield row(state, e.TAKEOVER_LOST, s.STOPPED, a.DROP_EPOCH, a.STOP_VM, a.ABORT_CHANNEL)
    here = s.FINISHING_COMMIT
    yield row(here, e.COMMITTED, s.LOST, commits=True)
    yield row(here, e.FAILED, s.LOST, a.DROP_EPOCH)
    for event in (e.CHANNEL_LOST, e.DEADLINE, e.FAILOVER_REQUESTED, e.TAKEOVER_LOST):
        yield row(here, event, here)
    yield row(s.LOST, e.FAILOVER_REQUESTED, s.LOST, a.REFUSE_FAILOVER, when=[c.NO_CHECKPOINT])
    yield row(s.LOST, e.FAILOVER_REQUESTED, s.ARBITRATING, a.ARBITRATE, when=[c.CHECKPOINT])
    yield row(s.ARBITRATING, e.TAKEOVER_WON, s.ALONE, a.TAKE_OVER)
    yield row(s.ARBITRATING, e.TAKEOVER_LOST, s.STOPPED, a.STOP_VM)
    yield row(s.ARBITRATING, e.TAKEOVER_UNDECIDED, s.LOST)


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
                yield _row(role, state, event, state)
            if state is State.FINISHING_COMMIT:
                continue
            for event in (Event.CHANNEL_LOST, Event.DEADLINE, Event.FAILED):
                yield _row(role, state, event, state)
            # Fenced after all: whoever finds the generation gone stops, also one that had won an older one.
            if state in {State.LOST, State.ALONE}:
                dropped = (Action.DROP_PACKETS,) if role is PRIMARY else ()
                yield _row(role, state, Event.TAKEOVER_LOST, State.STOPPED, *dropped, Action.STOP_VM)
            elif state is State.STOPPED:
                yield _row(role, state, Event.TAKEOVER_LOST, state)
            # A takeover happens once: asked again, it is already under way or over.
            if state is not State.LOST:
                yield _row(role, state, Event.FAILOVER_REQUESTED, state)


def _ordered(rows: Iterable[Row]) -> tuple[Row, ...]:
    """In the order of the states and events, so that what is printed from the table is stable."""
    place = {key: number for number, key in enumerate(FACTS)}
    event_place = {event: number for number, event in enumerate(Event)}
    return tuple(sorted(rows, key=lambda row: (place[row.role, row.state], event_place[row.event])))


ROWS: tuple[Row, ...] = _ordered([*_primary(), *_secondary(), *_both()])
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
            State.LOST, (Action.GIVE_BACK_DIRTY, Action.ABORT_CHANNEL), commits=False, expected=False
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
