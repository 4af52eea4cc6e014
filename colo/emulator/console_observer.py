"""The world's end of a console's line: keeps what it heard, whoever said it, and finds every contradiction.

It takes a byte only at its own next position. Bytes sent again must be those it has; a gap is a line lost; a machine that
takes over must know of every byte that is here already, or output has left before its checkpoint was committed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from colo.emulator.console_link import ACKNOWLEDGEMENT, DATA, DATA_MAX_BYTES, HELLO, MAGIC

TRANSCRIPT_MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Heard:
    """Bytes as they came: ``position`` up to ``end``, of which those from ``fresh`` on were new."""

    generation: int
    position: int
    fresh: int
    end: int
    at_s: float


class ConsoleObserver:
    """Listens at the Unix socket ``path``. ``on_line(generation, line)`` is called with each whole line as it becomes known,
    in order, from the connections' threads, one at a time."""

    def __init__(self, path: Path, on_line: Callable[[int, bytes], None] = lambda generation, line: None) -> None:
        self.transcript = bytearray()
        """All that was said, once."""
        self.heard: list[Heard] = []
        self.faults: list[str] = []
        """What cannot have happened if nothing was lost, doubled or let out too early."""
        self.repeated_bytes = 0
        self._on_line = on_line
        self._shown = 0
        self._limits: dict[int, int] = {}
        """By generation: no older one may say bytes beyond what its state knew of."""
        self._changed = threading.Condition(threading.RLock())
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        os.chmod(path, 0o600)
        self._listener.listen(8)
        threading.Thread(target=self._accept, name="console-observer", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def position(self) -> int:
        """The position of the next byte that is wanted."""
        return len(self.transcript)

    def wait_for(self, length_bytes: int, timeout_s: float) -> bool:
        """Whether so many bytes were heard in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.transcript) >= length_bytes or bool(self.faults), timeout_s)

    def close(self) -> None:
        """Hear no more."""
        for sock in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(sock)
            threading.Thread(target=self._listen, args=(sock,), name="console-heard", daemon=True).start()

    def _listen(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            hello = _read(sock, HELLO.size)
            if len(hello) < HELLO.size:
                return
            magic, generation, start, written = HELLO.unpack(hello)
            if magic != MAGIC or not self._begins(generation, start, written):
                return
            sock.sendall(ACKNOWLEDGEMENT.pack(self.position))
            while len(head := _read(sock, DATA.size)) == DATA.size:
                position, length = DATA.unpack(head)
                if length > DATA_MAX_BYTES or position > TRANSCRIPT_MAX_BYTES:
                    self._fault(f"generation {generation}: {length} bytes at {position} are more than a console says")
                    return
                data = _read(sock, length)
                if len(data) < length or not self._take(generation, position, data):
                    return  # cut in the middle: the part was never acknowledged, and comes again
                sock.sendall(ACKNOWLEDGEMENT.pack(self.position))

    def _begins(self, generation: int, start: int, written: int) -> bool:
        with self._changed:
            here = len(self.transcript)
            if any(later > generation for later in self._limits):
                return False  # it died, and was taken over, before its first word was read here: it has no say any more
            if start > here:
                return self._fault(f"generation {generation} begins at byte {start}: {start - here} bytes before it are lost")
            if written < here:
                return self._fault(
                    f"generation {generation} takes over a state that knows of {written} bytes, but {here - written} more "
                    "are here already: output left before its checkpoint was committed")
            self._limits[generation] = written
            return True

    def _take(self, generation: int, position: int, data: bytes) -> bool:
        with self._changed:
            here, end = len(self.transcript), position + len(data)
            limit = min((n for g, n in self._limits.items() if g > generation), default=end)
            if end > limit:
                return self._fault(
                    f"generation {generation} said bytes up to {end}, the state that was taken over knows of {limit}: "
                    "output left before its checkpoint was committed")
            if position > here:
                return self._fault(f"generation {generation}: {position - here} bytes before byte {position} are lost")
            known = data[: here - position]
            if self.transcript[position : position + len(known)] != known:
                return self._fault(f"generation {generation} says other bytes at {position} than were said before")
            self.repeated_bytes += len(known)
            self.transcript += data[len(known):]
            self.heard.append(Heard(generation, position, position + len(known), end, time.monotonic()))
            self._changed.notify_all()
            while (newline := self.transcript.find(b"\n", self._shown)) >= 0:
                line, self._shown = bytes(self.transcript[self._shown : newline]), newline + 1
                self._on_line(generation, line)
            return True

    def _fault(self, text: str) -> bool:
        with self._changed:
            self.faults.append(text)
            self._changed.notify_all()
        return False


def _read(sock: socket.socket, length: int) -> bytes:
    """So many bytes, or fewer at the end of the connection."""
    got = bytearray()
    while len(got) < length and (chunk := sock.recv(length - len(got))):
        got += chunk
    return bytes(got)
