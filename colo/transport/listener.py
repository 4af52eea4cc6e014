"""A place where peers arrive, as a :class:`~colo.abc.Listener`."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from socket import socket as Socket

from colo import abc
from colo.abc import Transport
from colo.errors import AddressError, ChannelError, DeadlineExceeded, Interrupted
from colo.forked import keep_from_children
from colo.transport.socket_transport import SocketTransport
from colo.transport.sockets import TcpOptions, is_tcp
from colo.transport.tcp import address_of
from colo.transport.unix import UnixName
from colo.transport.uri import FdUri, TcpUri, TransportUri, UnixUri, parse_uri
from colo.wake import Wake, wait_ready

_AGAIN = {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH}


class Listener(abc.Listener):
    """Gives connections, one after the other. Made by :func:`~colo.transport.channel.listen`; closing removes a unix socket's
    name.

    ``exec:`` and an ``fd:`` that is connected already give exactly one, ``once``.
    """

    def __init__(
        self,
        uri: TransportUri,
        sock: Socket | None,
        *,
        options: TcpOptions,
        name: UnixName | None = None,
        once: Transport | None = None,
    ) -> None:
        self._uri = uri
        self._sock = sock
        self._options = options
        self._name = name
        self._once = once
        self._wake = Wake()
        self._closed = False
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._accepting = 0
        if sock is not None:
            sock.setblocking(False)
            keep_from_children(sock)

    @property
    def address(self) -> str:
        if self._sock is not None and is_tcp(self._sock) and not self._closed:
            self._uri = _with_port(self._uri, self._sock)
        return str(self._uri)

    def fileno(self) -> int:
        if self._sock is None:
            raise AddressError(f"{self._uri} does not listen: it has one connection, which accept() gives")
        return self._sock.fileno()

    def accept(self, timeout_s: float | None = None) -> Transport:
        with self._lock:
            if self._closed:
                raise Interrupted(f"{self.address}: the listener is closed")
            self._accepting += 1
        try:
            return self._accept(None if timeout_s is None else time.monotonic() + timeout_s)
        finally:
            with self._lock:
                self._accepting -= 1
                if self._closed and not self._accepting:
                    self._let_go()

    def _accept(self, deadline: float | None) -> Transport:
        with self._lock:
            once, self._once = self._once, None
        if once is not None:
            return once  # handed over by whoever started us
        while True:
            left_s = None if deadline is None else deadline - time.monotonic()
            try:
                ready = wait_ready(() if self._sock is None else (self._sock.fileno(),), left_s, wake_fd=self._wake.fd)
            except Interrupted:
                raise Interrupted(f"{self.address}: the listener was closed") from None
            if not ready:
                raise DeadlineExceeded(f"{self.address}: nobody connected in time", phase="accept")
            assert self._sock is not None
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                # It came and went before it was accepted: that is no error of ours.
                if error.errno in _AGAIN:
                    continue
                raise ChannelError(f"{self.address}: cannot accept: {error.strerror}") from error
            with contextlib.suppress(OSError):  # reset already
                return SocketTransport(
                    sock, peer=str(self._uri) if isinstance(self._uri, UnixUri) else "", options=self._options)

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # in a forked child: the lock may be taken for ever, and the name is its parent's
        with self._lock:
            if self._closed:
                return
            with contextlib.suppress(ChannelError, OSError):
                _ = self.address  # while it can still be asked
            self._closed = True
            self._wake.set()
            if self._name is not None:
                self._name.remove()
            if not self._accepting:
                self._let_go()

    def _let_go(self) -> None:
        for each in (self._sock, self._once):
            if each is not None:
                each.close()
        self._once = None
        self._wake.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


def _with_port(uri: TransportUri, sock: Socket) -> TransportUri:
    if isinstance(uri, TcpUri) and uri.port == 0:
        return TcpUri(uri.host, sock.getsockname()[1])
    if isinstance(uri, FdUri):
        return parse_uri(address_of(sock))
    return uri
