"""Who is at the other end of a connection on this machine: its user, as the kernel tells it.

That a connection comes from this machine says nothing about who made it: every local user can connect to a port on loopback,
and can listen on one before we do. So the other end's user is asked for: of a unix socket by SO_PEERCRED, of a TCP socket in
the kernel's table of sockets (of this network namespace). Root and this process's own user are let in, and who was named.

A proxy counts as the user that it runs as: an ssh tunnel's end as the one who logged in.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from colo.abc import Peer
from colo.errors import StrangerRefused

Address = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]
"""An IP address and a port. IPv4 addresses that are mapped into IPv6 are IPv4."""

ESTABLISHED, LISTEN = 1, 10
"""Of the kernel's states of a TCP socket."""
_CREDENTIALS = struct.Struct("iII")
_SO_NETNS_COOKIE = 71
_NO_UID = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """A line of the kernel's table. ``inode`` is 0 when no process has it (closed, or not accepted yet): its uid then
    means nothing."""

    local: Address
    remote: Address
    state: int
    uid: int
    inode: int


def peer_uid(sock: socket.socket) -> int | None:
    """The user of the process at the other end; None when it is on another machine, or cannot be told."""
    return peer_of(sock).uid


def peer_of(sock: socket.socket) -> Peer:
    """Whose the other end of a connected socket is."""
    if sock.family == socket.AF_UNIX:
        try:
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        except OSError:
            return Peer(True, None)
        return Peer(True, None if uid == _NO_UID else uid)
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return Peer(True, None)
    try:
        ours, theirs = _address(sock.getsockname()), _address(sock.getpeername())
    except (OSError, ValueError):  # gone
        return Peer(True, None)
    here = theirs[0].is_loopback or theirs[0] == ours[0]
    if not _in_our_namespace(sock):
        return Peer(here, None)
    found = _find(theirs, ours)
    if found is None:
        return Peer(here, None)
    return Peer(True, found.uid if found.inode else None)


def accepting_peer_of(sock: socket.socket) -> Peer:
    """As :func:`peer_of`, for the end that connected: whoever listens there is the peer until somebody has accepted."""
    peer = peer_of(sock)
    if peer.local and peer.uid is None and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError, ValueError):
            return Peer(True, listener_uid(_address(sock.getpeername())))
    return peer


def check_identity(peer: Peer, allow_uids: Collection[int], what: str) -> None:
    """Raises StrangerRefused when it is on this machine, and not known to be root's, ours or of ``allow_uids``; ``what`` it
    is begins the message."""
    if peer.uid is not None:
        check_uid(peer.uid, allow_uids, what)
    elif peer.local:
        raise StrangerRefused(
            f"{what} a user of this machine who cannot be told (it is gone, or in another namespace): refused")


def listener_uid(address: Address) -> int | None:
    """The user who listens on a TCP address of this machine; None when nobody does, or it cannot be told."""
    best: tuple[tuple[bool, bool], int] | None = None
    for family in (socket.AF_INET, socket.AF_INET6):
        for found in _listening(family, address[1]):
            exact = found.local[0] == address[0]
            if found.inode and (exact or (found.local[0].is_unspecified and found.local[0].version >= address[0].version)):
                # The kernel prefers the exact address, then the family's own socket to one that takes both.
                rank = (exact, found.local[0].version == address[0].version)
                if best is None or rank > best[0]:
                    best = rank, found.uid
    return None if best is None else best[1]


def check_listener(name: tuple[object, ...], allow_uids: Collection[int] = ()) -> None:
    """Raises StrangerRefused when a user of this machine listens on this socket address who is not to be let in."""
    uid = listener_uid(_address(name))
    if uid is not None:
        check_uid(uid, allow_uids, "what listens there is")


def check_uid(uid: int, allow_uids: Collection[int], what: str) -> None:
    """Raises StrangerRefused unless it is root's, ours or one of those."""
    if uid not in {0, os.geteuid(), *allow_uids}:
        raise StrangerRefused(
            f"{what} uid {uid} of this machine: neither root nor uid {os.geteuid()}, so it is refused; "
            f"--allow-uid {uid} lets it in")


def _address(name: tuple[object, ...]) -> Address:
    address = ipaddress.ip_address(str(name[0]).partition("%")[0])
    port = name[1]
    assert isinstance(port, int)
    return getattr(address, "ipv4_mapped", None) or address, port


def _in_our_namespace(sock: socket.socket) -> bool:
    """Whether the table that we can ask is the one that has this socket. A kernel that does not say is believed to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as own:
        try:
            return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8) == own.getsockopt(
                socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return True


# -- the kernel's table: by netlink, which finds one socket among many at once; else as /proc shows it

_DIAG_BY_FAMILY, _ERROR, _DONE, _REQUEST, _DUMP = 20, 2, 3, 1, 0x300
_HEADER = struct.Struct("=IHHII")
_QUERY = struct.Struct("=BBBxI")
_SOCKET_ID = struct.Struct("!HH16s16s12x")
_ANY_COOKIE = b"\xff" * 8
_ANSWER = struct.Struct("=BBBB48sIIIII")


def _find(local: Address, remote: Address) -> TcpSocket | None:
    """The socket with these two addresses; one that a process has, if there are several (of several devices)."""
    family = socket.AF_INET if local[0].version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError):
        for found in _ask_kernel(family, 0xFFF, local, remote):
            if (found.local, found.remote) == (local, remote) and found.state != LISTEN:
                return found
    matching = [each for each in _proc_table() if (each.local, each.remote) == (local, remote) and each.state != LISTEN]
    return max(matching, key=lambda each: bool(each.inode), default=None)


def _listening(family: int, port: int) -> list[TcpSocket]:
    with contextlib.suppress(OSError):
        found = _ask_kernel(family, 1 << LISTEN, (ipaddress.ip_address(0), port), None)
        return [each for each in found if each.local[1] == port]
    return [each for each in _proc_table() if each.state == LISTEN and each.local[1] == port]


def _ask_kernel(family: int, states: int, local: Address, remote: Address | None) -> Iterator[TcpSocket]:
    """One socket; or, without ``remote``, all on a port (sock_diag(7)). Raises OSError: none such, or no sock_diag here."""
    other = remote or (ipaddress.ip_address(0), 0)
    body = _QUERY.pack(family, socket.IPPROTO_TCP, 0, states) + _SOCKET_ID.pack(
        local[1], other[1], local[0].packed, other[0].packed)[:-8] + _ANY_COOKIE
    flags = _REQUEST if remote else _REQUEST | _DUMP
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4) as kernel:
        kernel.settimeout(1.0)
        kernel.sendto(_HEADER.pack(_HEADER.size + len(body), _DIAG_BY_FAMILY, flags, 1, 0) + body, (0, 0))
        while True:
            data = kernel.recv(1 << 16)
            while len(data) >= _HEADER.size:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size:length], data[(length + 3) & ~3:]
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", message)[0], "sock_diag")
                yield _parse_answer(message)
            if remote:
                return


def _parse_answer(message: bytes) -> TcpSocket:
    family, state, _, _, sockid, _, _, _, uid, inode = _ANSWER.unpack_from(message)
    sport, dport, source, destination = _SOCKET_ID.unpack(sockid)
    size = 4 if family == socket.AF_INET else 16
    local, remote = _address((_dotted(source[:size]), sport)), _address((_dotted(destination[:size]), dport))
    return TcpSocket(local, remote, state, uid, inode)


def _dotted(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def _proc_table() -> Iterator[TcpSocket]:
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/thread-self/net/{name}", encoding="ascii") as lines:
                next(lines, None)
                for line in lines:
                    fields = line.split()
                    local, remote = _proc_address(fields[1]), _proc_address(fields[2])
                    yield TcpSocket(local, remote, int(fields[3], 16), int(fields[7]), int(fields[9]))
        except FileNotFoundError:
            continue


def _proc_address(text: str) -> Address:
    """``0100007F:1F90``: words in this machine's order, the port as it is written."""
    words, _, port = text.partition(":")
    packed = b"".join(struct.pack("=I", int(words[i:i + 8], 16)) for i in range(0, len(words), 8))
    return _address((_dotted(packed), int(port, 16)))
