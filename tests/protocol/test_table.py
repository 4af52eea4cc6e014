"""The table is total and says one thing at a time."""

from __future__ import annotations

from itertools import product

import pytest

from colo.protocol.states import COMMITS_RUNNING, FACTS, OVER, facts, states
from colo.protocol.table import ROWS, expected_events, lookup, matching, unexpected
from colo.protocol.words import Action, Condition, Event, Phase, Reads, Role, State
from colo.wire import ColoMessage

C = Condition
SETTINGS = [
    frozenset(each for each in choice if each is not None)
    for choice in product(
        (C.EARLY, C.STRICT, C.HYBRID),
        (C.RETURN_PATH, C.NO_RETURN_PATH),
        (C.CHECKPOINT, C.NO_CHECKPOINT),
        (C.DIRECT, C.COPY),
        (C.COLO_NOT_ENABLED, None),
        (C.NOT_SWITCHED_OVER, None),
        (C.EXTENSIONS_DUE, None),
        (C.DIGEST_DUE, C.NO_DIGEST_DUE),
    )
]


def test_the_settings_cover_every_condition() -> None:
    assert frozenset().union(*SETTINGS) == frozenset(Condition)


@pytest.mark.parametrize("role", Role)
def test_every_event_in_every_state_has_exactly_one_outcome(role: Role) -> None:
    for state, event, holds in product(states(role), Event, SETTINGS):
        assert len(matching(role, state, event, holds)) <= 1, (state, event, holds)
        outcome = lookup(role, state, event, holds)
        assert (role, outcome.next_state) in FACTS
        if not outcome.expected:
            assert outcome == unexpected(role, state)
            assert outcome.next_state in OVER


def test_a_role_has_no_outcome_in_a_state_of_the_other() -> None:
    with pytest.raises(KeyError, match="a primary is never in state idle"):
        lookup(Role.PRIMARY, State.IDLE, Event.CHECKPOINT_DUE, SETTINGS[0])


def test_every_state_event_action_and_condition_is_used() -> None:
    assert {row.state for row in ROWS} == set(State)
    assert {row.event for row in ROWS} == set(Event)
    assert {action for row in ROWS for action in row.actions} == set(Action)
    assert {condition for row in ROWS for condition in row.when} == set(Condition)


@pytest.mark.parametrize("role", Role)
def test_every_state_can_be_reached_and_every_connection_can_end(role: Role) -> None:
    reached = {State.START}
    while more := {row.next_state for row in ROWS if row.role is role and row.state in reached} - reached:
        reached |= more
    assert reached == set(states(role))
    for state, holds in product(states(role), SETTINGS):
        for ending in (Event.CHANNEL_LOST, Event.DEADLINE, Event.FAILED):
            assert lookup(role, state, ending, holds).next_state in OVER
            assert lookup(role, state, ending, holds).expected


def test_every_colo_message_is_an_event_that_one_role_takes() -> None:
    takers = {
        message: {row.role for row in ROWS if row.event.name == message.name} for message in ColoMessage
    }
    assert takers == {
        ColoMessage.CHECKPOINT_READY: {Role.PRIMARY},
        ColoMessage.CHECKPOINT_REQUEST: {Role.SECONDARY},
        ColoMessage.CHECKPOINT_REPLY: {Role.PRIMARY},
        ColoMessage.VMSTATE_SEND: {Role.SECONDARY},
        ColoMessage.VMSTATE_SIZE: {Role.SECONDARY},
        ColoMessage.VMSTATE_RECEIVED: {Role.PRIMARY},
        ColoMessage.VMSTATE_LOADED: {Role.PRIMARY},
        ColoMessage.EXTENSIONS: {Role.PRIMARY},
        ColoMessage.CHECKPOINT_DIGEST: {Role.SECONDARY},
    }


def test_received_is_said_only_by_the_row_that_commits() -> None:
    saying = [row for row in ROWS if Action.SEND_VMSTATE_RECEIVED in row.actions]
    assert len(saying) == 3
    assert all(
        row.commits and row.state is State.COMMITTING and row.event is Event.COMMITTED for row in saying
    )


def test_ready_is_said_only_once_checkpoint_0_is_committed_and_the_return_path_shut() -> None:
    saying = [row for row in ROWS if Action.SEND_CHECKPOINT_READY in row.actions]
    assert {row.state for row in saying} == {State.INITIAL_COMMITTING, State.INITIAL_LOADING}
    for row in saying:
        assert row.commits or row.state is State.INITIAL_LOADING
        assert row.actions.index(Action.SEND_SHUT) < row.actions.index(Action.SEND_CHECKPOINT_READY)


def test_what_waited_leaves_with_the_commit_of_its_checkpoint_and_with_no_other_row() -> None:
    for row in ROWS:
        if row.served and row.role is Role.PRIMARY:
            assert (Action.RELEASE_EPOCH in row.actions) == row.commits, row


def test_all_that_is_held_leaves_behind_the_vm_that_runs_alone_and_is_dropped_before_it_stands_still() -> None:
    for row in ROWS:
        begins = row.role is Role.PRIMARY and row.next_state is not row.state
        assert (row.actions[-2:] == (Action.RUN_ALONE, Action.RELEASE_ALL)) == (begins and row.next_state is State.ALONE), row
        assert (row.actions[-2:] == (Action.DROP_ALL, Action.STOP_VM)) == (begins and row.next_state is State.STOPPED), row
        assert row.actions.count(Action.RELEASE_ALL) == row.actions.count(Action.RUN_ALONE)


def test_a_primary_takes_its_epoch_back_at_the_end_of_every_connection() -> None:
    ends = [row for row in ROWS if row.role is Role.PRIMARY and row.state not in OVER and row.next_state in OVER]
    assert ends and all(row.actions[0] is Action.TAKE_BACK_EPOCH for row in ends)
    assert all(Action.ABORT_CHANNEL in row.actions for row in ends)


def test_nobody_takes_over_without_the_arbiter() -> None:
    for row in ROWS:
        if Action.TAKE_OVER in row.actions:
            assert (row.state, row.event) == (State.ARBITRATING, Event.TAKEOVER_WON)
        if (
            row.next_state is State.ALONE
            and row.state is not State.ALONE
            and row.event is not Event.TAKEOVER_WON
        ):
            # Only a primary whose secondary cannot have anything.
            assert row.role is Role.PRIMARY
            assert Condition.NO_CHECKPOINT in row.when
        if row.next_state is State.ARBITRATING and row.state is not State.ARBITRATING:
            assert Action.ARBITRATE in row.actions


def test_a_running_commit_is_never_dropped_by_a_lost_channel() -> None:
    for state, holds, event in product(COMMITS_RUNNING, SETTINGS, Event):
        outcome = lookup(Role.SECONDARY, state, event, holds)
        if Action.DROP_EPOCH in outcome.actions:
            assert event is Event.FAILED


def test_hybrid_rows_are_there_and_marked_as_not_served() -> None:
    hybrid = [row for row in ROWS if not row.served]
    assert {Action.START_COMPARING, Action.LOAD, Action.SUSPEND, Action.RESUME} <= {
        action for row in hybrid for action in row.actions
    }
    served = {action for row in ROWS if row.served for action in row.actions}
    assert Action.START_COMPARING not in served


def test_deadlines_run_where_the_peer_is_awaited() -> None:
    for (role, state), fact in FACTS.items():
        assert facts(role, state) is fact
        assert (fact.phase is Phase.OVER) == (state in OVER)
        if role is Role.SECONDARY and state not in OVER:
            assert (fact.phase is Phase.LOCAL) == (fact.reads is Reads.NOTHING), state
        if fact.phase in {Phase.RAM, Phase.DEVICE}:
            assert fact.in_epoch


def test_what_is_expected_carries_the_protocol_on() -> None:
    for (role, state), holds in product(FACTS, SETTINGS):
        if state in OVER or (role is Role.PRIMARY and C.HYBRID in holds and C.COPY in holds):
            continue
        if C.HYBRID not in holds and state is State.SUSPENDING:
            continue
        if C.EARLY in holds and state in {State.APPLYING, State.INITIAL_LOADING}:
            continue
        if C.NO_RETURN_PATH in holds and state is State.AWAIT_SHUT:
            continue
        assert expected_events(role, state, holds), (role, state, holds)
