"""A program that runs its VM itself is killed: its witness proves it, and nothing else is taken for that."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import init_arbiter
from colo.errors import ChannelLost, ColoError
from colo.fence.processes import start_ticks, thread_states
from colo.lease.connection import LeaseConnection, Refused
from colo.lease.frames import Frame, encode
from colo.lease.meeting import Meeting
from colo.lease.promises import Promises
from colo.lease.served import CONNECTIONS_MAX
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig, VmTakeover
from colo.transport import connect, listen
from colo.transport.door import Door
from colo.wire import LeaseMessage
from tests.session.primary_vm import PageVm, expected

ROOT = Path(__file__).resolve().parents[2]
LONG_MS = 20_000.0
SOON_S = 8.0
"""Far less than what is left of a long lease, and far more than a takeover takes on a loaded machine."""
SHORT_MS = 1500.0


def until(holds: Callable[[], bool], what: str, seconds: float = 20, seen: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come: {seen()}"
        time.sleep(0.005)


class Standby:
    """The secondary, on a thread of this process."""

    def __init__(self, arbiter: str, address: str = "tcp:127.0.0.1:0") -> None:
        self.vm = PageVm()
        self.notices: list[str] = []
        self.outcome: VmTakeover | BaseException | None = None
        self.secondary = VmSecondary(
            self.vm, VmSecondaryConfig(address, arbiter, resume=False, lease_ms=60_000.0),
            on_event=lambda kind, data: self.notices.append(str(data)) if kind == "notice" else None)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.secondary.run()
        except ColoError as error:
            self.outcome = error

    @property
    def proof(self) -> str:
        return str(self.secondary.promises.status()["proof"] or "")

    def took_over(self, seconds: float) -> bool:
        self.thread.join(seconds)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome is not None

    def close(self) -> None:
        self.secondary.stop()
        self.thread.join(20)
        self.secondary.close()
        self.vm.close()


class Program:
    """A process with a protected VM (:mod:`tests.fence.protected`), in a group of its own."""

    def __init__(self, address: str, arbiter: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fence.protected", address, arbiter, json.dumps(options)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self.pid = self.process.pid
        self.events: list[dict[str, Any]] = []
        self.all_read = threading.Event()
        self.witnesses: dict[int, int] = {}
        """When each that was seen started, by its pid."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
        self.all_read.set()

    def said(self, kind: str) -> list[Any]:
        return [event["data"] for event in list(self.events) if event["event"] == kind]

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str, answer: str) -> Any:
        known = len(self.said(answer))
        self.tell(command)
        until(lambda: len(self.said(answer)) > known, f"an answer to {command}", seen=lambda: self.events[-3:])
        return self.said(answer)[known]

    def witness(self) -> dict[str, Any]:
        lease = self.ask("status", "status")["lease"]
        found: dict[str, Any] = lease["witness"] if lease and lease["witness"] else {}
        if found.get("pid"):
            self.witnesses.setdefault(found["pid"], start_ticks(found["pid"]))
        return found

    def protected(self) -> int:
        """Once checkpoints are committed and its witness could tell the secondary: the witness."""
        until(lambda: len(self.said("checkpoint")) >= 2, "two checkpoints", seen=lambda: self.events[-3:])
        until(lambda: bool(self.witness().get("connected")), "a witness", seen=lambda: self.events[-3:])
        return int(self.witness()["pid"])

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def left(self) -> list[int]:
        """Its witnesses that still are; one that init has not waited for yet is not."""
        return [pid for pid, ticks in self.witnesses.items() if ticks and start_ticks(pid) == ticks and thread_states(pid) != "Z"]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        until(lambda: not self.left(), "the end of its witnesses", seen=self.left)


class World:
    """An arbiter, a secondary, and programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.arbiter = f"file:{directory}/arbiter"
        (directory / "arbiter").mkdir(mode=0o700)
        init_arbiter(self.arbiter, vm="test")
        self._closes = contextlib.ExitStack()

    def standby(self, address: str = "tcp:127.0.0.1:0") -> Standby:
        each = Standby(self.arbiter, address)
        self._closes.callback(each.close)
        return each

    def program(self, standby: Standby, *, lease_ms: float = LONG_MS, **options: Any) -> Program:
        each = Program(standby.secondary.address, self.arbiter, lease_ms=lease_ms, **options)
        self._closes.callback(each.close)
        return each

    def close(self) -> None:
        self._closes.close()


@pytest.fixture
def world() -> Iterator[World]:
    directory = Path(tempfile.mkdtemp(prefix="colo-", dir="/dev/shm"))
    each = World(directory)
    try:
        yield each
    finally:
        each.close()
        shutil.rmtree(directory)


def test_a_program_that_is_killed_is_taken_over_long_before_its_lease_ends(world: World) -> None:
    standby = world.standby()
    program = world.program(standby)
    program.protected()
    program.kill()
    assert standby.took_over(SOON_S), standby.proof
    assert "process is gone" in standby.proof
    assert standby.vm.image() == expected(standby.vm.turn, standby.vm.pages)


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:0", "unix:"])
def test_so_it_is_when_its_whole_group_is_killed(world: World, address: str) -> None:
    standby = world.standby(f"unix:{world.directory}/listen" if address == "unix:" else address)
    program = world.program(standby)
    program.protected()
    os.killpg(program.pid, signal.SIGKILL)
    assert standby.took_over(SOON_S), standby.proof
    assert program.all_read.wait(SOON_S), "nothing keeps its output open"


def test_a_program_that_ends_without_a_word_is_gone_too(world: World) -> None:
    standby = world.standby()
    program = world.program(standby)
    program.protected()
    program.tell("end")
    assert standby.took_over(SOON_S), standby.proof


def test_stopped_in_order_it_leaves_no_process_and_proves_nothing(world: World) -> None:
    standby = world.standby()
    program = world.program(standby)
    program.protected()
    program.ask("stop", "stopped-in-order")
    until(lambda: not program.left(), "the witness goes")
    assert program.process.poll() is None
    program.kill()
    with pytest.raises(ColoError, match="runs on alone"):
        standby.took_over(SOON_S)
    assert not standby.proof


def test_a_witness_has_nothing_of_the_programs_open(world: World) -> None:
    standby = world.standby()
    program = world.program(standby)
    witness = program.protected()

    def opened(pid: int) -> set[str]:
        return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}

    assert not (opened(witness) & opened(program.pid)) - {"/dev/null", "anon_inode:[pidfd]"}
    assert os.getsid(witness) != os.getsid(program.pid)
    assert b"token" not in Path(f"/proc/{witness}/cmdline").read_bytes()


def test_without_one_the_secondary_waits_for_the_lease_to_end(world: World) -> None:
    standby = world.standby()
    program = world.program(standby, lease_ms=SHORT_MS, fence=False)
    until(lambda: len(program.said("checkpoint")) >= 2, "two checkpoints")
    assert program.witness() == {}
    program.kill()
    began = time.monotonic()
    assert standby.took_over(20)
    assert time.monotonic() - began > SHORT_MS / 2000
    assert not standby.proof
    assert not program.said("notice")


def test_where_none_can_be_started_it_is_said_and_the_lease_decides(world: World) -> None:
    standby = world.standby()
    program = world.program(standby, lease_ms=SHORT_MS, no_python=True)
    until(lambda: len(program.said("checkpoint")) >= 2 and bool(program.said("notice")), "two checkpoints, and a notice")
    [notice] = program.said("notice")
    assert "no witness beside this process (sys.executable is not set" in notice
    program.kill()
    assert standby.took_over(20)
    assert not standby.proof


def test_a_witness_that_is_killed_is_replaced(world: World) -> None:
    standby = world.standby()
    program = world.program(standby)
    first = program.protected()
    os.kill(first, signal.SIGKILL)
    until(lambda: program.witness().get("pid") not in (None, first), "another")
    program.protected()
    assert not standby.proof
    program.kill()
    assert standby.took_over(SOON_S), standby.proof


def test_where_they_are_killed_one_after_another_it_is_said_once(world: World) -> None:
    standby = world.standby()
    program = world.program(standby, lease_ms=SHORT_MS)
    for _ in range(3):
        os.kill(program.protected(), signal.SIGKILL)
        until(lambda: not program.witness().get("connected"), "its end is noticed")
    until(lambda: bool(program.said("notice")), "a notice")
    assert "one after another was ended" in program.said("notice")[0]
    checkpoints = len(program.said("checkpoint"))
    until(lambda: len(program.said("checkpoint")) > checkpoints, "protection goes on")
    program.kill()
    assert standby.took_over(20)
    assert (len(program.said("notice")), standby.proof) == (1, "")


def test_a_program_that_stands_still_is_not_gone(world: World) -> None:
    standby = world.standby()
    program = world.program(standby)
    program.protected()
    program.kill(signal.SIGSTOP)
    time.sleep(1.0)
    assert not standby.proof and standby.outcome is None
    program.kill()
    assert standby.took_over(SOON_S), standby.proof


def test_another_program_in_the_same_process_proves_nothing_and_leaves_no_witness(world: World) -> None:
    standby = world.standby()
    program = world.program(standby, lease_ms=SHORT_MS)
    program.protected()
    program.tell("exec")
    assert standby.took_over(20)
    assert not standby.proof
    until(lambda: not program.left(), "the witness goes", 30)
    assert program.process.poll() is None


def test_it_is_the_process_of_the_vm_that_is_watched_and_not_its_children(world: World) -> None:
    standby = world.standby()
    program = world.program(standby)
    program.protected()
    child = program.ask("fork", "forked")
    os.kill(child, signal.SIGKILL)
    child = program.ask("fork", "forked")
    try:
        time.sleep(0.3)
        assert not standby.proof and program.witness()["connected"]
        program.kill()
        assert standby.took_over(SOON_S), standby.proof
    finally:
        os.kill(child, signal.SIGKILL)


def test_towards_another_secondary_there_is_another_witness(world: World) -> None:
    address = f"unix:{world.directory}/listen"
    first = Standby(world.arbiter, address)
    program = world.program(first, reconnect=True)
    before = program.protected()
    first.close()
    until(lambda: bool(program.said("alone")), "running alone")
    until(lambda: before not in program.left(), "nobody could take it over: no witness")
    second = world.standby(address)
    until(lambda: len(program.said("protecting")) == 2, "another secondary")
    assert program.protected() != before
    program.kill()
    assert second.took_over(SOON_S), second.proof


def test_a_listener_that_hangs_up_does_not_end_the_search_for_another_secondary(world: World) -> None:
    address = f"unix:{world.directory}/listen"
    first = Standby(world.arbiter, address)
    program = world.program(first, reconnect=True)
    program.protected()
    first.close()
    until(lambda: bool(program.said("alone")), "running alone")
    with listen(address, backlog=4) as rude:
        for _ in range(2):
            rude.accept(20).close()
    world.standby(address)
    until(lambda: len(program.said("protecting")) == 2, "another secondary", seen=lambda: program.events[-3:])
    assert any("it is tried again" in text for text in program.said("notice"))


# -- what a secondary takes for a proof


class Met:
    """The secondary's end of the lease, and what opens connections to it."""

    def __init__(self) -> None:
        self.listener = listen("tcp:127.0.0.1:0", backlog=4)
        self.notices: list[str] = []
        self.promises = Promises(
            LONG_MS, required=True, arbiter=None, checkpoint=lambda: None, tell=self.notices.append, wake=lambda: None)
        self.door = Door(
            self.listener, handshake_s=5, refused=self.notices.append,
            lease=self.promises.take, bars=self.promises.bars)

    def meet(self, generation: int, **more: Any) -> LeaseConnection:
        return LeaseConnection.open(
            self.listener.address, Meeting(vm="vm", generation=generation, lease_ms=LONG_MS, **more))

    @property
    def proof(self) -> str:
        return str(self.promises.status()["proof"] or "")

    def close(self) -> None:
        for end in (self.door.close, self.promises.close, self.listener.close):
            end()


@pytest.fixture
def met() -> Iterator[Met]:
    each = Met()
    yield each
    each.close()


def heard(connection: LeaseConnection) -> bool:
    """Whether all that was sent over it has been taken; or it was closed."""
    connection.send(Frame(LeaseMessage.MEET, 0, text={"token": connection.welcome.token}))
    try:
        while (frame := connection.receive(10)) is not None:
            if frame.kind in (LeaseMessage.WELCOME, LeaseMessage.REFUSED):
                return frame.kind is LeaseMessage.WELCOME
    except ChannelLost:
        pass
    return False


def test_a_second_connection_with_the_sessions_token_proves(met: Met) -> None:
    session = met.meet(3, claim_token="t")
    witness = met.meet(3, token=session.welcome.token)
    witness.send(Frame(LeaseMessage.GONE, 4))
    assert heard(witness) and not met.proof, "of another generation"
    witness.send(Frame(LeaseMessage.GONE, 3))
    assert heard(witness) and "process is gone" in met.proof


def test_a_newer_session_is_not_proven_gone_by_an_older_ones_witness(met: Met) -> None:
    session = met.meet(3)
    token = session.welcome.token
    witness = met.meet(3, token=token)
    met.meet(3)  # without an arbiter the generation is the same, and nothing but the token tells them apart
    with contextlib.suppress(ColoError):
        witness.send(Frame(LeaseMessage.GONE, 3))
        heard(witness)
    assert not met.proof
    with pytest.raises(Refused, match="that session is over"):
        met.meet(3, token=token)


def test_a_proof_from_one_that_was_not_met_is_no_proof_and_many_do_not_shut_others_out_for_good(met: Met) -> None:
    session = met.meet(3)
    raw = connect(met.listener.address, 5)
    with raw:
        raw.send(encode(Frame(LeaseMessage.GONE, 3)), timeout_s=10)
        assert raw.receive(1, timeout_s=10) == b""
    assert not met.proof and any("has not met" in notice for notice in met.notices)
    crowd = []
    for _ in range(2 * CONNECTIONS_MAX):
        with contextlib.suppress(ColoError):
            crowd.append(met.meet(3, token=session.welcome.token))
    assert len(crowd) < CONNECTIONS_MAX
    for each in crowd:
        each.close()
    until(lambda: _meets(met, session.welcome.token), "room again")


def _meets(met: Met, token: str) -> bool:
    with contextlib.suppress(ColoError):
        met.meet(3, token=token).close()
        return True
    return False
