"""A destination by hand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

from colo.protocol import encode_return_path
from colo.session.migration import MigrationSource, MigrationSourceConfig
from colo.wire import DIGEST_BYTES, HELLO, HELLO_COLO, LAST_WORD_MIN, ReturnPath
from tests.session.migration.target import QUICK


class Peer:
    """A destination by hand: reads everything, says what it is told."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.to = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        self.got = bytearray()

    def accept(self) -> socket.socket:
        self.listener.settimeout(10)
        sock, _ = self.listener.accept()
        sock.settimeout(10)
        return sock

    def serve(self, say: Callable[[socket.socket, bytes], bool]) -> threading.Thread:
        def run() -> None:
            with self.accept() as sock, contextlib.suppress(OSError):
                while data := sock.recv(1 << 16):
                    self.got += data
                    if say(sock, data):
                        return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


def colo_until_the_end(sock: socket.socket, got: bytearray, state: dict[str, int]) -> bool:
    """Answer each PING as a colo destination does; returns whether the whole stream is here."""
    while (at := got.find(b"\x08\x00\x02\x00\x04", state["at"])) >= 0 and len(got) >= at + 9:
        number = int.from_bytes(got[at + 5 : at + 9], "big")
        sock.sendall(encode_return_path(ReturnPath.PONG, number | HELLO_COLO if number == HELLO else number))
        if number >= LAST_WORD_MIN:
            state["word"] = number
        state["at"] = at + 9
    return "word" in state and got[:-DIGEST_BYTES].endswith(b"}]}" + state["word"].to_bytes(4, "big"))


def stream_of(vm: Any) -> bytes:
    """A whole migration, as a destination gets it."""
    peer = Peer()
    state = {"at": 0}

    def say(sock: socket.socket, data: bytes) -> bool:
        if colo_until_the_end(sock, peer.got, state):
            sock.sendall(encode_return_path(ReturnPath.SHUT, 0))
            return True
        return False

    thread = peer.serve(say)
    with MigrationSource(vm, MigrationSourceConfig(peer.to, deadlines=QUICK)) as it:
        it.run()
    thread.join(10)
    peer.listener.close()
    return bytes(peer.got)
