"""Asking a running session over its control socket; see :mod:`colo.control.server`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any, Self

from colo import errors
from colo.control import ANSWER_LIMIT_BYTES
from colo.errors import ChannelLost, ColoError, StrangerRefused
from colo.transport.peers import peer_uid
from colo.wake import wait_ready

__all__ = ["ANSWER_LIMIT_BYTES", "ControlClient", "ask"]


class ControlClient:
    """A connection to the session whose control socket is ``path``, for any number of questions.

    Raises ColoError when no session listens there, StrangerRefused when it is another user's: only root asks everybody's.
    """

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        self.path = path
        self.last_words: Any = None
        """Its last status, when the session closed while this was connected."""
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise ColoError(f"no session answers at {path} ({error}); is the path right, and is it running?") from error
        uid = peer_uid(self._socket)
        if os.geteuid() and uid not in (0, os.geteuid()):
            self._socket.close()
            raise StrangerRefused(
                f"what answers at {path} is uid {uid}'s, not yours (uid {os.geteuid()}) nor root's: name your own session's, "
                "or ask as its user")
        self._stream = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        self._socket.close()

    def ask(self, command: str) -> Any:
        """The session's answer. Raises the session's own error (its class and message), ChannelLost when it closed the
        connection (see :attr:`last_words`), ColoError when it is silent for ``timeout_s``."""
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its last words may still be there to read
                self._socket.sendall(json.dumps({"command": command}).encode() + b"\n")
            answer = json.loads(self._stream.readline(ANSWER_LIMIT_BYTES) or b"null")
        except TimeoutError:
            raise ColoError(f"the session at {self.path} did not answer within {self._timeout_s:g} s") from None
        except ConnectionError:
            answer = None
        except (OSError, ValueError) as error:
            raise ColoError(f"no session answers at {self.path} ({error}); is the path right, and is it running?") from error
        if isinstance(answer, dict) and "ended" in answer:
            self.last_words = answer["ended"]
            raise ChannelLost(f"the session at {self.path} ended")
        if not isinstance(answer, dict) or ("return" not in answer and "error" not in answer):
            raise ChannelLost(f"the session at {self.path} closed the connection without an answer")
        if "error" in answer:
            kind = getattr(errors, str(answer.get("kind")), None)
            if not (isinstance(kind, type) and issubclass(kind, ColoError)):
                kind = ColoError
            raise kind(str(answer["error"]))
        return answer["return"]

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the session has something to say: that is, its end."""
        wait_ready((self._socket.fileno(),), seconds)


def ask(path: Path, command: str, *, timeout_s: float = 10.0) -> Any:
    """Ask once; raises as :class:`ControlClient` does."""
    with ControlClient(path, timeout_s=timeout_s) as client:
        return client.ask(command)
