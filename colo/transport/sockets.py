"""What every socket of a channel is set to, and how one is dropped at once."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

from colo.forked import keep_from_children

_LINGER = struct.Struct("ii")


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """When a silent peer counts as gone, by the kernel's own means; the session's deadlines come on top.

    A peer that is gone while nothing is under way is noticed after ``keepalive_idle_s + keepalive_count *
    keepalive_interval_s``, one that does not take what was sent after ``user_timeout_ms``.
    """

    keepalive_idle_s: int = 2
    keepalive_interval_s: int = 1
    keepalive_count: int = 3
    user_timeout_ms: int = 5000


def is_tcp(sock: socket.socket) -> bool:
    return sock.family in {socket.AF_INET, socket.AF_INET6}


def tune(
    sock: socket.socket, user_timeout_s: float | None = None, *, options: TcpOptions | None = None
) -> None:
    """Blocking, closed in forked children, and for TCP: no delay of small segments, keepalive, a limit on unanswered
    data. Returns ``sock``.

    The buffers are left alone: a size that is set switches the kernel's own tuning of them off.

    :param user_timeout_s: instead of the one in ``options``.
    """
    options = options or TcpOptions()
    user_timeout_ms = (
        options.user_timeout_ms if user_timeout_s is None else max(1, round(user_timeout_s * 1000))
    )
    sock.setblocking(True)
    keep_from_children(sock)
    if is_tcp(sock):
        for option, value in (
            (socket.TCP_NODELAY, 1),
            (socket.TCP_KEEPIDLE, options.keepalive_idle_s),
            (socket.TCP_KEEPINTVL, options.keepalive_interval_s),
            (socket.TCP_KEEPCNT, options.keepalive_count),
            (socket.TCP_USER_TIMEOUT, user_timeout_ms),
        ):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def abort(sock: socket.socket) -> None:
    """Drop the connection at once: what was not sent is thrown away, and a TCP peer is told by a reset.

    Wakes a thread that waits to read from it. Never blocks, and never fails: a socket that is closed stays
    closed.
    """
    with contextlib.suppress(OSError):
        # Only the reading half: shutting the writing one would tell the peer of an orderly end first.
        sock.shutdown(socket.SHUT_RD if is_tcp(sock) else socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
    with contextlib.suppress(OSError):
        sock.close()
