"""Sources that are none, and what a destination tells."""

from __future__ import annotations

import contextlib
import socket

import pytest

from colo.errors import ColoError, Interrupted, ProtocolError, StreamError
from colo.protocol import decode_return_path
from colo.stream.writer import command, configuration, file_header, ping
from colo.wire import Command, ReturnPath
from tests.session.migration.target import Target, wait_until
from tests.session.primary_vm import expected


@pytest.mark.parametrize(("stream", "error"), [
    (file_header() + configuration("colo") + ping(1), ProtocolError),
    (file_header() + configuration("colo") + command(Command.ENABLE_COLO), ProtocolError),
    (file_header() + configuration("colo") + command(Command.POSTCOPY_ADVISE), ProtocolError),
    (file_header() + configuration("colo") + b"\x00", StreamError),
    (file_header() + b"\x00", StreamError),
])
def test_a_source_that_is_none_is_refused(target: Target, stream: bytes, error: type[ColoError]) -> None:
    host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(stream)
        assert isinstance(target.join(), error), target.outcome
    assert target.vm.image() == expected(0, target.vm.pages)


def test_a_destination_that_gives_up_tells_the_source(target: Target) -> None:
    host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(file_header() + configuration("colo") + command(Command.OPEN_RETURN_PATH) + ping(9) + b"\x7f")
        sock.settimeout(10)
        answers = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(100):
                answers += data
        assert decode_return_path(answers[:8]).value == 9
        assert decode_return_path(answers[8:]) == (ReturnPath.SHUT, b"\x00\x00\x00\x01")
    assert isinstance(target.join(), StreamError)


def test_a_destination_is_stopped_while_it_waits(target: Target) -> None:
    wait_until(lambda: target.thread.is_alive())
    target.destination.stop()
    assert isinstance(target.join(), Interrupted)
