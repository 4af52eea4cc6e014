"""Who is at the other end: asked of the kernel, with other users who are real."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from colo.abc import Peer
from colo.errors import StrangerRefused
from colo.transport import connect, listen, peers
from colo.transport.peers import accepting_peer_of, check_identity, listener_uid, peer_of, peer_uid
from tests.strangers import STRANGER, needs_root, user

CLONE_NEWNET = 0x40000000
ADDRESSES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


def check_peer(sock: socket.socket, allow_uids: Collection[int] = ()) -> None:
    check_identity(peer_of(sock), allow_uids, "a connection from")


def check_accepting(sock: socket.socket, allow_uids: Collection[int] = ()) -> None:
    check_identity(accepting_peer_of(sock), allow_uids, "what listens there is")


@pytest.fixture(params=["sock_diag", "proc"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to ask for the kernel's table; the second is for kernels without the first."""
    if request.param == "proc":
        def absent(*_: Any) -> Iterator[peers.TcpSocket]:
            raise OSError("not here")
            yield

        monkeypatch.setattr(peers, "_ask_kernel", absent)
    return str(request.param)


@pytest.mark.parametrize(("family", "host"), ADDRESSES)
def test_our_own_connections_are_ours(table: str, family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server, socket.create_connection(
            server.getsockname()[:2]) as client:
        check_accepting(client)  # nobody has accepted it yet
        accepted, _ = server.accept()
        with accepted:
            assert peer_of(accepted) == peer_of(client) == Peer(True, os.geteuid())
            check_peer(accepted)
            check_accepting(client)


def test_a_socket_for_both_families_knows_an_ipv4_peer(table: str) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            check_accepting(client)
            accepted, _ = server.accept()
            with accepted:
                assert peer_uid(accepted) == peer_uid(client) == os.geteuid()


def test_unix_sockets_say_who_made_them(short_path: Path) -> None:
    with listen(f"unix:{short_path}/s") as listener, connect(listener.address, 5) as client, listener.accept(5) as accepted:
        assert accepted.identity() == client.identity() == Peer(True, os.geteuid())


def test_an_end_that_is_closed_is_nobodys(table: str) -> None:
    """What is left of it in the table belongs to no process, and is shown as root's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"x")
            client.close()
            assert peer_of(accepted) == Peer(True, None)
            with pytest.raises(StrangerRefused, match="cannot be told"):
                check_peer(accepted)


def test_an_end_that_was_reset_is_refused(table: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            with pytest.raises(StrangerRefused):
                check_peer(accepted)


def _connector(family: socket.AddressFamily, where: tuple[str, int] | str) -> Callable[[socket.socket], None]:
    def do(parent: socket.socket) -> None:
        with socket.socket(family) as sock:
            sock.connect(where)
            sock.sendall(b"hello")
            parent.sendall(b"connected")
            parent.recv(1)

    return do


@needs_root
@pytest.mark.parametrize(("family", "host"), ADDRESSES)
def test_another_user_who_connects_is_told_from_us(table: str, family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        with user(STRANGER, _connector(family, server.getsockname()[:2])):
            accepted, _ = server.accept()
            with accepted:
                assert peer_uid(accepted) == STRANGER
                with pytest.raises(StrangerRefused, match=f"--allow-uid {STRANGER} lets it in"):
                    check_peer(accepted)
                check_peer(accepted, [STRANGER])
                with pytest.raises(StrangerRefused):
                    check_peer(accepted, [STRANGER + 1])


@needs_root
def test_another_user_who_connects_to_a_unix_socket_is_told_from_us(short_path: Path) -> None:
    short_path.chmod(0o755)
    with listen(f"unix:{short_path}/s") as listener:
        (short_path / "s").chmod(0o777)
        with user(STRANGER, _connector(socket.AF_UNIX, f"{short_path}/s")), listener.accept(10) as accepted:
            assert accepted.identity() == Peer(True, STRANGER)
            with pytest.raises(StrangerRefused):
                accepted.check_user()
            accepted.check_user([STRANGER])


@needs_root
def test_a_stranger_who_closed_his_end_is_not_taken_for_root(table: str) -> None:
    """A stream that was sent and closed at once waits to be read, and its sender is gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        def do(parent: socket.socket) -> None:
            with socket.create_connection(server.getsockname()) as sock:
                sock.sendall(b"hello")
            parent.sendall(b"closed")

        with user(STRANGER, do) as child:
            assert child.recv(10) == b"closed"
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
                with pytest.raises(StrangerRefused):
                    check_peer(accepted)


def _accepter(host: str, accept: bool) -> Callable[[socket.socket], None]:
    def do(parent: socket.socket) -> None:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
            parent.sendall(str(server.getsockname()[1]).encode())
            if accept:
                accepted, _ = server.accept()
                parent.sendall(b"accepted")
                assert accepted.recv(1) == b"", "something was sent to a stranger"
            parent.recv(1)

    return do


@needs_root
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("accept", [True, False])
def test_nothing_is_sent_to_another_user_who_took_the_port(table: str, host: str, accept: bool) -> None:
    with user(STRANGER, _accepter(host, accept)) as child:
        port = int(child.recv(10))
        target = "::1" if ":" in host else "127.0.0.1"
        with socket.create_connection((target, port)) as sock:
            if accept:
                assert child.recv(10) == b"accepted"
            with pytest.raises(StrangerRefused, match=f"uid {STRANGER}"):
                check_accepting(sock)
            check_accepting(sock, [STRANGER])
        uri = f"tcp:[{target}]:{port}" if ":" in target else f"tcp:{target}:{port}"
        if not accept:
            with pytest.raises(StrangerRefused, match=f"uid {STRANGER}"):
                connect(uri, 5)
            connect(uri, 5, allow_uids=[STRANGER]).close()


@needs_root
def test_nothing_is_sent_to_another_user_who_took_the_path(short_path: Path) -> None:
    short_path.chmod(0o777)

    def do(parent: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{short_path}/s")
            server.listen()
            parent.sendall(b"up")
            parent.recv(1)

    with user(STRANGER, do) as child:
        assert child.recv(2) == b"up"
        with pytest.raises(StrangerRefused, match=f"uid {STRANGER}"):
            connect(f"unix:{short_path}/s", 5)
        connect(f"unix:{short_path}/s", 5, allow_uids=[STRANGER]).close()


@needs_root
def test_the_more_exact_of_two_listeners_is_the_one_that_is_asked_for(table: str) -> None:
    with socket.socket() as everywhere, suppress(OSError):
        everywhere.bind(("127.0.0.2", 0))
        everywhere.listen()
        port = everywhere.getsockname()[1]

        def do(parent: socket.socket) -> None:
            with socket.create_server(("127.0.0.1", port)):
                parent.sendall(b"up")
                parent.recv(1)

        with user(STRANGER, do) as child:
            assert child.recv(2) == b"up"
            assert listener_uid((ipaddress.ip_address("127.0.0.1"), port)) == STRANGER
            assert listener_uid((ipaddress.ip_address("127.0.0.2"), port)) == os.geteuid()
            assert listener_uid((ipaddress.ip_address("127.0.0.3"), port)) is None


@needs_root
def test_a_socket_of_another_network_namespace_is_not_looked_up_in_ours() -> None:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
                theirs.sendall(b"no")
                return
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
                accepted, _ = server.accept()
                socket.send_fds(theirs, [b"here"], [accepted.fileno()])
                theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    try:
        ours.settimeout(20)
        message, fds, _, _ = socket.recv_fds(ours, 10, 1)
        if not fds:
            pytest.skip(f"no network namespace can be made here ({message!r})")
        with socket.socket(fileno=fds[0]) as accepted:
            assert peer_of(accepted) == Peer(True, None)
            with pytest.raises(StrangerRefused, match="namespace"):
                check_peer(accepted)
    finally:
        ours.close()
        os.waitpid(pid, 0)
