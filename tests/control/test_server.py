"""The control socket: whose it is, what it answers, and what it says at the end."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from colo.control.client import ANSWER_LIMIT_BYTES, ControlClient, ask
from colo.control.server import ControlServer
from colo.errors import ChannelLost, ColoError, NoCheckpoint, Unsupported


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_only_its_owner_can_open_it(path: Path) -> None:
    before = os.umask(0)
    try:
        server = ControlServer(path, {"status": dict})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.close()
    assert not path.exists()


def test_many_questions_on_one_connection(path: Path) -> None:
    server = ControlServer(path, {"status": lambda: {"n": 1}, "fail": _fail})
    with ControlClient(path) as client:
        for _ in range(3):
            assert client.ask("status") == {"n": 1}
            with pytest.raises(NoCheckpoint, match="there is none"):
                client.ask("fail")
    server.close()


def _fail() -> None:
    raise NoCheckpoint("there is none")


def test_who_is_connected_hears_the_last_status(path: Path) -> None:
    state = ["protecting"]
    server = ControlServer(path, {"status": lambda: {"state": state[0]}})
    with ControlClient(path) as client, ControlClient(path) as silent:
        assert client.ask("status") == {"state": "protecting"}
        assert silent.ask("status") == {"state": "protecting"}
        state[0] = "running"
        server.close()
        for one in (client, silent):
            one.wait(10)
            with pytest.raises(ChannelLost, match="ended"):
                one.ask("status")
            assert one.last_words == {"state": "running"}


def test_an_answer_under_way_is_given_before_the_end(path: Path) -> None:
    """Who asked for a failover is not to lose its answer to the session's end, which it brought about."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(20)
        return "done"

    server = ControlServer(path, {"slow": slow})
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(ask(path, "slow", timeout_s=30)))
    asking.start()
    assert begun.wait(20)
    closing = threading.Thread(target=server.close)
    closing.start()
    go_on.set()
    closing.join(20)
    asking.join(20)
    assert answers == ["done"]


def test_a_dead_session_s_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert path.exists()
    server = ControlServer(path, {"status": lambda: 2})
    assert ask(path, "status") == 2
    server.close()


def test_a_living_session_s_socket_is_not_taken(path: Path) -> None:
    server = ControlServer(path, {"status": lambda: 1})
    with pytest.raises(Unsupported, match="it is in use"):
        ControlServer(path, {"status": lambda: 2})
    assert ask(path, "status") == 1
    server.close()


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(Unsupported, match="no socket"):
        ControlServer(path, {})
    assert path.read_text() == "precious"


@pytest.mark.parametrize("place", ["missing/control.sock", "x" * 200])
def test_a_place_that_cannot_be_is_refused_with_advice(tmp_path: Path, place: str) -> None:
    with pytest.raises(Unsupported, match="shorter path"):
        ControlServer(tmp_path / place, {})


def test_an_answer_that_is_too_long_is_an_error_that_says_so(path: Path) -> None:
    server = ControlServer(path, {"all": lambda: "x" * ANSWER_LIMIT_BYTES, "status": lambda: 1})
    with ControlClient(path) as client:
        with pytest.raises(ColoError, match="bytes, 1048576 fit"):
            client.ask("all")
        assert client.ask("status") == 1
    server.close()


def test_a_status_that_fails_at_the_end_does_not_hold_it_up(path: Path) -> None:
    server = ControlServer(path, {"status": _fail})
    with ControlClient(path) as client:
        server.close()
        with pytest.raises(ChannelLost):
            client.ask("status")
        assert client.last_words is None
    assert not path.exists()


def test_what_another_has_put_in_its_place_is_left_there(path: Path) -> None:
    server = ControlServer(path, {"status": lambda: 1})
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        server.close()
        assert path.exists()
