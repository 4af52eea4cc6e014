"""A fence beside a process that never rests: it stops it when its lease is over, and tells what it has proven."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.errors import VmEnded
from colo.fence.fence import FenceHandle, FenceStatus, look_at_fence
from colo.fence.processes import thread_states
from colo.lease.connection import LeaseConnection, Refused
from colo.lease.meeting import Meeting
from colo.lease.promises import Promises
from colo.transport import listen
from colo.transport.door import Door

LEASE_MS = 500.0


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


class Pair:
    """A busy process with its fence, and the secondary's end that promises."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.listener = listen("tcp:127.0.0.1:0", backlog=4)
        self.notices: list[str] = []
        self.promises = Promises(
            LEASE_MS, required=True, arbiter=None, checkpoint=lambda: None, tell=self.notices.append, wake=lambda: None)
        self.door = Door(
            self.listener, handshake_s=5, refused=self.notices.append,
            lease=self.promises.take, bars=self.promises.bars)
        self.changes: list[FenceStatus | None] = []
        connection = LeaseConnection.open(self.listener.address, self.meeting())
        self.fence = FenceHandle.start(self.process.pid, directory, self.changes.append)
        self.fence_pid = self.fence.status().fence_pid
        assert self.promises.bars()
        self.fence.lease(
            connection.peer, token=connection.welcome.token, generation=3, lease_ms=connection.welcome.lease_ms, notes={"a": 1})
        connection.close()
        until(lambda: self.fence.status().state == "LEASED", "the first promise")
        assert not self.promises.bars()

    @staticmethod
    def meeting(generation: int = 3, **more: object) -> Meeting:
        return Meeting(vm="vm", generation=generation, claim_token="t", lease_ms=LEASE_MS, **more)  # type: ignore[arg-type]

    @property
    def stands(self) -> bool:
        return set(thread_states(self.process.pid)) == {"T"}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.fence.close()
        for end in (self.door.close, self.promises.close, self.listener.close):
            end()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.fence_pid, signal.SIGKILL)


@pytest.fixture
def pair() -> Iterator[Pair]:
    directory = Path(tempfile.mkdtemp(prefix="colo-", dir="/dev/shm"))
    each = Pair(directory)
    yield each
    each.close()
    shutil.rmtree(directory)


def test_it_stops_the_process_when_nobody_promises_and_lets_it_go_on_when_it_is_the_only_one(pair: Pair) -> None:
    pair.promises.close()
    until(lambda: pair.fence.status().state == "OVER", "the end of the lease")
    assert pair.stands
    pair.fence.alone(4, "won")
    until(lambda: not pair.stands, "going on")
    assert pair.fence.status().state == "ALONE"


def test_it_outlives_its_guard_and_the_next_guard_finds_it(pair: Pair) -> None:
    pair.fence.close()
    time.sleep(2 * LEASE_MS / 1000)
    assert not pair.stands, "it goes on renewing"
    found = FenceHandle.find(pair.directory, pair.changes.append)
    assert found is not None and found.last is not None
    assert (found.last.state, found.last.notes, found.last.fence_pid) == ("LEASED", {"a": 1}, pair.fence_pid)
    pair.fence = found


def test_who_only_looks_is_no_guard_and_changes_nothing(pair: Pair) -> None:
    for _ in range(20):
        seen = look_at_fence(pair.directory)
        assert seen is not None and (seen.state, seen.notes, seen.fence_pid) == ("LEASED", {"a": 1}, pair.fence_pid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as rude:
        rude.connect(str(pair.directory / "look.sock"))
        with contextlib.suppress(BrokenPipeError):  # it is told, and let go
            rude.send(b'{"command": "end", "reason": "x"}')
    assert pair.fence.status().state == "LEASED" and not pair.fence.lost, "its guard is still its guard"
    pair.fence.close()
    pair.promises.notice("no room")
    until(lambda: getattr(look_at_fence(pair.directory), "notice", "") == "no room", "the look sees what is new")
    pair.promises.want()
    assert pair.promises.wait_to_run(
        stopping=lambda: False, lost=lambda: None, told=pair.notices.append).startswith("the other side proves")
    seen = look_at_fence(pair.directory)
    assert seen is not None and seen.state == "STANDS"
    os.kill(pair.fence_pid, signal.SIGKILL)
    until(lambda: look_at_fence(pair.directory) is None, "no fence")


def test_without_a_guard_it_answers_for_the_primary(pair: Pair) -> None:
    pair.fence.close()
    pair.promises.want()
    assert pair.promises.wait_to_run(
        stopping=lambda: False, lost=lambda: None, told=pair.notices.append).startswith("the other side proves")
    assert pair.stands


def test_a_vm_that_was_ended_is_not_run_by_who_waits_to(pair: Pair) -> None:
    """Its channel was gone first, so it is waited for already: that it stands still for good is proof too, and not that."""
    pair.promises.want()
    waiting = threading.Timer(0.1, lambda: pair.fence.ended("its guest powered it off"))
    waiting.start()
    with pytest.raises(VmEnded, match=r"ended at the primary.*its guest powered it off"):
        pair.promises.wait_to_run(stopping=lambda: False, lost=lambda: None, told=pair.notices.append)
    waiting.join()


def test_a_process_that_is_gone_is_proven_gone(pair: Pair) -> None:
    pair.fence.close()
    pair.process.kill()
    pair.process.wait()
    until(lambda: "process is gone" in str(pair.promises.status()["proof"]), "the proof")


def test_a_guard_is_asked_why_a_process_ended(pair: Pair) -> None:
    pair.process.kill()
    pair.process.wait()
    until(lambda: pair.fence.status().state == "GONE", "its end")
    pair.fence.ended("its guest powered off")
    until(lambda: pair.promises.ended == "its guest powered off", "the word")


def test_whoever_claims_has_the_process_stopped_and_then_ended(pair: Pair) -> None:
    pair.promises.claimed(4)
    until(lambda: pair.stands, "standing still")
    assert pair.fence.status().taken == 4
    pair.promises.about_to_run(4)
    assert pair.process.wait(10) == -signal.SIGKILL


def test_a_stopped_process_goes_on_when_it_is_promised_again(pair: Pair) -> None:
    os.kill(pair.fence_pid, signal.SIGSTOP)
    time.sleep(1.5 * LEASE_MS / 1000)
    os.kill(pair.fence_pid, signal.SIGCONT)  # its lease is over: it stops the process first, then asks anew
    until(lambda: pair.fence.status().state == "LEASED", "a new promise")
    until(lambda: not pair.stands, "going on")


def test_strangers_are_refused(pair: Pair) -> None:
    with pytest.raises(Refused, match="that session is over"):
        LeaseConnection.open(pair.listener.address, Meeting(token="0" * 32))
    with pytest.raises(Refused, match="do not see the same arbiter"):
        LeaseConnection.open(pair.listener.address, pair.meeting(4, arbiter_id="f" * 32))
    with pytest.raises(Refused, match="it is over"):
        LeaseConnection.open(pair.listener.address, pair.meeting(2))
    assert pair.fence.status().state == "LEASED"
