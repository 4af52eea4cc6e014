"""Channels through children and inherited descriptors; files."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from colo.errors import AddressError, ChannelError, ChannelLost, Interrupted
from colo.transport import ExecTransport, FileUri, connect, listen, open_file
from colo.transport import process as process_module


def test_a_child_is_a_channel_and_ends_with_it() -> None:
    with connect("exec:cat", 5) as sock:
        assert isinstance(sock, ExecTransport)
        child = sock.process
        sock.send(b"there and back", timeout_s=5)
        assert sock.receive(100, timeout_s=5) == b"there and back"
    assert child.returncode == 0


def test_a_child_that_stays_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "EXIT_GRACE_S", 0.1)
    sock = connect(f"exec:sleep 300 & echo $! > {tmp_path}/pid; echo up; wait", 5)
    assert sock.receive(10, timeout_s=5) == b"up\n"
    sock.close()
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                break
        except OSError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("it still runs")


def test_a_child_is_killed_at_once_when_its_channel_is_aborted() -> None:
    with connect("exec:trap '' TERM; echo up; sleep 300", 5) as sock:
        assert isinstance(sock, ExecTransport)
        assert sock.receive(10, timeout_s=20) == b"up\n"
        sock.abort()
        with pytest.raises(ChannelLost):
            sock.receive(1, timeout_s=20)
    assert sock.process.returncode == -signal.SIGKILL


def test_a_listener_on_a_child_gives_it_once() -> None:
    listener = listen("exec:echo hello")
    with pytest.raises(AddressError, match="has one connection"):
        listener.fileno()
    with listener.accept(5) as sock:
        assert sock.receive(100, timeout_s=5) == b"hello\n"
    thread = threading.Timer(0.1, listener.close)
    thread.start()
    with pytest.raises(Interrupted):
        listener.accept(30)
    thread.join()
    assert listener.address == "exec:echo hello"


def test_an_inherited_socket_is_a_channel() -> None:
    ours, theirs = socket.socketpair()
    number = theirs.detach()
    with ours, connect(f"fd:{number}", 5) as sock:
        assert sock.fileno() == number
        assert not os.get_inheritable(number)
        sock.send(b"x", timeout_s=5)
        assert ours.recv(1) == b"x"


def test_an_inherited_listening_socket_is_listened_on() -> None:
    with socket.socket() as raw:
        raw.bind(("127.0.0.1", 0))
        raw.listen()
        port = raw.getsockname()[1]
        number = raw.detach()
    with listen(f"fd:{number}") as listener:
        assert listener.address == f"tcp:127.0.0.1:{port}"
        with connect(listener.address, 5), listener.accept(5) as theirs:
            with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
                assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_an_inherited_connection_is_accepted_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, listen(f"fd:{theirs.detach()}") as listener, listener.accept(5) as sock:
        ours.sendall(b"x")
        assert sock.receive(1, timeout_s=5) == b"x"


def test_descriptors_that_are_no_channel_are_refused_and_stay_open(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="no such descriptor"):
        connect("fd:987654", 5)
    with open(tmp_path / "f", "w") as file:
        with pytest.raises(AddressError, match="is no socket"):
            connect(f"fd:{file.fileno()}", 5)
        os.fstat(file.fileno())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(AddressError, match="no stream socket"):
            connect(f"fd:{datagrams.fileno()}", 5)
        os.fstat(datagrams.fileno())
    with socket.socket() as listening:
        listening.listen()
        with pytest.raises(AddressError, match="is a listening socket"):
            connect(f"fd:{listening.fileno()}", 5)
        os.fstat(listening.fileno())


def test_files_are_written_privately_and_never_over_others(tmp_path: Path) -> None:
    uri = FileUri(str(tmp_path / "stream"))
    umask = os.umask(0)
    try:
        with open_file(uri, "write") as file:
            file.write(b"QEVM")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "stream").stat().st_mode) == 0o600
    with pytest.raises(AddressError, match="File exists"):
        open_file(uri, "write")
    with open_file(uri, "read") as file:
        assert file.read() == b"QEVM"
    with pytest.raises(AddressError, match="No such file"):
        open_file(FileUri(str(tmp_path / "none")), "read")


def test_a_file_is_no_channel() -> None:
    for attempt in (lambda: listen("file:/dev/null"), lambda: connect("file:/dev/null", 1)):
        with pytest.raises(AddressError, match="file"):
            attempt()


def test_a_command_that_cannot_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process_module.subprocess, "Popen", fail)
    with pytest.raises(ChannelError, match="cannot start exec:cat"):
        connect("exec:cat", 5)
