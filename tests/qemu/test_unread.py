"""What a broken monitor still held is read once, and its socket is let go."""

from __future__ import annotations

import socket
from pathlib import Path

from colo.qemu.qmp.unread import Unread


def test_events_in_the_buffer_and_in_the_socket_come_in_order() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        unread = Unread(ours)
        theirs.sendall(b'"A"}\n{"return": {}}\nnot json\n[1]\n{"event": "B", "data": {}}\n{"event": "C"')
        ours.close()
        assert [event["event"] for event in unread.events(b'{"event": "first"}\n{"event": ')] == ["first", "A", "B"]
        assert unread.events(b'{"event": "again"}\n') == []
        assert theirs.recv(1) == b""


def test_nothing_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert Unread(ours).events(b"") == []
        unread = Unread(ours)
        unread.close()
        unread.close()
        assert unread.events(b'{"event": "late"}\n') == []


def test_a_socket_that_nobody_reads_is_released(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(str(tmp_path / "s"))
        served, _ = listener.accept()
        with served:
            unread = Unread(ours)
            ours.close()
            served.setblocking(False)
            try:
                served.recv(1)
            except BlockingIOError:
                pass  # still connected, by the second descriptor
            else:
                raise AssertionError("it was closed")
            unread.close()
            assert served.recv(1) == b""
