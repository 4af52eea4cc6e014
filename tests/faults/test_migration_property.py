"""A migration over a channel that is cut at any byte, in either direction.

After any cut at most one side runs, and the source's memory is what it was. With the return path, the side that runs is
the one that the source says; where it cannot say, it stands still; with an arbiter it always can.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.abc import BlockMemory
from colo.arbiter import init_arbiter
from colo.errors import ArbitrationError, ColoError
from colo.memory.trackers import probe
from colo.protocol.deadlines import Deadlines
from colo.session.migration import (
    MigrationDestination,
    MigrationDestinationConfig,
    MigrationSource,
    MigrationSourceConfig,
    VmPlace,
)
from colo.stream import StreamLimits
from tests.faults.test_primary_property import relay
from tests.session.primary_vm import PAGE, expected, write

PAGES = [4, 2]
LIMITS = StreamLimits(quiet_ms=20.0)
DEADLINES = Deadlines(message_s=2.0, progress_s=2.0, epoch_s=5.0)
TRACKERS = [result.name for result in probe() if result.available and result.name in ("pagemap", "shadow")]


class TurnVm:
    """Writes when it is told to, and when it is resumed. Knows the VM at the other side, to see that both never run."""

    def __init__(self, *, running: bool) -> None:
        self.memory = BlockMemory.allocate({"ram": PAGES[0] * PAGE, "rom/aux": PAGES[1] * PAGE})
        self.views = [block.view() for block in self.memory.blocks]
        self.turn = 0
        self.running = running
        self.other: TurnVm | None = None
        self.both_ran = False
        self.lock = threading.Lock()

    def advance(self) -> None:
        with self.lock:
            if self.running:
                self.turn += 1
                write(self.views, PAGES, self.turn)

    def pause(self) -> None:
        with self.lock:
            self.running = False

    def resume(self) -> None:
        assert self.other is not None
        if self.other.running and not self.running:
            self.both_ran = True
        self.running = True
        self.advance()

    def save_state(self) -> bytes:
        assert not self.running
        return struct.pack(">Q", self.turn)

    def load_state(self, state: memoryview) -> None:
        assert not self.running
        self.turn = struct.unpack(">Q", state)[0]

    def image(self) -> list[bytes]:
        return [bytes(view) for view in self.views]


@dataclass
class Ended:
    source: TurnVm
    target: TurnVm
    migration: MigrationSource
    place: VmPlace
    carried: list[int]
    error: ColoError | None


def migrate(budgets: list[int | None], arbiter: str = "none", **options: Any) -> Ended:
    """One migration through a relay that cuts when a direction has carried its budget."""
    source, target = TurnVm(running=True), TurnVm(running=False)
    source.other, target.other = target, source
    for _ in range(5):
        source.advance()
    for view in target.views:
        view[:] = b"\xee" * len(view)
    ours, near = socket.socketpair()
    carried = [0, 0]

    class Counting:
        """The relay's end that the source is at: what comes through makes the source's VM write."""

        def __init__(self, sock: socket.socket, which: int) -> None:
            self.sock, self.which = sock, which

        def fileno(self) -> int:
            return self.sock.fileno()

        def recv(self, size: int) -> bytes:
            data = self.sock.recv(size)
            if carried[self.which] == 0:
                source.advance()
            carried[self.which] += len(data)
            return data

        def sendall(self, data: bytes) -> None:
            self.sock.sendall(data)

        def close(self) -> None:
            self.sock.close()

    with MigrationDestination(target, MigrationDestinationConfig(
        "tcp:127.0.0.1:0", deadlines=DEADLINES, limits=LIMITS, arbiter=arbiter)) as destination:

        def arrive() -> None:
            with contextlib.suppress(ColoError):
                destination.run()

        arriving = threading.Thread(target=arrive, daemon=True)
        arriving.start()
        host, port = destination.address.removeprefix("tcp:").rsplit(":", 1)
        far = socket.create_connection((host, int(port)))
        relaying = threading.Thread(
            target=relay, args=((Counting(near, 0), Counting(far, 1)), budgets), daemon=True)
        relaying.start()
        fd = os.dup(ours.fileno())
        ours.close()
        error = None
        with MigrationSource(source, MigrationSourceConfig(
            f"fd:{fd}", deadlines=DEADLINES, limits=LIMITS, downtime_limit_ms=0, arbiter=arbiter, **options)) as migration:
            try:
                place = migration.run().vm
            except ColoError as raised:
                error, place = raised, migration.place
        # A cut before the first byte leaves the destination waiting for another source.
        relaying.join(10)
        destination.stop()
        arriving.join(10)
        assert not relaying.is_alive() and not arriving.is_alive()
    return Ended(source, target, migration, place, carried, error)


def check(ended: Ended, *, return_path: bool, arbiter: bool) -> None:
    source, target = ended.source, ended.target
    assert not source.both_ran and not target.both_ran
    assert not (source.running and target.running)
    assert source.image() == expected(source.turn, PAGES)
    if target.running:
        assert target.turn == source.turn + 1  # it took one when it was resumed
        assert target.image() == expected(target.turn, PAGES)
    for part in ended.migration._pages.tracker.parts:  # type: ignore[attr-defined]
        assert not part.started
    if ended.place is VmPlace.HERE:
        assert source.running and not target.running
    elif ended.place is VmPlace.THERE:
        assert not source.running
        assert target.running or not return_path
    else:
        assert not source.running
        assert isinstance(ended.error, ArbitrationError)
        assert not arbiter
        ended.migration.decide(destination_runs=target.running)
        assert source.running != target.running


def one(direction: int, cut: int | None, *, tracker: str, return_path: bool, arbiter: bool, xbzrle: Any) -> Ended:
    budgets: list[int | None] = [None, None]
    budgets[direction] = cut
    with tempfile.TemporaryDirectory() as directory:
        init_arbiter(f"file:{directory}", vm="test")
        ended = migrate(
            budgets, f"file:{directory}" if arbiter else "none", tracker=tracker, return_path=return_path, xbzrle=xbzrle)
    check(ended, return_path=return_path, arbiter=arbiter)
    return ended


MODES = [(True, False), (True, True), (False, False)]


@pytest.mark.parametrize(("return_path", "arbiter"), MODES, ids=["return-path", "arbiter", "no-return-path"])
def test_uncut_it_arrives(return_path: bool, arbiter: bool) -> None:
    ended = one(0, None, tracker="auto", return_path=return_path, arbiter=arbiter, xbzrle=None)
    assert ended.place is VmPlace.THERE and ended.target.running


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    direction=st.integers(0, 1), cut=st.one_of(st.integers(1, 500), st.integers(1, 40_000)),
    tracker=st.sampled_from(TRACKERS), mode=st.sampled_from(MODES), xbzrle=st.sampled_from([None, "shadow", 64 << 10]),
)
def test_any_cut_leaves_at_most_one_side_running(direction: int, cut: int, tracker: str, mode: Any, xbzrle: Any) -> None:
    one(direction, cut, tracker=tracker, return_path=mode[0], arbiter=mode[1], xbzrle=xbzrle)


@pytest.mark.parametrize("arbiter", [False, True])
def test_a_cut_at_each_byte_around_the_end_and_of_each_answer(arbiter: bool) -> None:
    whole = one(0, None, tracker="auto", return_path=True, arbiter=arbiter, xbzrle=None).carried
    places = set()
    for cut in [*range(whole[0] - 300, whole[0], 10), *range(whole[0] - 12, whole[0])]:
        places.add(one(0, cut, tracker="auto", return_path=True, arbiter=arbiter, xbzrle=None).place)
    for cut in range(1, whole[1] + 1):
        places.add(one(1, cut, tracker="auto", return_path=True, arbiter=arbiter, xbzrle=None).place)
    assert places >= {VmPlace.HERE, VmPlace.THERE if arbiter else VmPlace.UNDECIDED}


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("return_path", "arbiter"), MODES, ids=["return-path", "arbiter", "no-return-path"])
def test_a_cut_at_every_byte(return_path: bool, arbiter: bool) -> None:
    whole = one(0, None, tracker="auto", return_path=return_path, arbiter=arbiter, xbzrle=None).carried
    for cut in range(1, whole[0] + 1, 3):
        one(0, cut, tracker="auto", return_path=return_path, arbiter=arbiter, xbzrle=None)
