"""The machine's end of its console's line to the world: bytes by position, acknowledged by position.

Over a stream socket. The machine speaks first, once per connection::

    hello     "CONS", u8 generation, u64 start, u64 written
    data      u64 position, u32 length, the bytes          (any number)

and the world answers the hello, and each data, with the position it has come to::

    acknowledgement   u64 position

``start`` and ``written`` say which bytes the console's state holds: from the first unacknowledged one up to, not including,
``written``. Numbers are big-endian. :mod:`colo.emulator.console_observer` is the other end.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from colo.errors import ChannelLost

MAGIC = b"CONS"
HELLO = struct.Struct(">4sBQQ")
DATA = struct.Struct(">QI")
ACKNOWLEDGEMENT = struct.Struct(">Q")
DATA_MAX_BYTES = 1 << 20
SEND_S = 10.0


class ConsoleLink:
    """Connected to the world at the Unix socket ``path``. ``on_acknowledged(position)`` is called on a thread of its own,
    with what rises only. Raises ChannelLost when there is no world."""

    def __init__(
        self, path: Path, *, generation: int, start: int, written: int, on_acknowledged: Callable[[int], None]
    ) -> None:
        self._on_acknowledged = on_acknowledged
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
            self._socket.sendall(HELLO.pack(MAGIC, generation, start, written))
        except OSError as error:
            self._socket.close()
            raise ChannelLost(f"the console's line to {path}: {error}") from error
        # A world that does not read holds up what is sent, not for ever. Reading may wait as long as it likes.
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SEND_S), 0))
        self._reader = threading.Thread(target=self._read, name="console-link", daemon=True)
        self._reader.start()

    def send(self, position: int, data: bytes) -> None:
        """Send these bytes, the first of which has this position. Raises ChannelLost; how much went is then unknown, and
        sending it again does no harm."""
        try:
            self._socket.sendall(DATA.pack(position, len(data)) + data)
        except OSError as error:
            raise ChannelLost(f"the console's line was cut at byte {position}: {error}") from error

    def close(self) -> None:
        """Any number of times."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(1.0)
        self._socket.close()

    def _read(self) -> None:
        while True:
            try:
                raw = self._socket.recv(ACKNOWLEDGEMENT.size, socket.MSG_WAITALL)
            except OSError:
                return
            if len(raw) < ACKNOWLEDGEMENT.size:
                return
            self._on_acknowledged(ACKNOWLEDGEMENT.unpack(raw)[0])
