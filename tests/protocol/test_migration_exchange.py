"""Both roles of a migration wired back to back, through every interleaving and every loss.

The model has two machines, a pipe each way, and an arbiter that one side can win. Its moves: carry out the next action, report a
piece of finished work (or that it failed), read what the peer sent, notice that the channel is gone, be cancelled, lose patience,
cut the channel. All orders of all moves are tried; in no state reached do both VMs run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from colo.errors import ProtocolError
from colo.protocol.migration import Action, Event, MigrationMachine, Reads, Role, State, VmPlace

A, E, S = Action, Event, State

SENT: dict[Action, Event] = {
    A.SEND_HEADER: E.STREAM_OPENED,
    A.SEND_OPEN_RETURN_PATH: E.OPEN_RETURN_PATH,
    A.SEND_HELLO: E.PING_HELLO,
    A.ANNOUNCE_LAST_WORD: E.PING_WORD,
    A.SEND_ROUND_PING: E.PING,
    A.SEND_DEVICES_PING: E.PING,
    A.SEND_END: E.STREAM_WHOLE,
    A.SEND_LAST_WORD: E.LAST_WORD,
    A.SEND_SHUT: E.SHUT,
    A.SEND_SHUT_FAILED: E.SHUT_FAILED,
}
ANSWERED = {
    A.ANNOUNCE_LAST_WORD: E.WORD_ANSWERED, A.SEND_ROUND_PING: E.ROUND_ANSWERED, A.SEND_DEVICES_PING: E.DEVICES_ANSWERED}
REPORTS: dict[Action, tuple[Event, ...]] = {
    A.CONNECT: (E.CONNECTED, E.FAILED),
    A.SEND_ROUND: (E.ROUND_SENT,),
    A.DRAIN: (E.DRAINED,),
    A.HARVEST: (E.LITTLE_LEFT, E.MUCH_LEFT, E.FAILED),
    A.PAUSE: (E.VM_STOPPED, E.FAILED),
    A.AWAIT_LEAVE: (E.TOLD_TO_GO_ON, E.KEEP_ALIVE_DUE),
    A.SAVE: (E.STATE_SAVED, E.FAILED),
    A.SEND_REST: (E.REST_SENT,),
    A.AWAIT_TAKEN: (E.ALL_TAKEN,),
    A.RUN_ON: (E.VM_RUNS,),
    A.ACCEPT: (E.CONNECTED,),
    A.STOP_VM: (E.VM_STOPPED, E.FAILED),
    A.LOAD: (E.STATE_LOADED, E.FAILED),
    A.START_VM: (E.VM_RUNS, E.FAILED),
}


@dataclass
class Side:
    machine: MigrationMachine
    todo: tuple[Action, ...] = (A.CONNECT,)
    reports: tuple[Event, ...] = ()
    inbox: tuple[Event, ...] = ()
    open: bool = True
    """This side has not ended its channel."""
    vm_runs: bool = False

    def key(self) -> tuple[object, ...]:
        machine = self.machine
        slots = tuple(getattr(machine, slot) for slot in MigrationMachine.__slots__)
        return (*slots, self.todo, self.reports, self.inbox, self.open, self.vm_runs)

    def clone(self) -> Side:
        return Side(copy.copy(self.machine), self.todo, self.reports, self.inbox, self.open, self.vm_runs)

    @property
    def settled(self) -> bool:
        return not self.todo and (self.machine.ended or not self.reports)


@dataclass
class World:
    sides: dict[Role, Side]
    arbiter: bool
    asked: Event | None = None
    holder: Role | None = None
    cut: bool = False
    disturbances: int = 1
    rounds: int = 1
    history: tuple[str, ...] = field(default=(), compare=False)

    def key(self) -> tuple[object, ...]:
        sides = tuple(side.key() for side in self.sides.values())
        return (*sides, self.asked, self.holder, self.cut, self.disturbances, self.rounds)

    def clone(self, move: str) -> World:
        other = copy.copy(self)
        other.sides = {role: side.clone() for role, side in self.sides.items()}
        other.history = (*self.history, move)
        return other

    def peer(self, role: Role) -> Side:
        return self.sides[Role.DESTINATION if role is Role.SOURCE else Role.SOURCE]

    def connected(self) -> bool:
        return not self.cut and all(side.open for side in self.sides.values())

    def feed(self, role: Role, event: Event) -> None:
        side = self.sides[role]
        try:
            side.todo = side.machine.feed(event)
        except ProtocolError:
            side.todo = side.machine.actions
        side.reports = ()

    def carry_out(self, role: Role) -> None:
        side = self.sides[role]
        action, side.todo = side.todo[0], side.todo[1:]
        if action is A.SEND_HELLO_PONG:
            self._send(role, E.COLO_WITH_ARBITER_ANSWERED if side.machine.arbiter else E.COLO_ANSWERED)
        elif action is A.SEND_PONG:
            assert self.asked is not None
            self._send(role, self.asked)
        elif action in (A.SEND_SHUT, A.SEND_SHUT_FAILED):
            if side.machine.return_path:
                self._send(role, SENT[action])
        elif action in SENT:
            self.asked = ANSWERED.get(action, self.asked)
            self._send(role, SENT[action])
        elif action in (A.ABORT_CHANNEL, A.CLOSE_CHANNEL, A.HANG_UP):
            side.open = False
        elif action in (A.ARBITRATE, A.CLAIM):
            if self.holder is None:
                self.holder = role
            side.reports = (E.CLAIM_WON,) if self.holder is role else (E.CLAIM_LOST,)
        elif action in (A.PAUSE, A.STOP_VM):
            side.vm_runs = False
        elif action in (A.RUN_ON, A.START_VM):
            side.vm_runs = True
        if action in REPORTS and not side.machine.ended:
            side.reports = REPORTS[action]

    def _send(self, role: Role, event: Event) -> None:
        if self.connected():
            self.peer(role).inbox += (event,)


def moves(world: World) -> Iterator[World]:
    for role, side in world.sides.items():
        machine = side.machine
        if side.todo:
            after = world.clone(f"{role.value}: {side.todo[0].value}")
            after.carry_out(role)
            yield after
        elif not machine.ended:
            for event in side.reports:
                if event is E.FAILED and not world.disturbances:
                    continue
                if event in (E.MUCH_LEFT, E.KEEP_ALIVE_DUE) and not world.rounds:
                    continue
                after = world.clone(f"{role.value} reports {event.value}")
                after.disturbances -= event is E.FAILED
                after.rounds -= event in (E.MUCH_LEFT, E.KEEP_ALIVE_DUE)
                after.feed(role, event)
                yield after
            reads = machine.reads in (Reads.RETURN_PATH, Reads.STREAM, Reads.LAST_WORD)
            if reads and side.inbox and side.open:
                after = world.clone(f"{role.value} reads {side.inbox[0].value}")
                event, after.sides[role].inbox = side.inbox[0], side.inbox[1:]
                after.feed(role, event)
                yield after
            busy = machine.facts.over or machine.state in (S.NOT_STARTED, S.WAITING, S.CONNECTING)
            # An end in order is what a destination without a return path says at last.
            gone = world.cut or (not world.peer(role).open and machine.state is not S.AWAIT_TAKEN)
            if gone and side.open and not busy and machine.reads is not Reads.NOTHING and not side.inbox:
                after = world.clone(f"{role.value} notices that the channel is gone")
                after.feed(role, E.CHANNEL_LOST)
                yield after
            if world.disturbances and not machine.facts.over and side.open:
                impatient = (E.CANCELLED,) if not machine.handed_out else (E.DEADLINE,)
                for event in impatient if machine.state not in (S.NOT_STARTED, S.WAITING) else ():
                    after = world.clone(f"{role.value}: {event.value}")
                    after.disturbances -= 1
                    after.feed(role, event)
                    yield after
    if world.disturbances and world.connected():
        for lost in (False, True):
            after = world.clone("the channel is cut" + (", what was under way is lost" if lost else ""))
            after.cut = True
            after.disturbances -= 1
            for side in after.sides.values():
                side.inbox = () if lost else side.inbox
            yield after


def check(world: World) -> None:
    source, destination = world.sides[Role.SOURCE], world.sides[Role.DESTINATION]
    story = "\n".join(world.history)
    assert not (source.vm_runs and destination.vm_runs), f"both run\n{story}"
    if not (source.settled and destination.settled and source.machine.ended):
        return
    place = source.machine.facts.place
    if place is VmPlace.HERE:
        assert source.vm_runs, f"it runs nowhere\n{story}"
    if place is VmPlace.UNDECIDED:
        assert not world.arbiter, f"undecided with an arbiter\n{story}"
    if place is VmPlace.THERE and destination.machine.ended and source.machine.return_path:
        assert destination.vm_runs or world.holder is Role.DESTINATION, f"it runs nowhere\n{story}"


def explore(world: World) -> set[tuple[VmPlace, bool]]:
    """All that can be reached; returns the ends: who has the VM by the source, and whether it runs at the destination."""
    seen = {world.key()}
    waiting = [world]
    ends = set()
    while waiting:
        now = waiting.pop()
        check(now)
        following = list(moves(now))
        source, destination = now.sides[Role.SOURCE], now.sides[Role.DESTINATION]
        if not following:
            assert source.machine.ended, "stuck\n" + "\n".join(now.history)
            ends.add((source.machine.facts.place, destination.vm_runs))
        for after in following:
            key = after.key()
            if key not in seen:
                seen.add(key)
                waiting.append(after)
    return ends


def start(*, return_path: bool, arbiter: bool = False, held: bool = False, disturbances: int = 1) -> World:
    source = Side(MigrationMachine(Role.SOURCE, return_path=return_path, arbiter=arbiter, held=held), vm_runs=True)
    destination = Side(MigrationMachine(Role.DESTINATION, arbiter=arbiter))
    world = World({Role.SOURCE: source, Role.DESTINATION: destination}, arbiter, disturbances=disturbances)
    for role in Role:
        world.feed(role, E.STARTED)
    return world


CASES = [
    (return_path, arbiter, held)
    for return_path in (True, False) for arbiter in (False, True) for held in (False, True) if return_path or not arbiter]


@pytest.mark.parametrize(("return_path", "arbiter", "held"), CASES)
def test_undisturbed_it_arrives(return_path: bool, arbiter: bool, held: bool) -> None:
    ends = explore(start(return_path=return_path, arbiter=arbiter, held=held, disturbances=0))
    assert ends == {(VmPlace.THERE, True)}


@pytest.mark.parametrize("disturbances", [1, 2])
@pytest.mark.parametrize(("return_path", "arbiter", "held"), CASES)
def test_whatever_happens_it_runs_on_one_side_at_most(
    return_path: bool, arbiter: bool, held: bool, disturbances: int
) -> None:
    ends = explore(start(return_path=return_path, arbiter=arbiter, held=held, disturbances=disturbances))
    assert {(VmPlace.HERE, False), (VmPlace.THERE, True)} <= ends
    assert (VmPlace.HERE, True) not in ends
    if arbiter:
        assert VmPlace.UNDECIDED not in {place for place, _ in ends}
    elif return_path:
        # The answer was lost: it may run there, or not.
        assert {(VmPlace.UNDECIDED, True), (VmPlace.UNDECIDED, False)} <= ends
    if return_path and not arbiter:
        assert (VmPlace.THERE, False) not in ends


@pytest.mark.parametrize("disturbances", [0, 1])
def test_a_destination_that_does_not_say_what_it_is_gets_a_qemus_end(
    disturbances: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table is that of a destination which takes the source for a QEMU: it heard another PING than HELLO."""
    world = start(return_path=True, disturbances=disturbances)
    monkeypatch.setitem(SENT, A.SEND_HELLO, E.PING)
    monkeypatch.setitem(ANSWERED, A.SEND_HELLO, E.QEMU_ANSWERED)
    ends = explore(world)
    assert (VmPlace.THERE, True) in ends and (VmPlace.HERE, True) not in ends
    assert disturbances or ends == {(VmPlace.THERE, True)}


def test_a_destination_without_an_arbiter_is_refused_by_a_source_with_one() -> None:
    world = start(return_path=True, arbiter=True, disturbances=0)
    world.sides[Role.DESTINATION].machine.arbiter = False
    assert explore(world) == {(VmPlace.HERE, False)}
