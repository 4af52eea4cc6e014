"""The control socket of a running session: one JSON object a line, asked and answered.

Requests: ``{"command": "status"}``, ``{"command": "failover"}``. Answers: ``{"return": …}`` or ``{"error": "…"}``. The
socket has mode 0600 in a directory of mode 0700: whoever can open it may command the session.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from colo import errors
from colo.errors import ColoError, Interrupted, Unsupported

SOCKET_NAME = "control.sock"
LINE_LIMIT_BYTES = 4096
ANSWER_LIMIT_BYTES = 1 << 20
CLIENT_LIMIT = 16


class ControlServer:
    """Answers requests on ``path`` with ``commands``: name to function without arguments returning something for JSON."""

    def __init__(self, path: Path, commands: Mapping[str, Callable[[], Any]]) -> None:
        self.path = path
        self._commands = commands
        self._slots = threading.BoundedSemaphore(CLIENT_LIMIT)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)  # the session's lock says that nobody else's is live
        try:
            self._socket.bind(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise Unsupported(f"control socket {path}: {error}; a shorter --ram-dir may help") from error
        path.chmod(0o600)
        self._socket.listen(4)
        threading.Thread(target=self._serve, name="colo-control", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._answer, args=(client,), name="colo-control-client", daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError, ValueError):
                client.settimeout(30)
                stream = client.makefile("rwb")
                while line := stream.readline(LINE_LIMIT_BYTES):
                    stream.write(json.dumps(self._run(line)).encode() + b"\n")
                    stream.flush()
        finally:
            self._slots.release()

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
        """Stop answering and remove the socket."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.path.unlink(missing_ok=True)


def ask(path: Path, command: str, *, timeout_s: float = 10.0) -> Any:
    """Send ``command`` to the session whose control socket is ``path`` and return its answer.

    Raises the session's own error (its class and message), or ColoError saying that no session listens there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(os.fspath(path))
            client.sendall(json.dumps({"command": command}).encode() + b"\n")
            answer = json.loads(client.makefile("rb").readline(ANSWER_LIMIT_BYTES) or b"null")
        except TimeoutError:
            raise ColoError(f"the session at {path} did not answer within {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise ColoError(f"no session answers at {path} ({error}); is its --ram-dir right, and is it running?") from error
    if not isinstance(answer, dict) or ("return" not in answer and "error" not in answer):
        raise ColoError(f"the session at {path} closed the connection without an answer")
    if "error" in answer:
        kind = getattr(errors, str(answer.get("kind")), None)
        if not (isinstance(kind, type) and issubclass(kind, ColoError)):
            kind = ColoError
        raise kind(str(answer["error"]))
    return answer["return"]
