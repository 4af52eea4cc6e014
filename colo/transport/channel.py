"""Listen and connect, whatever the transport. A new one has its form in ``uri.py``, a file of its own, and a branch here."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Collection

from colo.abc import Transport
from colo.errors import AddressError, ChannelError, Interrupted, StrangerRefused
from colo.transport.listener import Listener
from colo.transport.peers import check_listener, check_uid
from colo.transport.process import adopt_fd, is_listening, start_exec
from colo.transport.socket_transport import SocketTransport
from colo.transport.sockets import TcpOptions
from colo.transport.tcp import connect_tcp, listen_tcp, resolve
from colo.transport.unix import connect_unix, listen_unix
from colo.transport.uri import ExecUri, FdUri, FileUri, TcpUri, TransportUri, UnixUri, parse_uri

BACKLOG = 4
ATTEMPT_S = 1.0
"""Longest single attempt of :func:`connect_until`."""
LOOK_S = 0.02


def listen(
    uri: str | TransportUri,
    *,
    insecure: bool = False,
    backlog: int = BACKLOG,
    options: TcpOptions | None = None,
) -> Listener:
    """Listen on ``uri``: ``tcp:``, ``unix:``, ``fd:`` (listening, or connected already) or ``exec:``.

    ``insecure`` allows plaintext TCP beyond this machine; ``backlog`` connections may wait to be accepted; what is accepted
    has ``options``. Raises AddressError when the URI is malformed or refused, ChannelError when the address is in use or
    cannot be had.
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
        return Listener(where, None, options=options, once=SocketTransport(sock, peer=str(where), options=options))
    if isinstance(where, ExecUri):
        return Listener(where, None, options=options, once=start_exec(where))
    raise AddressError(f"{where}: a file cannot be listened on; it can be inspected, or loaded")


def connect(
    uri: str | TransportUri,
    timeout_s: float,
    *,
    insecure: bool = False,
    options: TcpOptions | None = None,
    allow_uids: Collection[int] = (),
) -> Transport:
    """Connect to ``uri`` within ``timeout_s``, for all of it (resolving, every address of a name).

    ``insecure`` allows plaintext TCP beyond this machine; ``allow_uids`` are users, besides root and this process's own, who
    may be the ones that listen on this machine. Raises AddressError when the URI is malformed or refused, StrangerRefused
    when another user of this machine listens there (nothing was sent), DeadlineExceeded when it took too long, ChannelError
    when nobody listens, or may not be reached.
    """
    where = parse_uri(uri) if isinstance(uri, str) else uri
    options = options or TcpOptions()
    deadline = time.monotonic() + timeout_s
    if isinstance(where, TcpUri):
        sock = connect_tcp(where, deadline, insecure=insecure)
    elif isinstance(where, UnixUri):
        sock = connect_unix(where, deadline)
    elif isinstance(where, FdUri):
        sock = adopt_fd(where)
        if is_listening(sock):
            sock.detach()
            raise AddressError(f"{where}: is a listening socket; a connected one is needed here")
        return SocketTransport(sock, peer=str(where), options=options)
    elif isinstance(where, ExecUri):
        return start_exec(where)
    elif isinstance(where, FileUri):
        raise AddressError(f"{where}: nothing answers from a file; it can be inspected, or loaded")
    try:
        path = os.path.abspath(where.path) if isinstance(where, UnixUri) else ""
        made = SocketTransport(sock, peer=str(where), connected_here=True, unix_path=path, options=options)
    except OSError as error:
        raise ChannelError(f"cannot connect to {where}: {error.strerror or error}") from error
    try:
        made.check_user(allow_uids)
    except BaseException as error:
        made.close()
        if isinstance(error, StrangerRefused):
            raise StrangerRefused(f"{where}: {error}") from None
        raise
    return made


def connect_until(
    uri: str | TransportUri,
    until: float | None,
    *,
    pause_s: float,
    ended: Callable[[], bool],
    final: tuple[type[ChannelError], ...] = (),
    insecure: bool = False,
    allow_uids: Collection[int] = (),
) -> Transport:
    """:func:`connect`, again and again with ``pause_s`` between, until ``until`` (of ``time.monotonic()``; None: for ever).

    Raises what the last attempt did, an error of ``final`` at once, and Interrupted as soon as ``ended()``.
    """
    while not ended():
        left_s = ATTEMPT_S if until is None else max(0.05, min(ATTEMPT_S, until - time.monotonic()))
        try:
            return connect(uri, left_s, insecure=insecure, allow_uids=allow_uids)
        except ChannelError as error:
            if isinstance(error, final) or (until is not None and time.monotonic() >= until):
                raise
        again = time.monotonic() + pause_s
        while (left_s := again - time.monotonic()) > 0 and not ended():
            time.sleep(min(left_s, LOOK_S))
    raise Interrupted("the wait for the other side was ended from this side")


def begin_connect(family: int, address: object, *, options: TcpOptions | None = None) -> SocketTransport:
    """A connection under way to a socket address, for who cannot wait: it is made, or has failed, once it can be written to
    (:meth:`~SocketTransport.connect_error` says which); then :meth:`~colo.abc.Transport.check_user` is to be asked.

    Raises ChannelError when it fails at once.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)  # type: ignore[arg-type]
        path = address if isinstance(address, str) else ""
        return SocketTransport(sock, peer=f"{address}", connected_here=True, unix_path=path, options=options)
    except OSError as error:
        sock.close()
        raise ChannelError(f"cannot connect to {address}: {error.strerror or error}") from error


def check_listening(uri: str | TransportUri, allow_uids: Collection[int] = ()) -> None:
    """Refuse an address of this machine on which another user listens; for what others are to connect to.

    Nobody may listen there yet, and it may be another machine's: that is no matter. Of a unix socket, its owner is looked at.

    Raises StrangerRefused when neither root, nor this process's user, nor one of ``allow_uids`` listens there, AddressError
    when the URI is malformed or cannot be resolved.
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
