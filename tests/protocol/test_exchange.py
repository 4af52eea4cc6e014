"""Both roles wired back to back, through every interleaving and every loss.

The model has two machines, a pipe each way, and an arbiter that one side can win. Its moves: carry out the
next action, report a piece of finished work, read what the peer sent, notice that the channel is gone, be
asked to fail over, have a validation or a commit fail, cut the channel. All orders of all moves are tried; in
every state reached the commit rule must hold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from colo.protocol import Action, Dialect, Event, Machine, Mode, Reads, Role, State

A, E = Action, Event

SENT: dict[Action, tuple[str, ...]] = {
    A.SEND_HEADER: ("stream-opened",),
    A.SEND_OPEN_RETURN_PATH: ("open-return-path",),
    A.SEND_PING: ("ping",),
    A.SEND_ENABLE_COLO: ("enable-colo",),
    A.SEND_INITIAL_RAM: ("part of stream",),
    A.SEND_SWITCHOVER_START: ("switchover-start",),
    A.SEND_INITIAL_END: ("initial-staged",),
    A.SEND_CHECKPOINT_REQUEST: ("checkpoint-request",),
    A.SEND_VMSTATE_SEND: ("vmstate-send",),
    A.SEND_RAM: ("part of stream", "ram-staged"),
    A.SEND_DIGEST: ("checkpoint-digest",),
    A.SEND_VMSTATE_SIZE: ("vmstate-size",),
    A.SEND_DEVICE: ("part of device", "device-received"),
    A.SEND_PONG: ("pong",),
    A.SEND_SHUT: ("shut",),
    A.SEND_EXTENSIONS: ("extensions",),
    A.SEND_CHECKPOINT_READY: ("checkpoint-ready",),
    A.SEND_CHECKPOINT_REPLY: ("checkpoint-reply",),
    A.SEND_VMSTATE_RECEIVED: ("vmstate-received",),
    A.SEND_VMSTATE_LOADED: ("vmstate-loaded",),
}
REPORTS: dict[Action, tuple[Event, ...]] = {
    A.SEND_INITIAL_RAM: (E.RAM_CONVERGED,),
    A.SEND_INITIAL_END: (E.INITIAL_SENT,),
    A.SUSPEND: (E.VM_STOPPED,),
    A.SAVE: (E.STATE_SAVED,),
    A.SEND_RAM: (E.RAM_SENT,),
    A.SEND_DEVICE: (E.DEVICE_SENT,),
    A.VALIDATE: (E.VALIDATED, E.FAILED),
    A.COMMIT: (E.COMMITTED, E.FAILED),
    A.LOAD: (E.APPLIED,),
}
READ_AS = {
    "pong": Reads.RETURN_PATH,
    "shut": Reads.RETURN_PATH,
    "part of device": Reads.DEVICE,
    "device-received": Reads.DEVICE,
    **dict.fromkeys(
        (
            "stream-opened",
            "open-return-path",
            "ping",
            "enable-colo",
            "part of stream",
            "switchover-start",
            "initial-staged",
            "ram-staged",
        ),
        Reads.STREAM,
    ),
}


@dataclass
class Side:
    machine: Machine
    todo: tuple[Action, ...] = ()
    reports: tuple[tuple[Event, ...], ...] = ()
    inbox: tuple[str, ...] = ()
    channel_open: bool = True
    vm_runs: bool = False
    staged: bool = False
    stored: int = -1
    """The highest checkpoint that really is in the store, whatever the machine believes."""

    def key(self) -> tuple[object, ...]:
        machine = self.machine
        return (
            machine.state,
            machine.committed,
            machine.epoch,
            machine.dialect.return_path,
            machine.dialect.enable_colo,
            machine._switched_over,
            machine._extensions_due,
            machine._digest_due,
            machine.dialect.digest,
            self.todo,
            self.reports,
            self.inbox,
            self.channel_open,
            self.vm_runs,
            self.staged,
            self.stored,
        )

    def clone(self) -> Side:
        other = object.__new__(Side)
        other.__dict__.update(self.__dict__)
        other.machine = object.__new__(Machine)
        for slot in Machine.__slots__:
            setattr(other.machine, slot, getattr(self.machine, slot))
        other.machine.dialect = copy.copy(self.machine.dialect)
        return other


@dataclass
class World:
    sides: dict[Role, Side]
    checkpoints: int
    holder: Role | None = None
    cut: bool = False
    disturbances: int = 1
    resumed_from: int | None = None
    released: int | None = None
    """The highest checkpoint whose packets have left on the secondary's word."""
    history: tuple[str, ...] = field(default=(), compare=False)

    def key(self) -> tuple[object, ...]:
        return (
            *(side.key() for side in self.sides.values()),
            self.holder,
            self.cut,
            self.disturbances,
            self.resumed_from,
            self.released,
        )

    def clone(self, move: str) -> World:
        other = object.__new__(World)
        other.__dict__.update(self.__dict__)
        other.sides = {role: side.clone() for role, side in self.sides.items()}
        other.history = (*self.history, move)
        return other

    def peer(self, role: Role) -> Side:
        return self.sides[Role.SECONDARY if role is Role.PRIMARY else Role.PRIMARY]

    def agree(self, role: Role, token: str) -> None:
        """What the sessions do when they read what is offered, and what is taken."""
        offered = self.sides[Role.PRIMARY].machine.dialect.extended
        if offered and token in ("stream-opened", "extensions"):
            dialect = self.sides[role].machine.dialect
            dialect.extended = dialect.digest = True

    # Moves.

    def feed(self, role: Role, event: Event) -> None:
        side = self.sides[role]
        side.todo += side.machine.feed(event)

    def carry_out(self, role: Role) -> None:
        side = self.sides[role]
        action, side.todo = side.todo[0], side.todo[1:]
        if action in SENT and not self.cut and self.peer(role).channel_open:
            self.peer(role).inbox += SENT[action]
        if action in REPORTS:
            side.reports += (REPORTS[action],)
        if action is A.ABORT_CHANNEL:
            side.channel_open = False
            side.inbox = ()
            self.cut = True
        elif action is A.SUSPEND:
            side.vm_runs = False
        elif action in {A.RESUME, A.RUN_ALONE}:
            side.vm_runs = True
        elif action in {A.RECEIVE_INITIAL, A.RECEIVE_RAM}:
            side.staged = True
        elif action is A.DROP_EPOCH:
            side.staged = False
        elif action is A.COMMIT:
            assert side.staged, "a commit of what was dropped"
        elif action is A.STOP_VM:
            side.vm_runs = False
        elif action is A.ARBITRATE:
            if self.holder is None:
                self.holder = role
            side.reports += ((E.TAKEOVER_WON if self.holder is role else E.TAKEOVER_LOST,),)
        elif action is A.RELEASE_EPOCH:
            self.released = side.machine.committed
        elif action is A.RELEASE_ALL:
            assert side.vm_runs and side.machine.state is State.ALONE
        elif action is A.TAKE_OVER:
            assert self.holder is role
            side.vm_runs = True
            self.resumed_from = side.machine.committed

    def moves(self) -> Iterator[World]:
        for role, side in self.sides.items():
            name = role.value[0]
            if side.todo:
                # Actions are carried out in order, and before anything else is looked at.
                after = self.clone(f"{name} does {side.todo[0].name}")
                after.carry_out(role)
                yield after
                continue
            for number, results in enumerate(side.reports):
                for event in results:
                    if event is E.FAILED and not self.disturbances:
                        continue
                    after = self.clone(f"{name} reports {event.name}")
                    here = after.sides[role]
                    here.reports = here.reports[:number] + here.reports[number + 1 :]
                    after.disturbances -= event is E.FAILED
                    if event is E.COMMITTED:
                        here.stored += 1
                    if event is not E.FAILED or here.machine.state not in {State.LOST, State.ARBITRATING}:
                        after.feed(role, event)
                    yield after
            if side.inbox and side.machine.reads is not Reads.NOTHING:
                token = side.inbox[0]
                assert side.machine.reads is READ_AS.get(token, Reads.MESSAGE), (token, self.history)
                after = self.clone(f"{name} reads {token}")
                after.sides[role].inbox = side.inbox[1:]
                after.agree(role, token)
                if not token.startswith("part"):
                    after.feed(role, Event(token))
                yield after
            if self.cut and not side.machine.over:
                # What was under way may or may not arrive before the loss is noticed.
                after = self.clone(f"{name} loses the channel")
                after.sides[role].inbox = ()
                after.feed(role, E.CHANNEL_LOST)
                yield after
            if side.machine.state is State.LOST and (
                side.machine.committed is not None or role is Role.PRIMARY
            ):
                after = self.clone(f"{name} is to fail over")
                after.feed(role, E.FAILOVER_REQUESTED)
                yield after
            if self.disturbances and not side.machine.over:
                after = self.clone(f"{name} is asked to fail over")
                after.disturbances -= 1
                after.feed(role, E.FAILOVER_REQUESTED)
                yield after
        primary = self.sides[Role.PRIMARY]
        due = primary.machine.state is State.RUNNING and primary.machine.epoch <= self.checkpoints
        if due and not primary.todo:
            after = self.clone("a checkpoint is due")
            after.feed(Role.PRIMARY, E.CHECKPOINT_DUE)
            yield after
        if self.disturbances and not self.cut:
            after = self.clone("the channel is cut")
            after.disturbances -= 1
            after.cut = True
            yield after

    # What must hold in every state.

    def check(self) -> None:
        primary, secondary = (self.sides[role] for role in Role)
        p, s = primary.machine, secondary.machine
        acknowledged = -1 if p.committed is None else p.committed
        recoverable = -1 if s.committed is None else s.committed
        assert recoverable == secondary.stored
        assert acknowledged <= recoverable <= acknowledged + 1
        if self.released is not None:
            assert self.released <= recoverable, "packets left for a checkpoint that cannot be resumed from"
        if self.resumed_from is not None:
            assert self.resumed_from == recoverable >= acknowledged
        assert not (p.state is State.ALONE and s.state is State.ALONE), "both run"
        if p.state is State.ALONE and self.holder is None:
            assert recoverable == -1, "the primary runs on unasked while the secondary could take over"
        if secondary.vm_runs:
            assert self.holder is Role.SECONDARY
        if p.mode is Mode.STRICT and s.mode is Mode.STRICT and p.state is State.RUNNING:
            assert not any(E.APPLIED in results for results in secondary.reports)


def explore(world: World) -> tuple[int, list[World]]:
    """All states that can be reached; returns their number and those from which nothing moves."""
    seen = {world.key()}
    stack = [world]
    ends = []
    while stack:
        here = stack.pop()
        moved = False
        for after in here.moves():
            key = after.key()
            if key == here.key():
                continue
            moved = True
            if key in seen:
                continue
            after.check()
            seen.add(key)
            stack.append(after)
        if not moved:
            ends.append(here)
    return len(seen), ends


def world(
    *, mode: Mode, secondary_mode: Mode, dialect: Dialect, by_copy: bool, checkpoints: int, disturbances: int
) -> World:
    sides = {
        Role.PRIMARY: Side(Machine(Role.PRIMARY, mode=mode, dialect=dialect, copy=by_copy), vm_runs=True),
        Role.SECONDARY: Side(Machine(Role.SECONDARY, mode=secondary_mode)),
    }
    start = World(sides, checkpoints, disturbances=disturbances)
    for role in Role:
        start.feed(role, E.CONNECTED)
    return start


PAIRS = [(Mode.EARLY, Mode.EARLY), (Mode.STRICT, Mode.STRICT), (Mode.STRICT, Mode.EARLY)]
DIALECTS = {
    "qemu 7.2": Dialect(enable_colo=True),
    "qemu 10.0.13": Dialect(enable_colo=True, switchover_start=True),
    "qemu 11.1": Dialect(return_path=True, switchover_start=True),
    "bare": Dialect(),
    "everything": Dialect(True, True, True),
    "colo": Dialect(enable_colo=True, extended=True),
    "colo, everything": Dialect(True, True, True, extended=True),
}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
@pytest.mark.parametrize(("mode", "secondary_mode"), PAIRS)
@pytest.mark.parametrize("by_copy", [False, True])
def test_undisturbed_every_order_ends_with_all_checkpoints_committed_on_both_sides(
    dialect: Dialect, mode: Mode, secondary_mode: Mode, by_copy: bool
) -> None:
    _, ends = explore(
        world(
            mode=mode,
            secondary_mode=secondary_mode,
            dialect=copy.copy(dialect),
            by_copy=by_copy,
            checkpoints=3,
            disturbances=0,
        )
    )
    assert ends
    for end in ends:
        primary, secondary = (end.sides[role] for role in Role)
        assert (primary.machine.state, secondary.machine.state) == (State.RUNNING, State.IDLE)
        assert primary.machine.committed == secondary.machine.committed == end.released == 3
        assert primary.vm_runs
        assert secondary.machine.dialect == primary.machine.dialect
        assert secondary.machine.dialect.digest == dialect.extended


def disturbed(mode: Mode, secondary_mode: Mode, dialect: str, by_copy: bool, *, times: int) -> None:
    checkpoints = 2
    states, ends = explore(
        world(
            mode=mode,
            secondary_mode=secondary_mode,
            dialect=copy.copy(DIALECTS[dialect]),
            by_copy=by_copy,
            checkpoints=checkpoints,
            disturbances=times,
        )
    )
    assert states > 5000
    outcomes = set()
    for end in ends:
        primary, secondary = (end.sides[role].machine for role in Role)
        outcomes.add((primary.state, secondary.state, end.resumed_from))
        if State.ALONE in {primary.state, secondary.state}:
            assert [side.vm_runs for side in end.sides.values()].count(True) == 1, end.history
        else:
            assert (primary.state, secondary.state) == (State.RUNNING, State.IDLE), end.history
    # Every checkpoint was resumed from on some path, and each side won on some.
    assert {number for *_, number in outcomes} == {None, *range(checkpoints + 1)}
    assert {(State.ALONE, State.STOPPED), (State.STOPPED, State.ALONE), (State.ALONE, State.LOST)} <= {
        outcome[:2] for outcome in outcomes
    }


@pytest.mark.parametrize(
    ("mode", "secondary_mode", "dialect", "by_copy"),
    [
        (Mode.EARLY, Mode.EARLY, "colo", True),
        (Mode.STRICT, Mode.EARLY, "qemu 11.1", False),
        (Mode.STRICT, Mode.STRICT, "qemu 7.2", False),
    ],
)
def test_after_a_disturbance_exactly_one_side_runs_from_the_highest_commit(
    mode: Mode, secondary_mode: Mode, dialect: str, by_copy: bool
) -> None:
    disturbed(mode, secondary_mode, dialect, by_copy, times=1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("mode", "secondary_mode"), PAIRS)
@pytest.mark.parametrize("by_copy", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_after_two_disturbances_exactly_one_side_runs_from_the_highest_commit(
    mode: Mode, secondary_mode: Mode, dialect: str, by_copy: bool
) -> None:
    disturbed(mode, secondary_mode, dialect, by_copy, times=2)
