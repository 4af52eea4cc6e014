"""Who is let in: the first that opens a stream, however many stand silent at the door; one at a time."""

from __future__ import annotations

import contextlib
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.errors import ArbitrationError, Interrupted, NoCheckpoint, StandbyError
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from colo.transport.admission import PENDING_LIMIT
from tests.session.scripted_primary import DEADLINES, LIMITS, READY, initial


class Running:
    """A secondary without a stand-by, in a thread."""

    def __init__(self, config: QemuSecondaryConfig) -> None:
        self.notices: list[str] = []
        self.secondary = QemuSecondary(config, on_event=self._event)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _event(self, kind: str, data: Any) -> None:
        if kind == "notice":
            self.notices.append(data)

    def _run(self) -> None:
        try:
            self.secondary.run()
        except BaseException as error:
            self.error = error

    def connect(self) -> socket.socket:
        host, port = self.secondary.address.removeprefix("tcp:").rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=5)

    def finish(self) -> BaseException:
        self.thread.join(10)
        assert not self.thread.is_alive() and self.error is not None
        return self.error


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    each = Running(QemuSecondaryConfig("tcp:127.0.0.1:0", tmp_path / "ram", deadlines=DEADLINES, limits=LIMITS))
    yield each
    each.secondary.stop()
    each.thread.join(10)
    committed = each.secondary.committed
    each.secondary.close()
    assert (tmp_path / "ram").exists() == (committed is not None), "what was committed stays, and nothing else"


def open_stream(sock: socket.socket) -> None:
    sock.sendall(initial())
    assert sock.recv(4) == READY


def test_silent_connections_do_not_keep_a_primary_out(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(PENDING_LIMIT + 3):
            stack.enter_context(running.connect())
        began = time.monotonic()
        open_stream(stack.enter_context(running.connect()))
        assert time.monotonic() - began < DEADLINES.handshake_s * 3
        assert running.secondary.status()["checkpoint"] == 0


def test_a_silent_connection_is_shown_the_door(running: Running) -> None:
    with running.connect() as sock:
        assert sock.recv(1) == b""
    with running.connect() as sock:
        sock.sendall(b"QE")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert len(running.notices) == 2 and all("nothing within" in notice for notice in running.notices)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\0", b"QEVX", b"QEV\0"])
def test_a_stranger_is_refused_and_the_door_stays_open(running: Running, data: bytes) -> None:
    with running.connect() as sock:
        sock.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    with running.connect() as sock:
        open_stream(sock)
    assert any("not the start of a migration stream" in notice for notice in running.notices)
    assert isinstance(running.finish(), StandbyError)


def test_a_second_primary_is_refused_while_one_is_served(running: Running) -> None:
    with running.connect() as sock:
        open_stream(sock)
        with running.connect() as second:
            second.sendall(initial()[:8])
            with contextlib.suppress(ConnectionResetError):
                assert second.recv(1) == b""
        assert running.secondary.status()["checkpoint"] == 0
        assert any("follows a primary already" in notice for notice in running.notices)


def test_a_failover_without_a_checkpoint_is_refused(running: Running) -> None:
    with pytest.raises(NoCheckpoint):
        running.secondary.request_failover()
    with running.connect() as sock:
        open_stream(sock)
        with pytest.raises(StandbyError, match="no stand-by"):
            running.secondary.request_failover()


def test_a_takeover_needs_somebody_to_ask(tmp_path: Path) -> None:
    with pytest.raises(ArbitrationError, match="arbiter"):
        QemuSecondary(QemuSecondaryConfig("tcp:127.0.0.1:0", tmp_path / "ram", standby=["qemu-system-x86_64"]))
    assert list(tmp_path.iterdir()) == []


def test_a_primary_lost_before_the_first_commit_leaves_the_door_open(running: Running) -> None:
    for cut in (4, 100, 1000):
        with running.connect() as sock:
            sock.sendall(initial()[:cut])
            until = time.monotonic() + 10
            while running.secondary.state != "connected":  # whose socket this is can be told while it is there
                assert time.monotonic() < until
                time.sleep(0.005)
        while not any("nothing to resume from" in notice for notice in running.notices):
            assert time.monotonic() < until and running.thread.is_alive()
            time.sleep(0.01)
        running.notices.clear()
    with running.connect() as sock:
        open_stream(sock)
        assert running.secondary.status()["checkpoint"] == 0


def test_stopping_at_the_door(running: Running) -> None:
    with running.connect():
        running.secondary.stop()
        assert isinstance(running.finish(), Interrupted)


def test_a_unix_socket_is_private_and_stays_for_lease_connections(tmp_path: Path) -> None:
    path = tmp_path / "listen.sock"
    each = Running(QemuSecondaryConfig(f"unix:{path}", tmp_path / "ram", deadlines=DEADLINES, limits=LIMITS))
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            open_stream(sock)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for entry in (tmp_path / "ram").rglob("*"):
                assert stat.S_IMODE(entry.stat().st_mode) == (0o700 if entry.is_dir() else 0o600), entry
    finally:
        each.secondary.stop()
        each.thread.join(10)
        each.secondary.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "ram"], "the committed checkpoint stays"
