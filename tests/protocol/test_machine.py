"""One machine at a time: dialects, modes, what a cut leaves, and how an error reads."""

from __future__ import annotations

import pytest

from colo.errors import ProtocolError, Unsupported
from colo.protocol import Action, Dialect, Event, Machine, Mode, Phase, Reads, Role, State

E, A = Event, Action
INITIAL = [E.CONNECTED, E.STREAM_OPENED, E.ENABLE_COLO, E.INITIAL_STAGED, E.VALIDATED, E.COMMITTED]
CHECKPOINT = [
    E.CHECKPOINT_REQUEST,
    E.VMSTATE_SEND,
    E.RAM_STAGED,
    E.VMSTATE_SIZE,
    E.DEVICE_RECEIVED,
    E.VALIDATED,
    E.COMMITTED,
]


def fed(machine: Machine, events: list[Event]) -> list[tuple[Action, ...]]:
    return [machine.feed(event) for event in events]


def secondary(*, mode: Mode = Mode.EARLY, checkpoints: int = 0) -> Machine:
    machine = Machine(Role.SECONDARY, mode=mode)
    fed(machine, INITIAL if mode is Mode.EARLY else [*INITIAL, E.APPLIED])
    for _ in range(checkpoints):
        fed(machine, CHECKPOINT if mode is Mode.EARLY else [*CHECKPOINT, E.APPLIED])
    return machine


@pytest.mark.parametrize("return_path", [False, True])
@pytest.mark.parametrize("enable_colo", [False, True])
@pytest.mark.parametrize("switchover_start", [False, True])
def test_a_secondary_learns_the_dialect(return_path: bool, enable_colo: bool, switchover_start: bool) -> None:
    machine = Machine(Role.SECONDARY)
    fed(machine, [E.CONNECTED, E.STREAM_OPENED])
    if return_path:
        assert machine.feed(E.OPEN_RETURN_PATH) == ()
        assert machine.feed(E.PING) == (A.SEND_PONG,)
        assert machine.feed(E.PING) == (A.SEND_PONG,)
    if enable_colo:
        assert machine.feed(E.ENABLE_COLO) == ()
    if switchover_start:
        assert machine.feed(E.SWITCHOVER_START) == ()
    assert machine.feed(E.INITIAL_STAGED) == (A.VALIDATE,)
    assert machine.feed(E.VALIDATED) == (A.COMMIT,)
    shut = (A.SEND_SHUT,) if return_path else ()
    assert machine.feed(E.COMMITTED) == (*shut, A.SEND_CHECKPOINT_READY, A.LOAD)
    assert machine.dialect == Dialect(return_path, enable_colo, switchover_start)
    for _ in range(2):
        fed(machine, CHECKPOINT[:2])
        if switchover_start:
            assert machine.feed(E.SWITCHOVER_START) == ()
        fed(machine, CHECKPOINT[2:])
    assert machine.committed == 2


@pytest.mark.parametrize("once", [E.OPEN_RETURN_PATH, E.ENABLE_COLO, E.SWITCHOVER_START])
def test_commands_that_come_twice_are_refused(once: Event) -> None:
    machine = Machine(Role.SECONDARY)
    fed(machine, [E.CONNECTED, E.STREAM_OPENED, once])
    with pytest.raises(ProtocolError, match=f"the peer sent {once.value}"):
        machine.feed(once)
    assert machine.actions == (A.DROP_EPOCH, A.ABORT_CHANNEL)
    assert machine.over


def test_switchover_start_twice_in_one_checkpoint_is_refused() -> None:
    machine = secondary(checkpoints=1)
    fed(machine, [E.CHECKPOINT_REQUEST, E.VMSTATE_SEND, E.SWITCHOVER_START])
    with pytest.raises(ProtocolError):
        machine.feed(E.SWITCHOVER_START)


def test_a_ping_without_return_path_is_refused() -> None:
    machine = Machine(Role.SECONDARY)
    fed(machine, [E.CONNECTED, E.STREAM_OPENED])
    with pytest.raises(ProtocolError):
        machine.feed(E.PING)


@pytest.mark.parametrize("return_path", [False, True])
@pytest.mark.parametrize("enable_colo", [False, True])
@pytest.mark.parametrize("switchover_start", [False, True])
def test_a_primary_speaks_its_dialect(return_path: bool, enable_colo: bool, switchover_start: bool) -> None:
    machine = Machine(Role.PRIMARY, dialect=Dialect(return_path, enable_colo, switchover_start))
    opened = machine.feed(E.CONNECTED)
    assert opened[0] is A.SEND_HEADER
    assert opened[-1] is A.SEND_INITIAL_RAM
    assert (A.SEND_OPEN_RETURN_PATH in opened, A.SEND_PING in opened) == (return_path, return_path)
    assert (A.SEND_ENABLE_COLO in opened) == enable_colo
    assert machine.reads is (Reads.RETURN_PATH if return_path else Reads.MESSAGE)
    machine.feed(E.RAM_CONVERGED)
    machine.feed(E.VM_STOPPED)
    assert (A.SEND_SWITCHOVER_START in machine.feed(E.STATE_SAVED)) == switchover_start
    machine.feed(E.INITIAL_SENT)
    if return_path:
        assert machine.state is State.AWAIT_SHUT
        fed(machine, [E.PONG, E.SHUT])
    assert machine.state is State.AWAIT_READY
    assert machine.feed(E.CHECKPOINT_READY) == (A.RESUME,)
    fed(machine, [E.CHECKPOINT_DUE, E.CHECKPOINT_REPLY, E.VM_STOPPED])
    assert (A.SEND_SWITCHOVER_START in machine.feed(E.STATE_SAVED)) == switchover_start


def test_a_colo_message_before_shut_is_refused_by_the_primary() -> None:
    machine = Machine(Role.PRIMARY, dialect=Dialect(return_path=True))
    fed(machine, [E.CONNECTED, E.RAM_CONVERGED, E.VM_STOPPED, E.STATE_SAVED, E.INITIAL_SENT])
    with pytest.raises(ProtocolError, match="expected pong or shut"):
        machine.feed(E.CHECKPOINT_READY)


def test_a_failed_shut_ends_the_connection() -> None:
    machine = Machine(Role.PRIMARY, dialect=Dialect(return_path=True))
    fed(machine, [E.CONNECTED, E.RAM_CONVERGED])
    assert machine.feed(E.SHUT_FAILED) == (A.GIVE_BACK_DIRTY, A.ABORT_CHANNEL, A.RESUME)
    assert machine.state is State.ALONE
    machine = Machine(Role.PRIMARY, dialect=Dialect(return_path=True))
    fed(machine, [E.CONNECTED, E.RAM_CONVERGED, E.VM_STOPPED, E.STATE_SAVED, E.INITIAL_SENT])
    assert machine.feed(E.SHUT_FAILED) == (A.GIVE_BACK_DIRTY, A.ABORT_CHANNEL)
    assert machine.state is State.LOST


def primary_awaiting_received(*, mode: Mode, copy: bool) -> tuple[Machine, list[tuple[Action, ...]]]:
    machine = Machine(Role.PRIMARY, mode=mode, copy=copy)
    fed(
        machine,
        [E.CONNECTED, E.RAM_CONVERGED, E.VM_STOPPED, E.STATE_SAVED, E.INITIAL_SENT, E.CHECKPOINT_READY],
    )
    given = fed(
        machine,
        [E.CHECKPOINT_DUE, E.CHECKPOINT_REPLY, E.VM_STOPPED, E.STATE_SAVED, E.RAM_SENT, E.DEVICE_SENT],
    )
    assert machine.state is State.AWAIT_RECEIVED
    return machine, given


@pytest.mark.parametrize("copy", [False, True])
def test_a_primary_of_a_qemu_secondary_releases_packets_on_loaded(copy: bool) -> None:
    machine, given = primary_awaiting_received(mode=Mode.STRICT, copy=copy)
    assert (A.RESUME in given[3]) == copy
    assert machine.feed(E.VMSTATE_RECEIVED) == ()
    assert machine.committed == 0
    assert machine.feed(E.VMSTATE_LOADED) == ((A.RELEASE_PACKETS,) if copy else (A.RELEASE_PACKETS, A.RESUME))
    assert machine.committed == 1


@pytest.mark.parametrize("copy", [False, True])
def test_a_primary_of_a_colo_secondary_releases_packets_on_received(copy: bool) -> None:
    machine, _ = primary_awaiting_received(mode=Mode.EARLY, copy=copy)
    assert machine.feed(E.VMSTATE_RECEIVED) == (A.RELEASE_PACKETS,)
    assert machine.committed == 1
    assert machine.feed(E.VMSTATE_LOADED) == (() if copy else (A.RESUME,))


def test_a_checkpoint_that_falls_due_during_another_is_remembered() -> None:
    machine, _ = primary_awaiting_received(mode=Mode.EARLY, copy=True)
    assert machine.feed(E.CHECKPOINT_DUE) == (A.DEFER_CHECKPOINT,)
    assert machine.state is State.AWAIT_RECEIVED


def test_strict_says_loaded_after_the_apply() -> None:
    machine = secondary(mode=Mode.STRICT)
    fed(machine, CHECKPOINT[:-1])
    assert machine.feed(E.COMMITTED) == (A.SEND_VMSTATE_RECEIVED, A.LOAD)
    assert machine.committed == 1
    assert (machine.state, machine.phase, machine.reads) == (State.APPLYING, Phase.LOCAL, Reads.NOTHING)
    assert machine.feed(E.APPLIED) == (A.SEND_VMSTATE_LOADED,)
    assert machine.state is State.IDLE


def test_early_acknowledges_at_once_and_applies_beside_the_next_checkpoint() -> None:
    for late in range(len(CHECKPOINT)):
        machine = secondary(checkpoints=1)
        assert machine.actions == (A.SEND_VMSTATE_RECEIVED, A.SEND_VMSTATE_LOADED, A.LOAD)
        fed(machine, CHECKPOINT[:late])
        state = machine.state
        assert machine.feed(E.APPLIED) == ()
        assert machine.state is state
        fed(machine, CHECKPOINT[late:])
        assert machine.committed == 2


CUTS: list[tuple[str, list[Event], int | None]] = [
    ("connect", [], None),
    ("accepted", INITIAL[:1], None),
    ("handshake", INITIAL[:2], None),
    ("initial stream", INITIAL[:3], None),
    ("initial stream whole", INITIAL[:4], None),
    ("initial stream valid", INITIAL[:5], None),
    ("READY", INITIAL, 0),
    *(
        (f"checkpoint {k}: {name}", INITIAL + CHECKPOINT * (k - 1) + CHECKPOINT[:length], k - 1)
        for k in (1, 2, 3)
        for length, name in enumerate(
            (
                "between",
                "REQUEST, REPLY",
                "VMSTATE_SEND, RAM at any byte",
                "RAM's EOF",
                "VMSTATE_SIZE, device state at any byte",
                "received but not validated",
                "valid but not committed",
            )
        )
    ),
    *((f"committed {k}", INITIAL + CHECKPOINT * k, k) for k in (1, 2, 3)),
]


@pytest.mark.parametrize("ending", [E.CHANNEL_LOST, E.DEADLINE, E.FAILED])
@pytest.mark.parametrize(("before", "resumes_from"), [cut[1:] for cut in CUTS], ids=[cut[0] for cut in CUTS])
def test_what_a_cut_leaves(before: list[Event], resumes_from: int | None, ending: Event) -> None:
    machine = Machine(Role.SECONDARY)
    fed(machine, before)
    actions = machine.feed(ending)
    if machine.state is State.FINISHING_COMMIT:
        assert A.DROP_EPOCH not in actions
        machine.feed(E.FAILED)
    assert machine.committed == resumes_from
    assert machine.state is State.LOST
    if resumes_from is None:
        assert machine.feed(E.FAILOVER_REQUESTED) == (A.REFUSE_FAILOVER,)
        assert machine.state is State.LOST
    else:
        assert machine.feed(E.FAILOVER_REQUESTED) == (A.ARBITRATE,)
        assert machine.feed(E.FAILOVER_REQUESTED) == ()
        assert machine.feed(E.TAKEOVER_WON) == (A.TAKE_OVER,)
        assert machine.feed(E.FAILOVER_REQUESTED) == ()
        assert machine.committed == resumes_from


@pytest.mark.parametrize("ending", [E.CHANNEL_LOST, E.DEADLINE, E.FAILOVER_REQUESTED, E.CHECKPOINT_REQUEST])
@pytest.mark.parametrize(("result", "resumes_from"), [(E.COMMITTED, 1), (E.FAILED, 0)])
def test_a_commit_under_way_decides_after_the_cut(ending: Event, result: Event, resumes_from: int) -> None:
    machine = secondary()
    fed(machine, CHECKPOINT[:-1])
    try:
        assert A.DROP_EPOCH not in machine.feed(ending)
    except ProtocolError:
        assert machine.actions == (A.ABORT_CHANNEL,)
    assert machine.state is State.FINISHING_COMMIT
    machine.feed(result)
    assert (machine.state, machine.committed) == (State.LOST, resumes_from)
    assert A.SEND_VMSTATE_RECEIVED not in machine.actions


def test_a_failover_is_refused_while_nothing_is_committed_and_the_stream_goes_on() -> None:
    machine = Machine(Role.SECONDARY)
    for event in INITIAL:
        if event is not E.CONNECTED:
            assert machine.feed(E.FAILOVER_REQUESTED) == (A.REFUSE_FAILOVER,)
        machine.feed(event)
    assert machine.committed == 0


def test_an_earlier_connections_checkpoint_stays_recoverable_through_a_resync() -> None:
    machine = Machine(Role.SECONDARY, committed=41)
    fed(machine, INITIAL[:3])
    machine.feed(E.CHANNEL_LOST)
    assert machine.committed == 41
    assert machine.feed(E.FAILOVER_REQUESTED) == (A.ARBITRATE,)
    machine = Machine(Role.SECONDARY, committed=41)
    fed(machine, INITIAL)
    assert machine.committed == 42


@pytest.mark.parametrize("length", range(4))
def test_a_primary_whose_secondary_has_nothing_runs_on_without_the_arbiter(length: int) -> None:
    opening = [E.CONNECTED, E.RAM_CONVERGED, E.VM_STOPPED]
    machine = Machine(Role.PRIMARY)
    fed(machine, opening[:length])
    assert machine.feed(E.CHANNEL_LOST) == (A.GIVE_BACK_DIRTY, A.CLOSE_CHANNEL, A.RESUME)
    assert machine.state is State.ALONE
    machine = Machine(Role.PRIMARY, committed=7)
    fed(machine, opening[:length])
    assert machine.feed(E.CHANNEL_LOST) == (A.GIVE_BACK_DIRTY, A.CLOSE_CHANNEL)
    assert machine.state is State.LOST


def test_a_primary_that_lost_the_arbitration_stops_and_its_packets_never_leave() -> None:
    machine, _ = primary_awaiting_received(mode=Mode.EARLY, copy=True)
    machine.feed(E.DEADLINE)
    assert machine.feed(E.FAILOVER_REQUESTED) == (A.ARBITRATE,)
    assert machine.feed(E.TAKEOVER_LOST) == (A.DROP_PACKETS, A.STOP_VM)
    assert machine.state is State.STOPPED


def test_an_undecided_arbitration_can_be_tried_again() -> None:
    machine = secondary()
    fed(machine, [E.CHANNEL_LOST, E.FAILOVER_REQUESTED, E.TAKEOVER_UNDECIDED])
    assert machine.state is State.LOST
    assert machine.feed(E.FAILOVER_REQUESTED) == (A.ARBITRATE,)


def test_a_thawed_primary_that_finds_its_generation_gone_stops() -> None:
    for length in range(6):
        machine, _ = primary_awaiting_received(mode=Mode.EARLY, copy=True)
        fed(machine, [E.VMSTATE_RECEIVED, E.VMSTATE_LOADED, E.CHECKPOINT_DUE, E.CHECKPOINT_REPLY][:length])
        assert machine.feed(E.TAKEOVER_LOST) == (A.DROP_PACKETS, A.STOP_VM, A.ABORT_CHANNEL)
        assert machine.state is State.STOPPED


def test_an_error_names_state_got_and_expected() -> None:
    machine = secondary(checkpoints=1)
    machine.feed(E.CHECKPOINT_REQUEST)
    with pytest.raises(ProtocolError) as caught:
        machine.feed(E.VMSTATE_SIZE)
    assert str(caught.value) == (
        "secondary in state await-vmstate-send (checkpoint 2): "
        "the peer sent vmstate-size, expected vmstate-send"
    )
    assert (caught.value.state, caught.value.got) == ("await-vmstate-send", "vmstate-size")
    assert caught.value.expected == ("vmstate-send",)
    assert machine.state is State.LOST
    assert machine.committed == 1


def test_a_dead_connections_messages_never_count() -> None:
    machine = secondary(checkpoints=1)
    machine.feed(E.CHANNEL_LOST)
    for event in (E.CHECKPOINT_REQUEST, E.RAM_STAGED, E.DEVICE_RECEIVED, E.COMMITTED):
        with pytest.raises(ProtocolError):
            machine.feed(event)
        assert (machine.state, machine.actions, machine.committed) == (State.LOST, (), 1)


def test_hybrid_is_refused() -> None:
    with pytest.raises(Unsupported, match="hybrid"):
        Machine(Role.PRIMARY, mode=Mode.HYBRID)


def test_phases_follow_one_checkpoint() -> None:
    machine = secondary()
    seen = []
    for event in CHECKPOINT:
        seen.append((machine.phase, machine.facts.in_epoch, machine.reads))
        machine.feed(event)
    assert seen == [
        (Phase.IDLE, False, Reads.MESSAGE),
        (Phase.MESSAGE, True, Reads.MESSAGE),
        (Phase.RAM, True, Reads.STREAM),
        (Phase.MESSAGE, True, Reads.MESSAGE),
        (Phase.DEVICE, True, Reads.DEVICE),
        (Phase.LOCAL, True, Reads.NOTHING),
        (Phase.LOCAL, True, Reads.NOTHING),
    ]
