"""Listen and connect, whatever the transport."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Collection
from socket import socket as Socket

from colo.errors import AddressError, ChannelError, DeadlineExceeded, Interrupted, StrangerRefused
from colo.forked import keep_from_children
from colo.transport.peers import check_accepting, check_listener, check_uid
from colo.transport.process import adopt_fd, is_listening, start_exec
from colo.transport.sockets import TcpOptions, is_tcp, tune
from colo.transport.tcp import address_of, connect_tcp, listen_tcp, resolve
from colo.transport.unix import UnixName, connect_unix, listen_unix
from colo.transport.uri import ExecUri, FdUri, FileUri, TcpUri, TransportUri, UnixUri, parse_uri
from colo.wake import Wake

BACKLOG = 4
_AGAIN = {errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH}


class Listener:
    """Gives connections, one after the other. Made by :func:`listen`; closing removes a unix socket's name.

    ``exec:`` and an ``fd:`` that is connected already give exactly one.
    """

    def __init__(
        self,
        uri: TransportUri,
        sock: Socket | None,
        *,
        options: TcpOptions,
        name: UnixName | None = None,
        once: Socket | None = None,
    ) -> None:
        self._uri = uri
        self._sock = sock
        self._options = options
        self._name = name
        self._once = once
        self._wake = Wake()
        self._closed = False
        self._lock = threading.Lock()
        self._accepting = 0
        if sock is not None:
            sock.setblocking(False)
            keep_from_children(sock)

    @property
    def address(self) -> str:
        """The URI to connect to: with the real port where 0 was asked for."""
        if self._sock is not None and is_tcp(self._sock) and not self._closed:
            self._uri = _with_port(self._uri, self._sock)
        return str(self._uri)

    @property
    def socket(self) -> Socket:
        """The listening socket itself, not blocking: for who polls it together with others.

        :raises AddressError: there is none, since the transport has one connection and no more.
        """
        if self._sock is None:
            raise AddressError(f"{self._uri} does not listen: it has one connection, which accept() gives")
        return self._sock

    def fileno(self) -> int:
        """For poll and select: readable when a connection waits. -1 when there is no listening socket."""
        return -1 if self._sock is None else self._sock.fileno()

    def accept(self, timeout: float | None = None) -> Socket:
        """The next connection: a blocking socket with its options set.

        :param timeout: in seconds; None waits for ever.
        :raises DeadlineExceeded: nobody came in time.
        :raises Interrupted: the listener is, or was meanwhile, closed.
        :raises ChannelError: the system would not let us accept.
        """
        with self._lock:
            if self._closed:
                raise Interrupted(f"{self.address}: the listener is closed")
            self._accepting += 1
        try:
            return self._accept(None if timeout is None else time.monotonic() + timeout)
        finally:
            with self._lock:
                self._accepting -= 1
                if self._closed and not self._accepting:
                    self._let_go()

    def _accept(self, deadline: float | None) -> Socket:
        with self._lock:
            once, self._once = self._once, None
        if once is not None:
            return once  # handed over by whoever started us
        poll = select.poll()
        poll.register(self._wake.fd, select.POLLIN)
        if self._sock is not None:
            poll.register(self._sock, select.POLLIN)
        while True:
            left_ms = None if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
            ready = poll.poll(left_ms)
            if self._closed:
                raise Interrupted(f"{self.address}: the listener was closed")
            if not ready:
                raise DeadlineExceeded(f"{self.address}: nobody connected in time", phase="accept")
            if self._sock is None:
                continue
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                # It came and went before it was accepted: that is no error of ours.
                if error.errno in _AGAIN:
                    continue
                raise ChannelError(f"{self.address}: cannot accept: {error.strerror}") from error
            try:
                tune(sock, options=self._options)
            except OSError:
                sock.close()  # reset already
                continue
            return sock

    def close(self) -> None:
        """Stop listening; a waiting :meth:`accept` ends with Interrupted. Connections that were given stay
        open."""
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
        for sock in (self._sock, self._once):
            if sock is not None:
                sock.close()
        self._once = None
        self._wake.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()


def _with_port(uri: TransportUri, sock: Socket) -> TransportUri:
    if isinstance(uri, TcpUri) and uri.port == 0:
        return TcpUri(uri.host, sock.getsockname()[1])
    if isinstance(uri, FdUri):
        return parse_uri(address_of(sock))
    return uri


def listen(
    uri: str | TransportUri,
    *,
    insecure: bool = False,
    backlog: int = BACKLOG,
    options: TcpOptions | None = None,
) -> Listener:
    """Listen on ``uri``: ``tcp:``, ``unix:``, ``fd:`` (listening, or connected already) or ``exec:``.

    :param insecure: allow plaintext TCP beyond this machine.
    :param backlog: how many connections may wait to be accepted.
    :raises AddressError: the URI is malformed or refused.
    :raises ChannelError: the address is in use, or cannot be had.
    """
    where = parse_uri(uri) if isinstance(uri, str) else uri
    options = options or TcpOptions()
    if isinstance(where, TcpUri):
        return Listener(where, listen_tcp(where, insecure=insecure, backlog=backlog), options=options)
    if isinstance(where, UnixUri):
        sock, name = listen_unix(where, backlog=backlog)
        return Listener(where, sock, options=options, name=name)
    if isinstance(where, FdUri):
        sock = adopt_fd(where)
        if is_listening(sock):
            return Listener(where, sock, options=options)
        tune(sock, options=options)
        return Listener(where, None, options=options, once=sock)
    if isinstance(where, ExecUri):
        return Listener(where, None, options=options, once=start_exec(where))
    raise AddressError(f"{where}: a file cannot be listened on; it can be inspected, or loaded")


def connect(
    uri: str | TransportUri,
    timeout: float,
    *,
    insecure: bool = False,
    options: TcpOptions | None = None,
    allow_uids: Collection[int] = (),
) -> Socket:
    """Connect to ``uri``: a blocking socket with its options set.

    :param timeout: in seconds, for all of it (resolving, every address of a name).
    :param insecure: allow plaintext TCP beyond this machine.
    :param allow_uids: users, besides root and this process's own, who may be the ones that listen on this machine.
    :raises AddressError: the URI is malformed or refused.
    :raises StrangerRefused: another user of this machine listens there; nothing was sent.
    :raises DeadlineExceeded: it took longer than ``timeout``.
    :raises ChannelError: nobody listens, or may not be reached.
    """
    where = parse_uri(uri) if isinstance(uri, str) else uri
    options = options or TcpOptions()
    deadline = time.monotonic() + timeout
    if isinstance(where, TcpUri):
        sock = connect_tcp(where, deadline, insecure=insecure)
    elif isinstance(where, UnixUri):
        sock = connect_unix(where, deadline)
    elif isinstance(where, FdUri):
        sock = adopt_fd(where)
        if is_listening(sock):
            sock.detach()
            raise AddressError(f"{where}: is a listening socket; a connected one is needed here")
    elif isinstance(where, ExecUri):
        sock = start_exec(where)
    elif isinstance(where, FileUri):
        raise AddressError(f"{where}: nothing answers from a file; it can be inspected, or loaded")
    try:
        if isinstance(where, TcpUri | UnixUri):
            check_accepting(sock, allow_uids)
        tune(sock, options=options)
    except BaseException as error:
        sock.close()
        if isinstance(error, StrangerRefused):
            raise StrangerRefused(f"{where}: {error}") from None
        raise
    return sock


def check_listening(uri: str | TransportUri, allow_uids: Collection[int] = ()) -> None:
    """Refuse an address of this machine on which another user listens; for what others are to connect to.

    Nobody may listen there yet, and it may be another machine's: that is no matter. Of a unix socket, its owner is looked at.

    :raises StrangerRefused: neither root, nor this process's user, nor one of ``allow_uids`` listens there.
    :raises AddressError: the URI is malformed or cannot be resolved.
    """
    where = parse_uri(uri) if isinstance(uri, str) else uri
    try:
        if isinstance(where, TcpUri):
            for _, address in resolve(where, time.monotonic() + 30, passive=False):
                check_listener(address, allow_uids)
        elif isinstance(where, UnixUri):
            with contextlib.suppress(OSError):
                check_uid(os.stat(where.path).st_uid, allow_uids, "what listens there is")
    except StrangerRefused as error:
        raise StrangerRefused(f"{where}: {error}") from None
