"""Asking a session: who is believed, and what is said when nobody, or somebody else, answers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from colo.control.client import ControlClient, ask
from colo.control.server import ControlServer
from colo.errors import ChannelLost, ColoError, NoCheckpoint, StrangerRefused
from tests.strangers import STRANGER, as_user, needs_root, user


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


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


def test_a_session_that_is_silent_is_given_up_in_time(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(os.fspath(path))
        silent.listen()
        with pytest.raises(ColoError, match=r"did not answer within 0\.05 s"):
            ask(path, "status", timeout_s=0.05)


def test_an_error_of_the_session_is_its_own_kind_and_one_of_no_known_kind_is_an_error(path: Path) -> None:
    answers = [
        {"error": "there is none", "kind": "NoCheckpoint"}, {"error": "odd", "kind": "SystemExit"}, {"error": "bare"},
        {"error": ["no", "text"], "kind": 7}]
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()

        def answer() -> None:
            client, _ = other.accept()
            with client:
                for each in answers:
                    client.recv(4096)
                    client.sendall(json.dumps(each).encode() + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with ControlClient(path) as client:
            with pytest.raises(NoCheckpoint, match="there is none"):
                client.ask("status")
            for words in ("odd", "bare", "no"):
                with pytest.raises(ColoError, match=words) as caught:
                    client.ask("status")
                assert type(caught.value) is ColoError
        thread.join(20)


def test_an_answer_without_end_is_not_read_for_ever(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()

        def answer() -> None:
            client, _ = other.accept()
            with client:
                try:
                    while True:
                        client.sendall(b"x" * (1 << 16))
                except OSError:
                    pass  # it was not listened to any more

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ColoError, match="no session answers"):
            ask(path, "status")
        thread.join(20)
        assert not thread.is_alive()


def test_waiting_ends_with_the_session_s_last_word_and_not_before(path: Path) -> None:
    server = ControlServer(path, {"status": lambda: 1})
    with ControlClient(path) as client:
        began = time.monotonic()
        client.wait(0.05)
        assert time.monotonic() - began >= 0.05
        closing = threading.Timer(0.05, server.close)
        closing.start()
        client.wait(60)
        with pytest.raises(ChannelLost, match="ended"):
            client.ask("status")
        closing.join(20)


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
