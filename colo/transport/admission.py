"""Who is let in: a connection says with its first bytes what it is, a migration stream or a lease connection."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Collection

from colo.errors import Interrupted, StrangerRefused
from colo.magic import what_is
from colo.transport import check_peer
from colo.wire import FILE_MAGIC, LEASE_MAGIC

PENDING_LIMIT = 4
"""Connections that may stand at the door at once; the kernel holds a few more, and refuses the rest."""
PATIENCE_S = 0.25
"""A QEMU speaks as soon as it is connected: who is silent for longer makes room when the door is full."""
MAGIC = FILE_MAGIC.to_bytes(4, "big")
LEASE = LEASE_MAGIC.to_bytes(4, "big")


def admit(
    listener: socket.socket,
    *,
    handshake_s: float,
    wake_fd: int,
    prepare: Callable[[socket.socket], None],
    refused: Callable[[str], None] = lambda reason: None,
    lease: Callable[[socket.socket], None] | None = None,
    allow_uids: Collection[int] = (),
) -> socket.socket:
    """Accept connections on ``listener`` until one sends a migration stream's first bytes; the others are closed.

    One that sends something else, or nothing within ``handshake_s``, is closed and told to ``refused``; so is the oldest
    silent one when there are :data:`PENDING_LIMIT` and another comes. ``prepare`` sets a new connection's options. One that
    opens as a lease connection is given to ``lease``, where there is one. Another user of this machine who is not in
    ``allow_uids`` is refused. Raises Interrupted when ``wake_fd`` becomes readable.
    """
    waiting: dict[socket.socket, float] = {}
    try:
        while True:
            now = time.monotonic()
            for sock in [s for s, until in waiting.items() if until <= now]:
                refused(f"a connection sent nothing within {handshake_s:g} s")
                del waiting[sock]
                sock.close()
            poller = select.poll()
            poller.register(wake_fd, select.POLLIN)
            by_fd = {s.fileno(): s for s in waiting}
            for fd in by_fd:
                poller.register(fd, select.POLLIN)
            ends = min(waiting.values(), default=None)
            if len(waiting) < PENDING_LIMIT:
                poller.register(listener.fileno(), select.POLLIN)
                left = ends
            else:
                assert ends is not None
                left = min(ends, ends - handshake_s + PATIENCE_S)
                if left <= now:
                    poller.register(listener.fileno(), select.POLLIN)
                    left = ends
            for fd, _ in poller.poll(None if left is None else max(0.0, left - now) * 1000 + 1):
                if fd == wake_fd:
                    raise Interrupted("the wait for a primary was ended from this side")
                if fd == listener.fileno():
                    if len(waiting) == PENDING_LIMIT:
                        oldest = min(waiting, key=lambda s: waiting[s])
                        del waiting[oldest]
                        oldest.close()
                        refused("a silent connection made room for a new one")
                    with contextlib.suppress(OSError):
                        sock, _ = listener.accept()
                        if not is_stranger(sock, allow_uids, refused):
                            prepare(sock)
                            waiting[sock] = now + handshake_s
                    continue
                sock = by_fd[fd]
                if sock not in waiting:
                    continue
                opened = _opening(sock, refused, waiting, known=(MAGIC,) if lease is None else (MAGIC, LEASE))
                if opened == MAGIC:
                    del waiting[sock]
                    return sock
                if opened == LEASE:
                    assert lease is not None
                    del waiting[sock]
                    lease(sock)
    finally:
        for sock in waiting:
            sock.close()


def is_stranger(sock: socket.socket, allow_uids: Collection[int], refused: Callable[[str], None]) -> bool:
    """Whether a new connection is another user's of this machine: it is then closed, and ``refused`` told why."""
    try:
        check_peer(sock, allow_uids)
    except StrangerRefused as error:
        sock.close()
        refused(f"a connection was refused: {error}")
        return True
    return False


def _opening(
    sock: socket.socket, refused: Callable[[str], None], waiting: dict[socket.socket, float], *, known: tuple[bytes, ...]
) -> bytes:
    """Which of ``known`` the connection opens with; b"" while that cannot be told, or when it was refused."""
    try:
        first = sock.recv(len(MAGIC), socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""
    except OSError as error:
        first, reason = b"", error.strerror or str(error)
    else:
        reason = "closed before it sent anything"
    if first in known:
        return first
    if first and any(magic.startswith(first) for magic in known):
        # A part of it is here: poll would report it again at once, so the rest gets a moment.
        time.sleep(0.005)
        return b""
    if first:
        reason = what_is(first) or f"{first!r} is not the start of a migration stream"
    refused(f"a connection was refused: {reason}")
    del waiting[sock]
    sock.close()
    return b""
