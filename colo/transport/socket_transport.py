"""A connected stream socket as a :class:`~colo.abc.Transport`: TCP and unix, and whatever else the kernel makes one."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from colo.abc import Peer, Transport
from colo.errors import ChannelLost, DeadlineExceeded
from colo.transport.peers import accepting_peer_of, check_identity, peer_of
from colo.transport.sockets import TcpOptions, error_of, is_tcp, reset, silence_ms, tune, unsent_bytes
from colo.wake import wait_ready

if TYPE_CHECKING:
    from typing_extensions import Buffer

SLICE_BYTES = 4 << 20
"""Given to the kernel at once: the deadline and the wake-up are looked at in between."""
PARTS_MAX = 64
"""Of them in one system call."""


class SocketTransport(Transport):
    """``sock``, which is this object's from now on. Raises OSError when it was reset already: it is then closed.

    ``peer``: see :attr:`peer`; found out where it is not given. ``connected_here``: this side has made the connection, so the
    other end's user is whoever listens there until somebody has accepted. ``unix_path``: where it listens; what the socket
    itself tells is the name under which it was made, before it got its place.
    """

    def __init__(
        self, sock: socket.socket, *, peer: str = "", connected_here: bool = False, unix_path: str = "",
        options: TcpOptions | None = None,
    ) -> None:
        self._sock = sock
        self._connected_here = connected_here
        self._unix_path = unix_path
        self._aborted = False
        self._closing = threading.Lock()
        try:
            self._peer = peer or _name_of(sock)
            tune(sock, options or TcpOptions())
        except BaseException:
            sock.close()
            raise

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def address(self) -> tuple[int, object]:
        if self._sock.family == socket.AF_UNIX:
            return socket.AF_UNIX, self._unix_path
        try:
            return self._sock.family, self._sock.getpeername()
        except OSError as error:
            raise ChannelLost(error.strerror or str(error)) from error

    def identity(self) -> Peer:
        return accepting_peer_of(self._sock) if self._connected_here else peer_of(self._sock)

    def check_user(self, allow_uids: Collection[int] = ()) -> None:
        check_identity(
            self.identity(), allow_uids, "what listens there is" if self._connected_here else "a connection from")

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, *parts: Buffer, timeout_s: float | None, wake_fd: int = -1, phase: str = "send") -> None:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        total, done, at = sum(len(view) for view in views), 0, 0
        try:
            while views:
                head = views[0][at : at + SLICE_BYTES]
                try:
                    # More parts go with the first one's last slice only.
                    more = views[1:PARTS_MAX] if at + len(head) == len(views[0]) else []
                    taken = self._sock.sendmsg([head, *more], [], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    taken = 0
                    if not self._wait_writable(until, wake_fd):
                        raise DeadlineExceeded(
                            f"the peer took {done} of {total} bytes within {timeout_s:g} s", phase=phase) from None
                except OSError as error:
                    raise ChannelLost(f"{error.strerror or error} while sending") from error
                finally:
                    head.release()
                done += taken
                at += taken
                while views and at >= len(views[0]):
                    at -= len(views[0])
                    views.pop(0).release()
        finally:
            for view in views:  # a traceback keeps this frame: the buffers are not to stay in use with it
                view.release()

    def _wait_writable(self, until: float | None, wake_fd: int) -> bool:
        left = None if until is None else until - time.monotonic()
        return bool(wait_ready((), left, writing=(self._sock.fileno(),), wake_fd=wake_fd))

    def receive(self, limit_bytes: int, *, timeout_s: float | None, wake_fd: int = -1) -> bytes:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                data = self._sock.recv(limit_bytes, socket.MSG_DONTWAIT)
                if not data and self._aborted:
                    raise ChannelLost("the connection was dropped from this side")
                return data
            except BlockingIOError:
                pass
            except OSError as error:
                raise ChannelLost(f"{error.strerror or error} while receiving") from error
            left = None if until is None else until - time.monotonic()
            if not wait_ready((self._sock.fileno(),), left, wake_fd=wake_fd):
                raise DeadlineExceeded(f"the peer sent nothing within {timeout_s:g} s", phase="receive")

    def peek(self, limit_bytes: int) -> bytes | None:
        try:
            return self._sock.recv(limit_bytes, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelLost(error.strerror or str(error)) from error

    def unsent_bytes(self) -> int:
        return unsent_bytes(self._sock)

    def silence_ms(self) -> float:
        return silence_ms(self._sock)

    def probe_silence(self, idle_s: int) -> None:
        if is_tcp(self._sock):
            try:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
            except OSError as error:
                raise ChannelLost(error.strerror or str(error)) from error

    def connect_error(self) -> str:
        """Of one that was made by :func:`~colo.transport.channel.begin_connect` and has become writable: why it is not
        connected, or ""."""
        return error_of(self._sock)

    def end_sending(self) -> None:
        with contextlib.suppress(OSError):  # lost, closed, or done before
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        if self._sock.fileno() < 0:
            return  # closed; or in a forked child, where the lock may be taken for ever
        with self._closing:
            self._aborted = True
            reset(self._sock)

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        with self._closing:
            self._sock.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.peer} fd {self.fileno()}>"


def _name_of(sock: socket.socket) -> str:
    """As well as it can be told: of a unix socket the path is known to who listens on it alone."""
    if sock.family == socket.AF_UNIX:
        return "unix:"
    if not is_tcp(sock):
        return f"socket of family {sock.family}"
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "tcp:"
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
