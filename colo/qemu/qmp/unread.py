"""What a monitor had said when its connection broke: the messages that nobody has read.

A QEMU that ends says why (SHUTDOWN) and closes its monitor. A command that is written to it at that moment fails, and
asyncio then drops what it has read already and what still lies in the socket: of 15 QEMUs that were ended while four
threads asked for their status, one took its SHUTDOWN event along. So the last bytes are read here.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from colo.forked import keep_from_children

READ_BYTES = 1 << 16
UNREAD_MAX_BYTES = 4 << 20
"""More than this no QEMU leaves behind."""


class Unread:
    """A second descriptor of the connection's socket, for when the first has been closed.

    It must be closed when the connection is: while it is open, QEMU believes that its client is still there.
    """

    def __init__(self, peer: socket.socket) -> None:
        self._socket: socket.socket | None = peer.dup()
        keep_from_children(self._socket)

    def events(self, read_already: bytes) -> list[dict[str, Any]]:
        """The events among the lines of ``read_already`` and of what the socket still holds, in order; then closed.

        Never waits. A last line that is not whole, and what is no JSON object, is passed over. Idempotent.
        """
        data = bytearray(read_already)
        peer, self._socket = self._socket, None
        if peer is None:
            return []
        with peer, contextlib.suppress(OSError):
            peer.setblocking(False)
            while len(data) < UNREAD_MAX_BYTES and (more := peer.recv(READ_BYTES)):
                data += more
        found = []
        for line in bytes(data).split(b"\n")[:-1]:
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict) and "event" in message:
                    found.append(message)
        return found

    def close(self) -> None:
        """Let the connection go. Idempotent."""
        peer, self._socket = self._socket, None
        if peer is not None:
            peer.close()
