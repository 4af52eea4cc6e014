"""Migration's table is total, says one thing at a time, and loses no step of an ending."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from colo.errors import ProtocolError
from colo.protocol.deadlines import Deadlines
from colo.protocol.migration import (
    FACTS,
    ROWS,
    Action,
    Condition,
    Event,
    MigrationMachine,
    Phase,
    Reads,
    Role,
    State,
    VmPlace,
    facts,
    lookup,
    states,
)
from colo.protocol.migration.pings import PINGS, hello_answer, new_word, ping_event, pong_event, round_ping
from colo.protocol.migration.states import ENDS
from colo.protocol.migration.table import ENDING_EVENTS, matching, unexpected
from colo.wire import DEVICES_PING, HELLO

A, C, E, S = Action, Condition, Event, State
SETTINGS = [
    frozenset(choice) for choice in product(
        (C.RETURN_PATH, C.NO_RETURN_PATH), (C.COLO_PEER, C.QEMU_PEER), (C.ARBITER, C.NO_ARBITER), (C.HELD, C.NOT_HELD))
]
FAILURES = (E.FAILED, E.DEADLINE, E.CHANNEL_LOST)


def test_the_settings_cover_every_condition() -> None:
    assert frozenset().union(*SETTINGS) == frozenset(Condition)


@pytest.mark.parametrize("role", Role)
def test_every_event_in_every_state_has_exactly_one_outcome(role: Role) -> None:
    for state, event, holds in product(states(role), Event, SETTINGS):
        assert len(matching(role, state, event, holds)) <= 1, (state, event, holds)
        outcome = lookup(role, state, event, holds)
        assert (role, outcome.next_state) in FACTS
        if not outcome.expected:
            assert outcome == unexpected(role, state, holds)
            assert not outcome.hands_out


def test_a_role_has_no_outcome_in_a_state_of_the_other() -> None:
    with pytest.raises(KeyError, match="a source is never in state loading"):
        lookup(Role.SOURCE, S.LOADING, E.STATE_LOADED, SETTINGS[0])


def test_every_state_event_action_and_condition_is_used() -> None:
    assert {row.state for row in ROWS} | ENDS == set(State)
    assert {row.event for row in ROWS} == set(Event)
    assert {action for row in ROWS for action in row.actions} == set(Action)
    assert {condition for row in ROWS for condition in row.when} == set(Condition)


@pytest.mark.parametrize("role", Role)
def test_every_state_can_be_reached_and_every_migration_ends(role: Role) -> None:
    reached = {S.NOT_STARTED}
    while more := {row.next_state for row in ROWS if row.role is role and row.state in reached} - reached:
        reached |= more
    assert reached == set(states(role))
    for state, holds, event in product(states(role), SETTINGS, FAILURES):
        if state is S.NOT_STARTED or state in ENDS:
            continue
        outcome = lookup(role, state, event, holds)
        assert outcome.expected
        assert facts(role, outcome.next_state).over or state is S.STARTING


def test_each_action_belongs_to_one_role() -> None:
    mine = {role: {action for row in ROWS if row.role is role for action in row.actions} for role in Role}
    assert not mine[Role.SOURCE] & mine[Role.DESTINATION]


def test_the_vm_runs_on_here_only_while_the_destination_cannot_and_behind_the_channels_end() -> None:
    told = {(S.AWAIT_ANSWER, E.SHUT_FAILED), (S.ARBITRATING, E.CLAIM_WON), (S.UNDECIDED, E.DECIDED_HERE)}
    for row in ROWS:
        if row.role is not Role.SOURCE or A.RUN_ON not in row.actions:
            continue
        before, after = facts(Role.SOURCE, row.state), facts(Role.SOURCE, row.next_state)
        assert after.place is VmPlace.HERE
        assert before.place is VmPlace.HERE or (row.state, row.event) in told
        if not before.over:
            ended = [action in (A.ABORT_CHANNEL, A.CLOSE_CHANNEL) for action in row.actions]
            assert any(ended) and ended.index(True) < row.actions.index(A.RUN_ON)


def test_the_source_gives_the_vm_out_of_its_hands_by_one_step_only_and_gets_it_back_when_told() -> None:
    for row in ROWS:
        if row.role is Role.SOURCE:
            before, after = facts(Role.SOURCE, row.state).place, facts(Role.SOURCE, row.next_state).place
            assert row.hands_out == (before is VmPlace.HERE and after is not VmPlace.HERE)
            if before is VmPlace.THERE:
                assert after is VmPlace.THERE
    for state, event, holds in product(states(Role.SOURCE), Event, SETTINGS):
        outcome = lookup(Role.SOURCE, state, event, holds)
        if facts(Role.SOURCE, state).place is VmPlace.UNDECIDED and not outcome.expected:
            assert facts(Role.SOURCE, outcome.next_state).place is VmPlace.UNDECIDED


def test_what_makes_the_destination_run_is_sent_last_and_only_when_handed_out() -> None:
    for row in ROWS:
        if A.SEND_LAST_WORD in row.actions:
            assert row.hands_out and C.COLO_PEER in row.when
        if A.SEND_END in row.actions:
            assert row.hands_out or C.COLO_PEER in row.when  # nothing for it without the last word
    handing = [row for row in ROWS if row.hands_out]
    assert len(handing) == 3
    for row in handing:
        assert row.actions[0] in (A.SEND_LAST_WORD, A.SEND_END)


def test_until_it_is_handed_out_it_can_be_cancelled() -> None:
    for state, holds in product(states(Role.SOURCE), SETTINGS):
        fact = facts(Role.SOURCE, state)
        outcome = lookup(Role.SOURCE, state, E.CANCELLED, holds)
        if fact.place is VmPlace.HERE and not fact.over and state is not S.NOT_STARTED:
            assert outcome.next_state is S.CANCELLING and A.RUN_ON in outcome.actions
        else:
            assert not outcome.expected


def test_every_end_is_told_and_lets_go() -> None:
    for row in ROWS:
        if row.role is Role.SOURCE and row.next_state in ENDS and row.state not in ENDS:
            if row.state is not S.STUCK:  # told already
                assert row.actions[-1] is A.REPORT
            assert A.LET_GO in row.actions
        if row.role is Role.DESTINATION and row.next_state in ENDS and row.state is not S.WAITING:
            assert row.actions[-1] is A.HANG_UP


def test_a_destination_says_what_is_true_and_nothing_when_it_does_not_know() -> None:
    for row in ROWS:
        if row.role is Role.DESTINATION and row.next_state in ENDS:
            assert (A.SEND_SHUT in row.actions) == (row.next_state is S.COMPLETED)
            assert (A.SEND_SHUT_FAILED in row.actions) == (row.next_state is S.FAILED and row.state is not S.WAITING)
    # It runs only what came whole, and with an arbiter only what it has claimed.
    assert {row.state for row in ROWS if A.START_VM in row.actions} == {S.LOADING, S.CLAIMING}
    for row in ROWS:
        if A.START_VM in row.actions:
            assert row.state is S.CLAIMING or row.when == {C.NO_ARBITER}
        if A.LOAD in row.actions:
            assert row.actions.index(A.CHECK_PAGES) < row.actions.index(A.LOAD)
            assert (row.state, row.event) in {(S.RECEIVING, E.STREAM_WHOLE), (S.AWAIT_LAST_WORD, E.LAST_WORD)}


def test_a_hung_vm_is_run_on_from_beside_only_where_it_is_here() -> None:
    for state, holds in product(states(Role.SOURCE), SETTINGS):
        assert lookup(Role.SOURCE, state, E.VM_HUNG, holds).expected
    for row in ROWS:
        if row.event is E.VM_HUNG:
            assert (A.RUN_ON in row.actions) == (row.actions != () and facts(row.role, row.next_state).place is VmPlace.HERE)
            assert facts(row.role, row.next_state).place is facts(row.role, row.state).place


def test_deadlines_run_where_the_peer_is_awaited() -> None:
    for (role, state), fact in FACTS.items():
        assert facts(role, state) is fact
        seconds = fact.seconds(Deadlines())
        assert (seconds is None) == (fact.phase in {Phase.LOCAL, Phase.OVER, Phase.CONNECT}), state
        if fact.over:
            assert fact.reads is Reads.NOTHING
        if fact.reads is Reads.NOTHING:
            assert seconds is None


def test_what_is_expected_carries_it_on() -> None:
    for (role, state), holds in product(FACTS, SETTINGS):
        machine = MigrationMachine(role)
        machine.state = state
        machine.return_path, machine.colo_peer = C.RETURN_PATH in holds, C.COLO_PEER in holds
        machine.arbiter, machine.held = C.ARBITER in holds, C.HELD in holds
        assert machine.conditions == holds
        assert not set(machine.expected) & ENDING_EVENTS
        wanted = {Reads.RETURN_PATH: True, Reads.END: False}.get(machine.facts.reads, machine.return_path)
        no_way = role is Role.SOURCE and machine.return_path != wanted
        both = machine.colo_peer and not machine.return_path  # what it is, is asked for on the return path
        held = state is S.PRE_SWITCHOVER and not machine.held
        if state not in {*ENDS, S.STUCK} and not no_way and not both and not held:
            assert machine.expected, (role, state, holds)


def test_an_error_names_state_got_and_expected() -> None:
    machine = MigrationMachine(Role.SOURCE, return_path=True)
    machine.feed(E.STARTED)
    machine.feed(E.CONNECTED)
    with pytest.raises(ProtocolError) as caught:
        machine.feed(E.SHUT)
    assert str(caught.value) == (
        "source in state await-hello: the peer sent shut, expected "
        "qemu-answered or colo-answered or colo-with-arbiter-answered")
    assert (caught.value.state, caught.value.got) == ("await-hello", "shut")
    assert machine.state is S.FAILED and A.RUN_ON in machine.actions
    with pytest.raises(ProtocolError, match="expected nothing more"):
        machine.feed(E.SHUT)
    assert machine.actions == ()


def test_without_a_return_path_a_source_hears_only_of_the_connections_end() -> None:
    machine = MigrationMachine(Role.SOURCE)
    machine.feed(E.STARTED)
    machine.feed(E.CONNECTED)
    assert machine.state is S.SENDING_ROUND and machine.reads is Reads.END


def test_pings_are_told_apart_by_their_numbers() -> None:
    spans = sorted((each.first, each.last) for each in PINGS)
    assert all(first <= last for first, last in spans)
    assert all(last < first for (_, last), (first, _) in pairwise(spans))
    assert ping_event(HELLO) is E.PING_HELLO
    assert ping_event(new_word()) is E.PING_WORD
    assert {ping_event(number) for number in (0, 1, round_ping(1), round_ping(1 << 40), DEVICES_PING)} == {E.PING}
    for number in (1, 2, 1000, 1 << 31, 1 << 40):
        assert pong_event(round_ping(number), round_ping(number)) is E.ROUND_ANSWERED


def test_pongs_answer_what_was_asked_and_nothing_else() -> None:
    assert pong_event(HELLO, HELLO) is E.QEMU_ANSWERED
    assert pong_event(hello_answer(arbiter=False), HELLO) is E.COLO_ANSWERED
    assert pong_event(hello_answer(arbiter=True), HELLO) is E.COLO_WITH_ARBITER_ANSWERED
    assert pong_event(DEVICES_PING, DEVICES_PING) is E.DEVICES_ANSWERED
    word = new_word()
    assert pong_event(word, word) is E.WORD_ANSWERED
    for number, asked in ((1, None), (1, 2), (HELLO, 1), (HELLO + 256, HELLO), (word, word ^ 1), (0, None)):
        with pytest.raises(ProtocolError, match="answers no PING"):
            pong_event(number, asked)
