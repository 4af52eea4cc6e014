"""The control socket of a running session: one JSON object a line, asked and answered.

Requests: ``{"command": "status"}``, ``{"command": "failover"}``. Answers: ``{"return": …}`` or ``{"error": "…"}``. Who is
still connected when the session closes gets a last line, ``{"ended": …}`` with its last status. The socket has mode 0600:
whoever can open it may command the session.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from colo.control import ANSWER_LIMIT_BYTES
from colo.errors import ChannelError, ColoError, Interrupted, Unsupported
from colo.forked import keep_from_children
from colo.transport.unix import listen_unix
from colo.transport.uri import parse_unix

SOCKET_NAME = "control.sock"
ADVICE = "a shorter path in a directory of yours may help"
LINE_LIMIT_BYTES = 4096
CLIENT_LIMIT = 16
IDLE_S = 30.0
"""A client that asks nothing for so long is let go."""
FAREWELL_S = 1.0
"""Answers under way when the session closes may take so long."""


class ControlServer:
    """Answers requests on ``path`` with ``commands``: name to function without arguments returning something for JSON.

    Raises Unsupported when ``path`` cannot be a socket that is ours alone, or somebody listens there.
    """

    def __init__(self, path: Path, commands: Mapping[str, Callable[[], Any]]) -> None:
        self.path = path
        self._commands = commands
        self._slots = threading.BoundedSemaphore(CLIENT_LIMIT)
        self._clients: dict[socket.socket, threading.Lock] = {}
        """Each with what is held while it is answered."""
        self._clients_lock = threading.Lock()
        self._closed = False
        try:
            self._socket, self._name = listen_unix(parse_unix(str(path)), backlog=4)
        except ChannelError as error:
            raise Unsupported(f"control socket {path}: {error}; {ADVICE}") from error
        keep_from_children(self._socket)
        threading.Thread(target=self._serve, name="colo-control", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            keep_from_children(client)
            if not self._slots.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._answer, args=(client,), name="colo-control-client", daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        busy = threading.Lock()
        with self._clients_lock:
            if self._closed:  # it came while the session closed: nobody would end it any more
                client.close()
                self._slots.release()
                return
            self._clients[client] = busy
        try:
            with client, contextlib.suppress(OSError, ValueError):
                client.settimeout(IDLE_S)
                stream = client.makefile("rb")
                while line := stream.readline(LINE_LIMIT_BYTES):
                    with busy:
                        client.sendall(self._answer_line(line))
        finally:
            with self._clients_lock:
                del self._clients[client]
            self._slots.release()

    def _answer_line(self, line: bytes) -> bytes:
        answer = json.dumps(self._run(line)).encode() + b"\n"
        if len(answer) > ANSWER_LIMIT_BYTES:
            return json.dumps({"error": f"the answer has {len(answer)} bytes, {ANSWER_LIMIT_BYTES} fit"}).encode() + b"\n"
        return answer

    def _run(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
        except (ValueError, KeyError, TypeError):
            return {"error": f"unknown request; commands: {', '.join(sorted(self._commands))}"}
        try:
            return {"return": command()}
        except ColoError as error:
            return {"error": str(error), "kind": type(error).__name__}
        except FutureTimeout:
            return {"error": "not done in time; `colo status` shows how it went on"}
        except CancelledError:
            return {"error": "the session ended", "kind": Interrupted.__name__}
        except Exception as error:
            return {"error": f"the session failed at it: {type(error).__name__}: {error}"}

    def close(self) -> None:
        """Tell those who are connected how it ended, stop answering, and remove the socket."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._name.remove()
        with self._clients_lock:
            self._closed = True
            clients = list(self._clients.items())
        if not clients:
            return
        farewell = b""
        with contextlib.suppress(Exception):
            farewell = json.dumps({"ended": self._commands["status"]()}).encode() + b"\n"
        until = time.monotonic() + FAREWELL_S
        for client, busy in clients:
            free = busy.acquire(timeout=max(0.0, until - time.monotonic()))
            try:
                with contextlib.suppress(OSError):
                    if free:
                        client.send(farewell, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    client.shutdown(socket.SHUT_RDWR)
            finally:
                if free:
                    busy.release()
