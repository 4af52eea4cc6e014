"""TCP: resolve, bind, connect; plaintext stays on this machine unless the user insists."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import Any

from colo.errors import AddressError, ChannelError, DeadlineExceeded
from colo.transport.uri import TcpUri, TransportUri, parse_uri

_Resolved = tuple[socket.AddressFamily, tuple[Any, ...]]


def listen_tcp(uri: TcpUri, *, insecure: bool, backlog: int) -> socket.socket:
    errors = []
    for family, address in resolve(uri, time.monotonic() + 30, passive=True):
        _refuse_plaintext(uri, address, insecure)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(uri.host)))
            sock.bind(address)
            sock.listen(backlog)
        except OSError as error:
            sock.close()
            errors.append(f"{address[0]}: {error.strerror or error}")
            continue
        return sock
    raise ChannelError(f"cannot listen on {uri}: {'; '.join(errors)}")


def connect_tcp(uri: TcpUri, deadline: float, *, insecure: bool) -> socket.socket:
    if uri.port == 0:
        raise AddressError(f"{uri}: port 0 is for listening")
    errors = []
    addresses = resolve(uri, deadline, passive=False)
    for number, (family, address) in enumerate(addresses):
        _refuse_plaintext(uri, address, insecure)
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            # An address that does not answer must leave time for the others.
            sock.settimeout(left / (len(addresses) - number))
            sock.connect(address)
            if sock.getsockname() == sock.getpeername():
                # A port from which outgoing connections are made can meet itself.
                raise ConnectionRefusedError(0, "nobody listens (it connected to itself)")
        except TimeoutError:
            sock.close()
            errors.append(f"{address[0]}: no answer")
            continue
        except OSError as error:
            sock.close()
            errors.append(f"{address[0]}: {error.strerror or error}")
            continue
        return sock
    text = f"cannot connect to {uri}: {'; '.join(errors) or 'no time left'}"
    if time.monotonic() >= deadline:
        raise DeadlineExceeded(text, phase="connect")
    raise ChannelError(text)


def check_plaintext(uri: str | TransportUri, *, insecure: bool) -> None:
    """Refuse a URI over which guest memory would leave this machine in plaintext; for what others are to connect to.

    Raises AddressError when it would, and ``insecure`` is not set; or the URI is malformed or cannot be resolved.
    """
    where = parse_uri(uri) if isinstance(uri, str) else uri
    if isinstance(where, TcpUri) and not insecure:
        for _, address in resolve(where, time.monotonic() + 30, passive=False):
            _refuse_plaintext(where, address, insecure)


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return str(TcpUri(host, port))


def resolve(uri: TcpUri, deadline: float, *, passive: bool) -> list[_Resolved]:
    """Its addresses. Resolving has no time limit of its own, so it gets a thread that may be left behind."""
    found: list[_Resolved] = []
    errors: list[str] = []

    def run() -> None:
        flags = socket.AI_PASSIVE if passive else 0
        try:
            for family, _, _, _, address in socket.getaddrinfo(
                uri.host or None, uri.port, type=socket.SOCK_STREAM, flags=flags
            ):
                found.append((family, address))
        except (OSError, UnicodeError) as error:
            errors.append(getattr(error, "strerror", None) or str(error))

    thread = threading.Thread(target=run, name="colo-resolve", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        raise DeadlineExceeded(f"{uri}: resolving {uri.host!r} took too long", phase="connect")
    if errors or not found:
        raise AddressError(f"{uri}: cannot resolve {uri.host!r}: {errors[0] if errors else 'no address'}")
    if passive and not uri.host:
        # One IPv6 socket takes IPv4 too; where there is no IPv6, the next in the list is tried.
        found.sort(key=lambda each: each[0] != socket.AF_INET6)
    return found


def is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _refuse_plaintext(uri: TcpUri, address: tuple[Any, ...], insecure: bool) -> None:
    if insecure or is_loopback(str(address[0])):
        return
    port = uri.port or 4444
    raise AddressError(
        f"{uri}: {address[0]} is not this machine, and plaintext TCP would let everybody on the way read and "
        f"change the guest's memory. Tunnel it (ssh -N -L {port}:127.0.0.1:{port} HOST, then connect to "
        f"tcp:127.0.0.1:{port}), or insist with --insecure (insecure=True) on a network that is yours alone; "
        "TLS is not there yet"
    )
