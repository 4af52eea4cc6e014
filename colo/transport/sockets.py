"""Socket options: what every socket of a channel is set to, how one is reset, and what the kernel knows of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from dataclasses import dataclass
from typing import Self

from colo.forked import keep_from_children

_LINGER = struct.Struct("ii")
_TCP_INFO = struct.Struct("=8x13I")
_LAST_DATA, _LAST_ACK = 11, 12
"""Of its words: since when nothing was received, in ms."""


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """When a silent peer counts as gone, by the kernel's own means; the session's deadlines come on top.

    A peer that is gone while nothing is under way is noticed after ``keepalive_idle_s + keepalive_count *
    keepalive_interval_s``, one that does not take what was sent after ``user_timeout_ms``. Without probes where
    ``keepalive_idle_s`` is 0; the kernel's own time where ``user_timeout_ms`` is.
    """

    keepalive_idle_s: int = 2
    keepalive_interval_s: int = 1
    keepalive_count: int = 3
    user_timeout_ms: int = 5000

    @classmethod
    def within(cls, user_timeout_s: float) -> Self:
        """A peer has so long to take what was sent."""
        return cls(user_timeout_ms=max(1, round(user_timeout_s * 1000)))


def is_tcp(sock: socket.socket) -> bool:
    """Whether it is one of TCP, on IPv4 or IPv6."""
    return sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM


def tune(sock: socket.socket, options: TcpOptions) -> None:
    """Not blocking, closed in forked children, and for TCP: no delay of small segments, keepalive, a limit on unanswered
    data. Raises OSError: it was reset already.

    The buffers are left alone: a size that is set switches the kernel's own tuning of them off.
    """
    sock.setblocking(False)
    keep_from_children(sock)
    if not is_tcp(sock):
        return
    settings = [(socket.TCP_NODELAY, 1), (socket.TCP_USER_TIMEOUT, options.user_timeout_ms)]
    if options.keepalive_idle_s:
        settings += [
            (socket.TCP_KEEPIDLE, options.keepalive_idle_s), (socket.TCP_KEEPINTVL, options.keepalive_interval_s),
            (socket.TCP_KEEPCNT, options.keepalive_count)]
    for option, value in settings:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, bool(options.keepalive_idle_s))


def reset(sock: socket.socket) -> None:
    """End its connection at once, and wake all who wait on it; it stays open. Never blocks, never fails.

    TCP throws away what was not sent, and sends a reset: connect(2) to AF_UNSPEC does both now, where a close would leave it
    until the last thread in poll(2) has gone, and a shutdown would tell the peer of an orderly end first.
    """
    with contextlib.suppress(OSError):
        if not is_tcp(sock):
            sock.shutdown(socket.SHUT_RDWR)
        elif not _disconnect(sock.fileno()):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
            sock.shutdown(socket.SHUT_RDWR)


def _disconnect(fd: int) -> bool:
    """Whether it worked; the socket module has no way to name AF_UNSPEC."""
    try:
        import ctypes  # not at the top: few ever need it
        libc = ctypes.CDLL(None, use_errno=True)
        done: int = libc.connect(fd, bytes(16), 16)
    except (ImportError, OSError, AttributeError):
        return False
    return done == 0


def unsent_bytes(sock: socket.socket) -> int:
    """What is in its send queue; 0 where it does not tell."""
    try:
        raw = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    queued: int = struct.unpack("i", raw)[0]
    return queued


def silence_ms(sock: socket.socket) -> float:
    """How long ago a TCP peer's kernel was heard of last; infinite where that cannot be told."""
    try:
        words = _TCP_INFO.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    except (OSError, struct.error):
        return float("inf")
    return float(min(words[_LAST_DATA], words[_LAST_ACK]))


def error_of(sock: socket.socket) -> str:
    """What became of a connect(2) that did not wait, or of the connection since; "": nothing ill. It is told once."""
    try:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        code = error.errno or errno.EBADF
    return os.strerror(code) if code else ""
