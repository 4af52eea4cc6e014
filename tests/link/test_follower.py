"""A connection is a guest of its session: what it has committed outlives it, what it has not ends with it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.epoch.committed import Committed
from colo.errors import ChannelLost, ColoError, ProtocolError, StorageError
from colo.link.follower import Follower
from colo.protocol import State
from colo.stream import Configuration
from colo.transport import SocketTransport
from tests.session.scripted_primary import DEADLINES, LIMITS, PAGE, READY, SEND, Peer, epoch, initial, live, page, raw


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path) as each:
        yield each


class Guest:
    """Another connection of the same session, followed on a thread."""

    def __init__(self, peer: Peer) -> None:
        self.sock, other = socket.socketpair()
        self.sock.settimeout(5)
        self.follower = Follower(SocketTransport(other), peer.ram, peer.last, deadlines=DEADLINES, limits=LIMITS)
        self.error: ColoError | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.follower.run()
        except ColoError as error:
            self.error = error

    def end(self) -> ColoError | None:
        self.sock.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.error


def test_what_a_connection_committed_outlives_it(peer: Peer) -> None:
    peer.begin()
    peer.checkpoint(raw(PAGE, 5), {PAGE: page(5)})
    peer.request()
    peer.send(SEND + live(raw(PAGE, 6)))  # not committed
    peer.sock.close()
    assert isinstance(peer.finish(), ChannelLost)
    assert peer.follower.machine.state is State.LOST
    peer.check()


def test_a_first_copy_that_is_never_whole_leaves_what_is_held(peer: Peer) -> None:
    peer.begin()
    peer.checkpoint(raw(PAGE, 5), {PAGE: page(5)})
    peer.sock.close()
    peer.finish()
    held = peer.last.committed
    guest = Guest(peer)
    guest.sock.sendall(initial(raw(0, 77))[:-40])
    guest.end()
    assert peer.last.committed is held
    peer.image.forget()
    peer.check()


def test_a_first_copy_that_is_whole_takes_its_place(peer: Peer) -> None:
    peer.begin()
    peer.checkpoint(raw(PAGE, 5), {PAGE: page(5)})
    peer.sock.close()
    peer.finish()
    guest = Guest(peer)
    guest.sock.sendall(initial())
    assert guest.sock.recv(len(READY)) == READY
    guest.end()
    peer.number = 0
    peer.memory["pc.ram"][PAGE : 2 * PAGE] = page(1)
    peer.check()
    guest.follower.close()


def test_a_message_that_fits_no_row_ends_it_by_the_table(peer: Peer) -> None:
    peer.begin()
    peer.send(SEND)
    assert isinstance(peer.finish(), ProtocolError)
    assert peer.follower.machine.state is State.LOST
    assert peer.follower.sock.fileno() == -1
    peer.check()


class Sink:
    """A part of each checkpoint that only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int | None]] = []
        self.refuses: set[int] = set()
        self.breaks = False

    def prepare(self, number: int) -> None:
        if number in self.refuses:
            raise StorageError(f"no place for {number}")
        self.told.append(("prepare", number))

    def commit(self, number: int) -> None:
        if self.breaks:
            self.breaks = False
            raise KeyboardInterrupt
        self.told.append(("commit", number))

    def drop(self, number: int) -> None:
        self.told.append(("drop", number))

    def recover(self) -> None:
        self.told.append(("recover", None))


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[tuple[Peer, Sink]]:
    """A connection whose checkpoints have another part beside RAM."""
    sink = Sink()
    with Peer(tmp_path, sinks=[sink]) as each:
        yield each, sink


def test_every_sink_is_told_of_each_boundary(joined: tuple[Peer, Sink]) -> None:
    peer, sink = joined
    peer.begin()
    peer.checkpoint(raw(PAGE, 5), {PAGE: page(5)})
    assert sink.told == [("prepare", 0), ("commit", 0), ("prepare", 1), ("commit", 1)]
    peer.request()
    peer.sock.close()
    peer.finish()
    assert sink.told[4:] == [("drop", 2)]
    peer.check()


def test_what_one_sink_refuses_is_committed_by_none(joined: tuple[Peer, Sink]) -> None:
    peer, sink = joined
    sink.refuses = {2}
    peer.begin()
    peer.checkpoint(raw(PAGE, 5), {PAGE: page(5)})
    peer.request()
    peer.send(epoch(raw(PAGE, 6), 2))
    assert isinstance(peer.finish(), StorageError)
    assert sink.told[-1] == ("drop", 2) and ("commit", 2) not in sink.told
    peer.check()


def test_what_was_decided_is_not_dropped_wherever_the_commit_was_cut(joined: tuple[Peer, Sink]) -> None:
    peer, sink = joined
    peer.begin()
    sink.breaks = True
    peer.request()
    peer.send(epoch(raw(PAGE, 6), 1))
    assert isinstance(peer.finish(), KeyboardInterrupt)
    assert ("commit", 1) in sink.told
    peer.number = 1
    peer.memory["pc.ram"][PAGE : 2 * PAGE] = page(6)
    peer.check()


def test_dropping_and_settling_may_be_asked_for_any_number_of_times(peer: Peer) -> None:
    peer.begin()
    peer.checkpoint(raw(PAGE, 5), {PAGE: page(5)})
    peer.sock.close()
    peer.finish()
    for _ in range(3):
        peer.last.drop(2)
        peer.ram.commit(1)
        peer.ram.settle()
    peer.check()


def test_what_an_earlier_process_decided_on_is_what_is_held(joined: tuple[Peer, Sink]) -> None:
    peer, sink = joined
    earlier = Committed(41, Configuration(0, "pc-test"), 2, b"", (), 0)
    peer.last.recover(earlier)
    assert peer.last.committed is earlier and sink.told == [("recover", None)]
