"""What the primary's rows ask for is carried out, all of it and nothing else: each action has its one handler."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import arbiter_from_uri, init_arbiter
from colo.epoch.participants import Participants
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import ArbitrationError, ProtocolError
from colo.link import primary_link
from colo.link.primary_link import PrimaryLink
from colo.link.primary_settings import LinkSettings
from colo.protocol import Action, Dialect, Event, Mode, Reads, Role, State, facts, lookup
from colo.protocol.deadlines import Deadlines
from colo.protocol.states import OVER, PRIMARY, states
from colo.protocol.table import ROWS, unexpected
from colo.session import primary_deciding
from colo.session.primary_config import PrimaryConfig
from colo.session.primary_deciding import Deciding, PrimaryLease
from colo.session.primary_waiting import Waiting
from colo.stream import StreamLimits
from colo.transport import SocketTransport
from colo.vm.handle import VmHandle
from colo.vm.saved_state import StateForm
from tests.session.primary_vm import PageVm

A, E, S = Action, Event, State
SERVED = [row for row in ROWS if row.role is PRIMARY and row.served]
ENDINGS = [
    E.CHANNEL_LOST, E.DEADLINE, E.FAILED, E.FAILOVER_REQUESTED, E.TAKEOVER_WON, E.TAKEOVER_LOST, E.TAKEOVER_UNDECIDED,
    E.CHECKPOINT_READY, E.SHUT_FAILED,
]


def asked_for() -> set[Action]:
    rows = {action for row in SERVED for action in row.actions}
    return rows | {action for state in states(PRIMARY) for action in unexpected(PRIMARY, state).actions}


def test_every_action_has_one_handler_and_every_handler_an_action() -> None:
    assert set(primary_link.ACTIONS) | set(primary_deciding.ACTIONS) == asked_for()
    assert not set(primary_link.ACTIONS) & set(primary_deciding.ACTIONS)


def test_every_state_in_which_something_is_read_has_its_reader() -> None:
    reads = {facts(PRIMARY, state).reads for state in states(PRIMARY)} | {Reads.MESSAGE}
    assert set(primary_link.READERS) == reads - {Reads.NOTHING}


class Heard:
    """A participant, and a VM's calls, in one list."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []

    def seal(self, number: int) -> None:
        self.calls.append(("seal", number))

    def release(self, number: int) -> None:
        self.calls.append(("release", number))

    def take_back(self, number: int) -> None:
        self.calls.append(("take_back", number))

    def end(self, won: bool) -> None:
        self.calls.append(("end", won))


class HeardVm(PageVm):
    def __init__(self, heard: Heard) -> None:
        super().__init__()
        self.heard = heard

    def pause(self) -> None:
        self.heard.calls.append(("pause", self.running))
        super().pause()

    def resume(self) -> None:
        self.heard.calls.append(("resume", self.running))
        super().resume()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def vm(heard: Heard) -> Iterator[HeardVm]:
    made = HeardVm(heard)
    yield made
    made.close()


def link_of(vm: Any, heard: Heard, *, committed: int | None, actions: dict[Action, Any]) -> tuple[PrimaryLink, socket.socket]:
    ours, theirs = socket.socketpair()
    pages = PrimaryPages(vm.memory, tracker="shadow")
    dialect = Dialect(return_path=True, enable_colo=True)
    return PrimaryLink(
        SocketTransport(ours), VmHandle(vm), pages, StateForm(StreamLimits()), LinkSettings("colo", dialect, Mode.EARLY, True, Deadlines()),
        participants=Participants([heard]), actions=actions, committed=committed), theirs


@pytest.mark.parametrize("committed", [None, 4])
def test_an_ending_does_what_its_row_asks_for_in_its_order_and_nothing_else(
    vm: HeardVm, heard: Heard, committed: int | None
) -> None:
    """With handlers that only note their names, no ending stops, resumes, tells or closes anything."""
    link, theirs = link_of(vm, heard, committed=committed, actions={})
    done: list[Action] = []
    for action in asked_for():
        link._actions[action] = lambda action=action: done.append(action)
    seen = set()
    for state, event in product(states(PRIMARY), ENDINGS):
        done.clear()
        link.machine.state, link.machine.committed = state, committed
        outcome = lookup(Role.PRIMARY, state, event, link.machine.conditions)
        with contextlib.nullcontext() if outcome.expected else pytest.raises(ProtocolError):
            assert link.end(event) is outcome.next_state
        assert link.machine.state is outcome.next_state
        assert done == list(outcome.actions), (state, event)
        seen |= set(done)
    assert seen >= {A.TAKE_BACK_EPOCH, A.ABORT_CHANNEL, A.ARBITRATE, A.RUN_ALONE, A.RELEASE_ALL, A.DROP_ALL, A.STOP_VM} - (
        set() if committed is None else {A.RUN_ALONE})
    assert heard.calls == []
    assert link.sock.fileno() >= 0
    link.sock.close()
    theirs.close()


@pytest.mark.parametrize("state", [state for state in states(PRIMARY) if state not in OVER])
def test_a_connections_end_takes_its_epoch_back_and_resets_the_channel(vm: HeardVm, heard: Heard, state: State) -> None:
    link, theirs = link_of(vm, heard, committed=6, actions={})
    link.machine.state = state
    assert link.end(E.CHANNEL_LOST) is S.LOST
    assert link.end(E.CHANNEL_LOST) is S.LOST
    assert heard.calls == [("take_back", 7)]
    assert link.sock.fileno() == -1
    theirs.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        assert theirs.recv(1) == b""
    theirs.close()


class Side:
    """The session's part of the endings, on an arbiter of its own."""

    def __init__(self, vm: HeardVm, heard: Heard, arbiter: str) -> None:
        self.arbiter = arbiter_from_uri(arbiter, role="primary", vm="")
        self.waiting, self.notices = Waiting(), list[str]()
        handle = VmHandle(vm)
        config = PrimaryConfig("tcp:127.0.0.1:1", arbiter)
        self.deciding = Deciding(
            self.arbiter, handle, PrimaryLease(config, handle, self.waiting, self.notices.append), Participants([heard]),
            self.waiting, self.notices.append)
        self.deciding.reason = "test"
        self.link, self.theirs = link_of(vm, heard, committed=4, actions=self.deciding.actions)
        self.link._handle = handle
        handle.pause()
        heard.calls.clear()

    def close(self) -> None:
        self.arbiter.close()
        self.waiting.close()
        self.theirs.close()


@pytest.fixture
def directory(tmp_path: Path) -> str:
    path = tmp_path / "arbiter"
    path.mkdir(mode=0o700)
    init_arbiter(f"file:{path}", vm="test")
    return f"file:{path}"


def test_who_wins_runs_the_vm_and_then_lets_go_what_was_held(vm: HeardVm, heard: Heard, directory: str) -> None:
    side = Side(vm, heard, directory)
    side.link.machine.state = S.AWAIT_RECEIVED
    assert side.link.end(E.FAILOVER_REQUESTED) is S.ALONE
    assert heard.calls == [("take_back", 5), ("resume", False), ("end", True)]
    assert side.deciding.generation == 1 and side.arbiter.current() == 1
    assert side.link.sock.fileno() == -1
    side.close()


def test_who_cannot_run_the_vm_lets_nothing_go(vm: HeardVm, heard: Heard, directory: str) -> None:
    side = Side(vm, heard, directory)
    side.link.machine.state = S.AWAIT_RECEIVED
    vm.resume = broken  # type: ignore[method-assign]
    with pytest.raises(Exception, match=r"resume.*broken"):
        side.link.end(E.FAILOVER_REQUESTED)
    assert heard.calls == [("take_back", 5)]
    assert side.link.sock.fileno() == -1
    side.close()


def broken() -> None:
    raise OSError("broken")


def test_who_loses_drops_what_was_held_and_stands_still(vm: HeardVm, heard: Heard, directory: str) -> None:
    side = Side(vm, heard, directory)
    other = arbiter_from_uri(directory, role="secondary", vm="")
    other.claim(0, reason="test")
    other.close()
    side.link.machine.state = S.RUNNING
    assert side.link.end(E.FAILOVER_REQUESTED) is S.STOPPED
    assert heard.calls == [("take_back", 5), ("end", False), ("pause", False)]
    assert side.deciding.generation == 0
    side.close()


def test_while_it_is_undecided_nothing_leaves_and_nothing_changes(vm: HeardVm, heard: Heard, tmp_path: Path) -> None:
    script = tmp_path / "fence"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o700)
    side = Side(vm, heard, f"exec:{script}")
    side.waiting.stop("test")
    side.link.machine.state = S.LOST
    assert side.link.end(E.FAILOVER_REQUESTED) is S.LOST
    assert heard.calls == []
    assert isinstance(side.deciding.error, ArbitrationError)
    assert side.notices and "undecided" in side.notices[0]
    side.close()


def test_without_a_connection_the_sessions_part_is_done_too(vm: HeardVm, heard: Heard, directory: str) -> None:
    side = Side(vm, heard, directory)
    assert side.deciding.end(S.LOST, E.TAKEOVER_LOST) is S.STOPPED
    assert heard.calls == [("end", False), ("pause", False)]
    side.close()
