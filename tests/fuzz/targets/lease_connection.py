"""A lease connection's other end, on each of the three that hear one: the secondary's promises, the holder of a lease (a
fence), and whoever meets a secondary first. The first byte picks who hears it, and after which valid beginning; what follows
is the input's. Whatever it is: errors of the project's own, a connection that ends, and who heard it goes on."""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from colo.errors import ColoError, ProtocolError, StreamError
from colo.lease.clock import now_ns
from colo.lease.connection import LeaseConnection
from colo.lease.frames import Frame, FrameReader, encode
from colo.lease.holding import Holding
from colo.lease.meeting import Meeting, Welcome, refusal
from colo.lease.promises import Promises
from colo.lease.served import CONNECTIONS_MAX
from colo.protocol.fencing import Fence, FenceAction
from colo.transport import SocketTransport
from colo.wire import GENERATION_MAX, LEASE_FRAME_BYTES, LEASE_TEXT_BYTES_MAX, LeaseMessage

TOKEN = "f" * 32
GENERATION = 3
MEETING = Meeting(vm="vm", generation=GENERATION, claim_token="t", lease_ms=1000.0, who="a host")
WELCOME = Welcome(TOKEN, 1000.0, "", GENERATION, 7, True, "", "another")
PATIENCE_S = 10.0
THREADS_MORE = CONNECTIONS_MAX + 2
BEGINNINGS = (b"", encode(Frame(LeaseMessage.MEET, GENERATION, text=MEETING.as_dict())))
ANSWERS = (b"", encode(Frame(LeaseMessage.WELCOME, GENERATION, text=WELCOME.as_dict())))


def seeds() -> Iterator[bytes]:
    said = [
        Frame(LeaseMessage.RENEW, GENERATION, 1), Frame(LeaseMessage.GONE, GENERATION, text={"reason": "killed"}),
        Frame(LeaseMessage.STANDS, GENERATION, text={"reason": "é"}), Frame(LeaseMessage.ENDED, GENERATION, text={"reason": ""}),
        Frame(LeaseMessage.ALONE, GENERATION, value=4, text={"reason": "won"}),
    ]
    heard = [
        Frame(LeaseMessage.PROMISE, GENERATION, 1, 10**9), Frame(LeaseMessage.WANTS, GENERATION),
        Frame(LeaseMessage.STOP, GENERATION, value=4), Frame(LeaseMessage.END, GENERATION, value=4),
        Frame(LeaseMessage.RETURNED, GENERATION, value=4, text={"reason": "no disk"}),
        Frame(LeaseMessage.NOTICE, text={"notice": "no room"}), Frame(LeaseMessage.REFUSED, text={"reason": "no"}),
    ]
    for which in range(6):
        yield bytes((which,))
        for frame in (*said, *heard):
            yield bytes((which,)) + encode(frame)
        yield bytes((which,)) + b"".join(map(encode, (said if which < 2 else heard)))
        yield bytes((which,)) + BEGINNINGS[1] + ANSWERS[1]
        odd = {"generation": -1, "lease_ms": 10**30, "token": TOKEN, "vm": "\ud800", "version": 1, "checkpoint": 2**70}
        yield bytes((which,)) + encode(Frame(LeaseMessage.MEET, text=odd)) + encode(Frame(LeaseMessage.WELCOME, text=odd))


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    data = data[:100_000]
    check_frames(data[1:])
    who, beginning = divmod(data[0] % 6, 2)
    (hear_as_secondary, hear_as_holder, hear_as_first)[who](beginning, data[1:])


def check_frames(data: bytes) -> None:
    """The frames are the same however the bytes are cut, and what they say is taken or refused, field by field."""
    whole, failed = read(data, len(data) or 1)
    pieces, failed_too = read(data, 7)
    # At the first that is no frame, those before it in the same piece go with it.
    assert failed == failed_too and (failed or whole == pieces)
    for frame in pieces:
        refusal(frame.text).encode(errors="replace")
        for kind in (Meeting, Welcome):
            try:
                found = kind.of(frame.text)
            except ProtocolError:
                continue
            again = FrameReader().feed(encode(Frame(LeaseMessage.MEET, found.generation, text=found.as_dict())))
            assert kind.of(again[0].text) == found


def read(data: bytes, size: int) -> tuple[list[Frame], bool]:
    reader, frames = FrameReader(), []
    try:
        for at in range(0, len(data), size):
            frames += reader.feed(data[at : at + size])
            assert len(reader._bytes) <= LEASE_FRAME_BYTES + LEASE_TEXT_BYTES_MAX
    except StreamError as error:
        str(error)
        return frames, True
    return frames, False


@cache
def failures() -> list[str]:
    """What ended a thread that nobody waits for."""
    found: list[str] = []
    threading.excepthook = lambda failure: found.append(f"{failure.exc_type.__name__}: {failure.exc_value}")
    return found


def drain(sock: socket.socket) -> bytes:
    """What the other end says until it hangs up, which it has to."""
    said = bytearray()
    try:
        while data := sock.recv(1 << 16):
            said += data
            assert len(said) < 10_000_000
    except ConnectionError:
        pass
    return bytes(said)


def feed(sock: socket.socket, data: bytes) -> threading.Thread:
    def send() -> None:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def hear_as_secondary(beginning: int, data: bytes) -> None:
    before, failures()[:] = threading.active_count(), []
    told: list[str] = []
    promises = Promises(
        1000.0, required=True, arbiter=None, checkpoint=lambda: 7, tell=told.append, wake=lambda: None)
    try:
        here, there = socket.socketpair()
        with there:
            there.settimeout(PATIENCE_S)
            promises.take(SocketTransport(here))
            there.sendall(BEGINNINGS[beginning])
            if beginning:
                assert FrameReader().feed(there.recv(1 << 16))[0].kind is LeaseMessage.WELCOME
            feeder = feed(there, data)
            drain(there)
            feeder.join(PATIENCE_S)
            assert threading.active_count() <= before + THREADS_MORE
        json.dumps(promises.status())
        promises.claimed(GENERATION_MAX - 1)
        promises.returned(GENERATION_MAX - 1, "it would not run")
        assert 0 <= promises.alone < GENERATION_MAX
        until = time.monotonic() + PATIENCE_S
        while threading.active_count() > before + 1:  # meetings that were under way
            assert time.monotonic() < until
            time.sleep(0.001)
        assert promises._served._thread.is_alive() and not failures(), failures()
    finally:
        promises.close()
    assert not failures(), failures()


@cache
def listener() -> socket.socket:
    directory = Path(tempfile.mkdtemp(prefix="colo-fuzz-"))
    atexit.register(shutil.rmtree, directory)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.fspath(directory / "s"))
    sock.listen(4)
    return sock


def hear_as_holder(beginning: int, data: bytes) -> None:
    holding = Holding(
        Fence(GENERATION, 1_000_000_000), (socket.AF_UNIX, listener().getsockname()), token=TOKEN, who="fence")
    holding.fence.guarded = True
    holding.link.tend(now_ns())
    there, _ = listener().accept()
    feeder = None
    with there:
        there.settimeout(PATIENCE_S)
        until = time.monotonic() + PATIENCE_S
        while (sock := holding.link.sock) is not None:
            assert time.monotonic() < until, "it holds on to a connection that has ended"
            poller = select.poll()
            poller.register(sock, holding.link.events)
            poller.poll(PATIENCE_S * 1000)
            for action in holding.hear(now_ns()):
                if action is FenceAction.CERTIFY:
                    holding.certify(stands=True)
            if feeder is None and holding.link._token_sent:
                assert FrameReader().feed(there.recv(1 << 16))[0].kind is LeaseMessage.MEET
                feeder = feed(there, ANSWERS[beginning] + data)
        holding.tend(0)
    if feeder is not None:
        feeder.join(PATIENCE_S)
    holding.link.drop()
    for number in (holding.taken, holding.returned):
        assert 0 <= number < GENERATION_MAX
    assert holding.fence.lease.end_ns <= now_ns() + holding.fence.lease.lease_ns
    json.dumps([holding.said, holding.notice])


def hear_as_first(beginning: int, data: bytes) -> None:
    here, there = socket.socketpair()
    with there:
        feeder = feed(there, ANSWERS[beginning] + data)
        try:
            connection = LeaseConnection(SocketTransport(here), MEETING, PATIENCE_S)
            try:
                struct.pack(">Q", connection.welcome.generation)
                while connection.receive(PATIENCE_S) is not None:
                    pass
            finally:
                connection.close()
        except ColoError as error:
            str(error)
        feeder.join(PATIENCE_S)
