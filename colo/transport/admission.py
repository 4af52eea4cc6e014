"""Who is let in: one primary, and a few that have yet to show that they are one."""

from __future__ import annotations

import socket
import threading

from colo.transport.sockets import abort

PENDING_LIMIT = 4


class Admission:
    """Counts connections. A connection begins *pending*, while its handshake runs; the first whose
    handshake is good becomes the primary, and those that come while there is one are reset, as are those
    over the limit.

    Thread-safe. A socket that was let in is handed back with :meth:`leave`, which does not close it.
    """

    def __init__(self, pending_limit: int = PENDING_LIMIT) -> None:
        self._pending_limit = pending_limit
        self._lock = threading.Lock()
        self._pending: set[socket.socket] = set()
        self._primary: socket.socket | None = None

    @property
    def pending(self) -> int:
        return len(self._pending)

    @property
    def primary(self) -> socket.socket | None:
        return self._primary

    def enter(self, sock: socket.socket) -> bool:
        """A connection was accepted. False: it was reset, since there is a primary or too many are
        pending."""
        with self._lock:
            if self._primary is None and len(self._pending) < self._pending_limit:
                self._pending.add(sock)
                return True
        abort(sock)
        return False

    def become_primary(self, sock: socket.socket) -> bool:
        """The handshake of ``sock`` was good. False: another was faster, and ``sock`` was reset.

        The other pending ones are reset when ``sock`` becomes the primary.
        """
        with self._lock:
            if sock in self._pending and self._primary is None:
                self._pending.remove(sock)
                self._primary = sock
                won = True
                drop = self._pending
                self._pending = set()
            else:
                won = self._primary is sock
                drop = set() if won else {sock}
                self._pending -= drop
        for each in drop:
            abort(each)
        return won

    def leave(self, sock: socket.socket) -> None:
        """The connection is over, or was given up; the next primary may come."""
        with self._lock:
            self._pending.discard(sock)
            if self._primary is sock:
                self._primary = None
