"""Who comes to a lease connection, or sits where the secondary was, and is nobody that it concerns."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from colo.errors import ChannelLost
from colo.lease.clock import now_ns
from colo.lease.connection import LeaseConnection, Refused
from colo.lease.frames import Frame, FrameReader, encode
from colo.lease.link import LeaseLink
from colo.lease.meeting import Meeting, Welcome
from colo.lease.promises import Promises
from colo.lease.served import CONNECTIONS_MAX
from colo.transport import SocketTransport
from colo.wire import LeaseMessage
from tests.strangers import STRANGER, needs_root, user

TOKEN = "f" * 32
MEETING = Meeting(vm="vm", generation=3, claim_token="t", lease_ms=1000.0)


def answer(there: socket.socket, *frames: Frame) -> bytes:
    """As a secondary would, or somebody in its place; what it was told."""
    there.settimeout(5)
    told = there.recv(1 << 16)
    if told:
        there.sendall(b"".join(map(encode, frames)))
    return told


def link_to(address: Any, **more: Any) -> LeaseLink:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    return LeaseLink((int(family), address), token=TOKEN, generation=3, lease_ns=10**9, who="fence", **more)


def hear(link: LeaseLink, until: int) -> list[Frame]:
    """What comes until so many frames are there, or the link hangs up."""
    heard: list[Frame] = []
    link.tend(now_ns())
    deadline = time.monotonic() + 5
    while link.sock is not None and len(heard) < until:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        heard += link.ready(now_ns())
    return heard


WELCOME = Frame(LeaseMessage.WELCOME, 3, text=Welcome(TOKEN, 1000.0).as_dict())
END = Frame(LeaseMessage.END, 3, value=4)


@needs_root
@pytest.mark.parametrize("allowed", [False, True])
def test_who_took_the_dead_secondarys_place_is_told_no_token_and_not_heard(allowed: bool) -> None:
    def take_the_place(parent: socket.socket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            parent.sendall(str(server.getsockname()[1]).encode())
            there, _ = server.accept()
            with there:
                parent.sendall(answer(there, WELCOME, END) or b"nothing")

    with user(STRANGER, take_the_place) as child:
        port = int(child.recv(16))
        link = link_to(("127.0.0.1", port), allow_uids=(STRANGER,) if allowed else ())
        heard = hear(link, 2)
        told = child.recv(1 << 16)
        if allowed:
            assert [frame.kind for frame in heard] == [LeaseMessage.WELCOME, LeaseMessage.END] and TOKEN.encode() in told
        else:
            assert not heard and told == b"nothing" and f"uid {STRANGER}" in link.said
        link.drop()


@pytest.mark.parametrize("frames", [
    (END, WELCOME), (Frame(LeaseMessage.WELCOME, 3, text=Welcome("0" * 32, 1000.0).as_dict()), END),
    (Frame(LeaseMessage.REFUSED, text={"reason": "over"}), END),
])
def test_before_the_sessions_own_welcome_nothing_is_heard(frames: tuple[Frame, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def once() -> None:
            there, _ = server.accept()
            with there:
                answer(there, *frames)

        thread = threading.Thread(target=once)
        thread.start()
        link = link_to(server.getsockname())
        heard = hear(link, 2)
        assert [frame.kind for frame in heard] == [LeaseMessage.REFUSED] * (frames[0].kind is LeaseMessage.REFUSED)
        assert link.sock is None and not link.met
        thread.join()


class QemuSecondary:
    """The secondary's end."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.promises = Promises(
            1000.0, required=True, arbiter=None, checkpoint=lambda: None, tell=self.told.append, wake=lambda: None)

    def connect(self) -> socket.socket:
        here, there = socket.socketpair()
        there.settimeout(5)
        self.promises.take(SocketTransport(here))
        return there


@pytest.fixture
def secondary() -> Iterator[QemuSecondary]:
    each = QemuSecondary()
    yield each
    each.promises.close()


def test_one_connection_is_met_once(secondary: QemuSecondary) -> None:
    before = threading.active_count()
    with secondary.connect() as there:
        with pytest.raises(ConnectionError):
            there.sendall(encode(Frame(LeaseMessage.MEET, 3, text=MEETING.as_dict())) * 2000)
            while there.recv(1 << 16):
                assert threading.active_count() <= before + 2
            raise ConnectionError  # its end
    assert any("for the second time" in text for text in secondary.told)


def test_silent_connections_make_room_for_the_fence(secondary: QemuSecondary) -> None:
    silent = [secondary.connect() for _ in range(2 * CONNECTIONS_MAX)]
    there = secondary.connect()
    met = LeaseConnection(SocketTransport(there, unix_path="/s"), MEETING)
    assert met.welcome.generation == 3
    for each in silent:
        each.close()
    there.close()


def test_a_meeting_that_no_number_holds_is_refused_in_words(secondary: QemuSecondary) -> None:
    for odd in ({"generation": -1}, {"lease_ms": 10**400}):
        with secondary.connect() as there:
            there.sendall(encode(Frame(LeaseMessage.MEET, 0, text=MEETING.as_dict() | odd)))
            answered = FrameReader().feed(there.recv(1 << 16))
            assert [frame.kind for frame in answered] == [LeaseMessage.REFUSED]
    secondary.promises.want()  # it was told of a generation once that it could not name
    secondary.promises.relent()


def test_a_secondary_that_hangs_up_or_refuses_is_told_so() -> None:
    for frames, error in (((), ChannelLost), ((Frame(LeaseMessage.REFUSED, text={"reason": 3}),), Refused)):
        here, there = socket.socketpair()
        with there:
            there.sendall(b"".join(map(encode, frames)))
            there.shutdown(socket.SHUT_WR)
            with pytest.raises(error):
                LeaseConnection(SocketTransport(here), MEETING)
