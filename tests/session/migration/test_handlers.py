"""What migration's table asks for is what somebody does, and whatever is raised, an ending's other steps are done."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from colo.errors import ChannelLost, DeadlineExceeded, Interrupted, ProtocolError
from colo.link.migration_in import MigrationIn
from colo.link.migration_out import MigrationOut
from colo.link.migration_rounds import MigrationRounds
from colo.protocol.migration import (
    ROWS,
    Action,
    Condition,
    Event,
    Exchange,
    Heard,
    MigrationMachine,
    Role,
    Row,
    State,
    event_of,
    facts,
)
from colo.session.migration.destination import MigrationDestination
from colo.session.migration.running import SourceRun

HANDLERS = {
    Role.SOURCE: [SourceRun.HANDLERS, MigrationOut.HANDLERS, MigrationRounds.HANDLERS],
    Role.DESTINATION: [MigrationDestination.HANDLERS, MigrationIn.HANDLERS],
}


@pytest.mark.parametrize("role", Role)
def test_every_action_has_one_handler_and_every_handler_an_action(role: Role) -> None:
    asked_for = {action for row in ROWS if row.role is role for action in row.actions}
    handled = [action for handlers in HANDLERS[role] for action in handlers]
    assert sorted(handled, key=str) == sorted(asked_for, key=str)


def test_what_a_hung_vm_asks_for_is_done_from_beside() -> None:
    asked_for = {action for row in ROWS if row.event is Event.VM_HUNG for action in row.actions}
    assert asked_for == set(SourceRun.HUNG_HANDLERS)


def exchange(
    machine: MigrationMachine, done: list[Action], failing: dict[Action, BaseException], errors: list[BaseException],
    reports: dict[Action, Event] | None = None, on_state: Callable[[], None] = lambda: None,
) -> Exchange:
    def handler(action: Action) -> Callable[[], Event | None]:
        def act() -> Event | None:
            done.append(action)
            if action in failing:
                raise failing[action]
            return (reports or {}).get(action)

        return act

    def silence() -> Event:
        raise ChannelLost("nobody there")

    return Exchange(machine, {action: handler(action) for action in Action}, silence, on_error=errors.append, on_state=on_state)


ENDINGS = [
    row for row in ROWS
    if row.actions and facts(row.role, row.next_state).over and row.event is not Event.VM_HUNG and row.state is not State.UNDECIDED
    and not (row.role is Role.SOURCE and row.next_state is State.ARBITRATING)]


@pytest.mark.parametrize("row", ENDINGS, ids=lambda row: f"{row.role.value}-{row.state.value}-{row.event.value}")
def test_no_step_of_an_ending_is_lost_whatever_another_raises(row: Row) -> None:
    for failing in row.actions:
        machine = MigrationMachine(
            row.role, return_path=Condition.RETURN_PATH in row.when, arbiter=Condition.ARBITER in row.when)
        machine.state = row.state
        done: list[Action] = []
        errors: list[BaseException] = []
        it = exchange(machine, done, {failing: RuntimeError("broken")}, errors, {Action.RUN_ON: Event.VM_RUNS})
        it.run(row.event)
        assert done[: len(row.actions)] == list(row.actions)
        assert [str(error) for error in errors] == ["broken"] * done.count(failing)
        assert machine.ended
        if row.next_state is State.CANCELLING:  # what went wrong is told as such
            assert machine.state is State.FAILED


@pytest.mark.parametrize(("error", "event"), [
    (Interrupted("x"), Event.CANCELLED), (DeadlineExceeded("x", phase="y"), Event.DEADLINE),
    (ChannelLost("x"), Event.CHANNEL_LOST), (OSError(), Event.CHANNEL_LOST), (KeyboardInterrupt(), Event.FAILED),
    (ProtocolError("x", got="y"), Event.FAILED), (Heard(Event.SHUT), Event.SHUT),
])
def test_what_is_raised_is_an_event(error: BaseException, event: Event) -> None:
    assert event_of(error) is event


def test_work_that_fails_ends_before_the_next_of_it() -> None:
    done: list[Action] = []
    errors: list[BaseException] = []
    machine = MigrationMachine(Role.SOURCE)
    it = exchange(machine, done, {Action.SEND_HEADER: ChannelLost("gone")}, errors, {Action.CONNECT: Event.CONNECTED})
    it.run(Event.STARTED)
    assert done[:4] == [Action.CONNECT, Action.START_TRACKING, Action.SEND_HEADER, Action.ABORT_CHANNEL]
    assert Action.SEND_BLOCKS not in done and done[-1] is Action.REPORT
    assert machine.state is State.FAILED and len(errors) == 1


@pytest.mark.parametrize(("said", "state"), [(Event.SHUT_FAILED, State.FAILED), (Event.ROUND_ANSWERED, State.FAILED)])
def test_what_the_peer_says_amid_work_is_the_tables_to_answer(said: Event, state: State) -> None:
    done: list[Action] = []
    errors: list[BaseException] = []
    machine = MigrationMachine(Role.SOURCE, return_path=True)
    machine.state = State.AWAIT_WORD
    it = exchange(machine, done, {Action.SEND_ROUND: Heard(said)}, errors)
    it.run(Event.WORD_ANSWERED)
    assert machine.state is state and Action.RUN_ON in done
    assert [type(error) for error in errors] == ([] if said is Event.SHUT_FAILED else [ProtocolError])


def test_a_stream_carries_on_as_it_is_read_and_ends_where_it_may_not() -> None:
    machine = MigrationMachine(Role.DESTINATION)
    done: list[Action] = []
    errors: list[BaseException] = []
    it = exchange(machine, done, {}, errors)
    machine.state = State.AWAIT_STREAM
    for event in (Event.STREAM_OPENED, Event.OPEN_RETURN_PATH, Event.PING_HELLO, Event.PING_WORD, Event.PING):
        it.hear(event)
    assert machine.state is State.RECEIVING_COLO
    assert done == [
        Action.SEND_HELLO_PONG, Action.NOTE_WORD, Action.SEND_PONG, Action.BEGIN_DIGEST, Action.SEND_PONG]
    with pytest.raises(Heard):
        it.hear(Event.PING_HELLO)
    assert machine.state is State.RECEIVING_COLO


def test_an_event_in_the_place_of_another_is_fed_in_the_same_moment() -> None:
    machine = MigrationMachine(Role.SOURCE)
    machine.state = State.SENDING_REST
    it = Exchange(
        machine, {}, lambda: Event.FAILED, on_error=lambda error: None,
        instead=lambda event: Event.CANCELLED if machine.outcome(event).hands_out else event)
    assert Action.RUN_ON in it.feed(Event.REST_SENT)
    assert machine.state is State.CANCELLING and not machine.handed_out


def test_an_interruption_once_all_is_handed_out_is_no_way_back() -> None:
    for return_path, arbiter in itertools.product((True, False), repeat=2):
        machine = MigrationMachine(Role.SOURCE, return_path=return_path, arbiter=arbiter)
        machine.state = State.AWAIT_ANSWER
        done: list[Action] = []
        it = exchange(machine, done, {}, [], {Action.ARBITRATE: Event.CLAIM_UNDECIDED})
        it.run(Event.CANCELLED)
        assert machine.state is State.UNDECIDED and Action.RUN_ON not in done


@pytest.mark.parametrize(("state", "event", "then"), [
    (State.AWAIT_LAST_WORD, Event.LAST_WORD, State.FAILED), (State.STARTING, Event.FAILED, State.MAY_RUN)])
def test_a_step_that_cannot_be_told_is_a_failure_and_its_ending_is_whole(state: State, event: Event, then: State) -> None:
    machine = MigrationMachine(Role.DESTINATION)
    machine.state = state
    done: list[Action] = []
    errors: list[BaseException] = []

    def interrupt() -> None:
        if len(errors) < 2:
            raise KeyboardInterrupt

    it = exchange(machine, done, {}, errors, on_state=interrupt)
    it.run(event)
    assert machine.state is then and done[-1] is Action.HANG_UP
    assert Action.LOAD not in done and Action.START_VM not in done
    assert {type(error) for error in errors} == {KeyboardInterrupt}
