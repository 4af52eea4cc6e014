"""What the table asks of a secondary has code that carries it out, and that code does nothing that no row asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.link.endings import carry_out, end_by
from colo.link.follower import HANDLERS, READERS
from colo.protocol import Action, Event, Machine, Reads, Role, State
from colo.protocol.states import OVER, SECONDARY, facts, states
from colo.protocol.table import ROWS, unexpected
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from tests.session.scripted_primary import Peer

ASKED = {
    *(action for row in ROWS if row.role is SECONDARY and row.served for action in row.actions),
    *(action for state in states(SECONDARY) for action in unexpected(SECONDARY, state).actions)}


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path) as each:
        yield each


def test_every_action_has_one_handler_and_every_handler_an_action(peer: Peer, tmp_path: Path) -> None:
    with QemuSecondary(QemuSecondaryConfig(f"unix:{tmp_path}/listen", tmp_path / "other", lease_ms=0.0)) as session:
        handlers = [*HANDLERS, *peer.follower.endings, *session.endings]
    assert sorted(action.name for action in handlers) == sorted(action.name for action in ASKED)


def test_every_state_in_which_something_is_read_has_a_reader() -> None:
    assert set(READERS) == {state for state in states(SECONDARY) if facts(SECONDARY, state).reads is not Reads.NOTHING}


def secondary(state: State) -> Machine:
    machine = Machine(Role.SECONDARY)
    machine.state, machine.committed = state, 7
    return machine


@pytest.mark.parametrize("broken", [None, "first", "all"])
@pytest.mark.parametrize(
    "event", [Event.CHANNEL_LOST, Event.DEADLINE, Event.FAILED, Event.FAILOVER_REQUESTED, Event.TAKEOVER_LOST])
def test_every_step_of_an_ending_is_taken_in_order_whatever_becomes_of_the_others(event: Event, broken: str | None) -> None:
    for state in states(SECONDARY):
        if state in OVER:
            continue
        taken: list[Action] = []

        def take(action: Action, taken: list[Action] = taken) -> None:
            taken.append(action)
            if broken == "all" or (broken == "first" and len(taken) == 1):
                raise OSError(action.name)

        machine = secondary(state)
        wanted = list(secondary(state).feed(event))
        handlers = {action: lambda action=action: take(action) for action in Action}  # type: ignore[misc]
        if broken is not None and wanted:
            with pytest.raises(OSError, match=wanted[0].name):
                end_by(machine, event, handlers)
        else:
            end_by(machine, event, handlers)
        assert taken == wanted


def test_what_comes_of_a_step_is_fed_after_all_of_them() -> None:
    taken: list[str] = []

    def take(name: str, event: Event | None = None) -> Event | None:
        taken.append(name)
        return event

    machine = secondary(State.IDLE)
    end_by(machine, Event.FAILOVER_REQUESTED, {
        Action.DROP_EPOCH: lambda: take("drop"), Action.ARBITRATE: lambda: take("arbitrate", Event.TAKEOVER_WON),
        Action.ABORT_CHANNEL: lambda: take("abort"), Action.TAKE_OVER: lambda: take("take over")})
    assert taken == ["drop", "arbitrate", "abort", "take over"]
    assert machine.state is State.ALONE


def test_an_event_that_fits_no_row_ends_the_connection_by_the_table_too() -> None:
    taken: list[Action] = []
    end_by(secondary(State.IDLE), Event.VMSTATE_SEND, {
        action: lambda action=action: taken.append(action) for action in Action})  # type: ignore[misc]
    assert taken == [Action.DROP_EPOCH, Action.ABORT_CHANNEL]


def test_the_first_failure_is_the_one_that_is_raised() -> None:
    def fails(text: str) -> None:
        raise OSError(text)

    with pytest.raises(OSError, match="one"):
        carry_out([Action.DROP_EPOCH, Action.ABORT_CHANNEL], {
            Action.DROP_EPOCH: lambda: fails("one"), Action.ABORT_CHANNEL: lambda: fails("two")})
