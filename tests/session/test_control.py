"""The control socket: whose it is, what it answers, and what it says at the end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from colo.control.client import ANSWER_LIMIT_BYTES, ControlClient, ask
from colo.control.server import ControlServer
from colo.errors import ChannelLost, ColoError, NoCheckpoint, StrangerRefused, Unsupported
from tests.strangers import STRANGER, as_user, needs_root, user


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
    with pytest.raises(Unsupported, match="another session answers there"):
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


def test_what_is_no_session_is_told(path: Path) -> None:
    with pytest.raises(ColoError, match="no session answers"):
        ask(path, "status")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()

        def answer() -> None:
            for line in (b"not json\n", json.dumps([1]).encode() + b"\n", b""):
                client, _ = other.accept()
                with client:
                    client.recv(4096)
                    client.sendall(line)

        thread = threading.Thread(target=answer)
        thread.start()
        for words in ("no session answers", "without an answer", "without an answer"):
            with pytest.raises(ColoError, match=words):
                ask(path, "status")
        thread.join(20)


@needs_root
def test_another_users_session_is_not_believed() -> None:
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    directory.chmod(0o755)
    path = directory / "control.sock"
    server = ControlServer(path, {"status": lambda: {"state": "running"}})
    try:
        os.chown(path, STRANGER + 1, -1)
        assert as_user(STRANGER + 1, lambda: ask(path, "status")) == 0, "root's is"
        server.close()
        directory.chmod(0o777)

        def lie(parent: socket.socket) -> None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
                path.chmod(0o777)
                sock.listen()
                parent.send(b"x")
                parent.recv(1)

        with user(STRANGER, lie) as child:
            child.recv(1)

            def be_told() -> None:
                with pytest.raises(StrangerRefused, match=f"uid {STRANGER}'s, not yours"):
                    ask(path, "status")

            assert as_user(STRANGER + 1, be_told) == 0
    finally:
        server.close()
        shutil.rmtree(directory)
