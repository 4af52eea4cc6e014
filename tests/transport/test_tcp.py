"""Real TCP sockets: options, plaintext, deadlines, resets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from colo.errors import AddressError, ChannelError, DeadlineExceeded, Interrupted
from colo.transport import TcpOptions, abort, check_plaintext, connect, listen, tune
from colo.transport.tcp import is_loopback

HAS_IPV6 = socket.has_ipv6
if HAS_IPV6:
    try:
        with socket.socket(socket.AF_INET6) as _probe:
            _probe.bind(("::1", 0))
    except OSError:
        HAS_IPV6 = False


def outside_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address: str = sock.getsockname()[0]
        return None if is_loopback(address) else address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", *(["[::1]"] if HAS_IPV6 else [])])
def test_port_0_shows_the_real_port_and_bytes_go_both_ways(host: str) -> None:
    with listen(f"tcp:{host}:0") as listener:
        assert listener.address.startswith(f"tcp:{host}:")
        assert not listener.address.endswith(":0")
        with connect(listener.address, 5) as ours, listener.accept(5) as theirs:
            ours.sendall(b"question")
            assert theirs.recv(100) == b"question"
            theirs.sendall(b"answer")
            assert ours.recv(100) == b"answer"


def test_both_ends_have_the_options_of_a_checkpoint_channel() -> None:
    options = TcpOptions(keepalive_idle_s=7, keepalive_interval_s=3, keepalive_count=4, user_timeout_ms=1234)
    with (
        listen("tcp:127.0.0.1:0", options=options) as listener,
        connect(listener.address, 5, options=options) as ours,
        listener.accept(5) as theirs,
    ):
        for sock in (ours, theirs):
            assert sock.gettimeout() is None
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            for option, value in (
                (socket.TCP_NODELAY, 1),
                (socket.TCP_KEEPIDLE, 7),
                (socket.TCP_KEEPINTVL, 3),
                (socket.TCP_KEEPCNT, 4),
                (socket.TCP_USER_TIMEOUT, 1234),
            ):
                assert sock.getsockopt(socket.IPPROTO_TCP, option) == value


@pytest.mark.parametrize("host", ["0.0.0.0", "", "192.0.2.1", *(["[::]"] if HAS_IPV6 else [])])
def test_plaintext_beyond_this_machine_is_refused_and_the_way_out_named(host: str) -> None:
    with pytest.raises(AddressError, match="is not this machine, and plaintext TCP") as caught:
        listen(f"tcp:{host}:4567")
    assert "ssh -N -L 4567:127.0.0.1:4567" in str(caught.value)
    assert "--insecure" in str(caught.value)
    if host == "192.0.2.1":
        with pytest.raises(AddressError, match="is not this machine"):
            connect(f"tcp:{host}:4567", 5)


@pytest.mark.parametrize(
    ("uri", "refused"),
    [
        ("tcp:127.0.0.1:1", False),
        ("tcp:localhost:1", False),
        ("unix:/x", False),
        ("fd:3", False),
        ("exec:nc host 1", False),
        ("tcp:192.0.2.1:1", True),
        ("tcp:[2001:db8::1]:1", True),
    ],
)
def test_what_others_are_to_connect_to_is_checked_the_same_way(uri: str, refused: bool) -> None:
    check_plaintext(uri, insecure=True)
    if refused:
        with pytest.raises(AddressError, match="plaintext TCP"):
            check_plaintext(uri, insecure=False)
    else:
        check_plaintext(uri, insecure=False)


def test_the_user_timeout_can_be_set_later() -> None:
    with socket.socket() as sock:
        tune(sock, 2.5)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2500


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
def test_insecure_listens_on_every_address(host: str) -> None:
    with listen(f"tcp:{host}:0", insecure=True) as listener:
        port = listener.address.rpartition(":")[2]
        with connect(f"tcp:127.0.0.1:{port}", 5), listener.accept(5):
            pass
        if address := outside_address():
            with pytest.raises(AddressError):
                connect(f"tcp:{address}:{port}", 5)
            with connect(f"tcp:{address}:{port}", 5, insecure=True), listener.accept(5):
                pass


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.255.0.3", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("fe80::1%lo", False),
        ("128.0.0.1", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_a_port_in_use_is_refused() -> None:
    with listen("tcp:127.0.0.1:0") as listener, pytest.raises(ChannelError, match="Address already in use"):
        listen(listener.address)


def test_a_port_can_be_listened_on_again_at_once() -> None:
    with listen("tcp:127.0.0.1:0") as listener:
        address = listener.address
        ours, theirs = connect(address, 5), listener.accept(5)
        theirs.close()  # leaves it in TIME_WAIT
        ours.close()
    listen(address).close()


def test_nobody_listening_is_said_at_once() -> None:
    with listen("tcp:127.0.0.1:0") as listener:
        address = listener.address
    with pytest.raises(ChannelError, match="Connection refused"):
        connect(address, 30)


def test_a_connection_never_meets_itself() -> None:
    """To a free port of the range for outgoing connections, Linux may connect a socket to itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for _ in range(50):
        with pytest.raises(ChannelError):
            connect(f"tcp:127.0.0.1:{port}", 5)


def test_names_that_do_not_resolve_and_port_0_are_refused() -> None:
    with pytest.raises(AddressError, match=r"cannot resolve 'no-such-host\.invalid'"):
        connect("tcp:no-such-host.invalid:1", 30)
    with pytest.raises(AddressError, match="port 0 is for listening"):
        connect("tcp:127.0.0.1:0", 1)


def test_a_peer_that_does_not_answer_runs_into_the_deadline() -> None:
    with listen("tcp:127.0.0.1:0", backlog=0) as listener:
        waiting = []
        phase = ""
        while not phase and len(waiting) < 20:
            try:
                waiting.append(connect(listener.address, 0.3))
            except DeadlineExceeded as error:
                phase = error.phase
        assert phase == "connect"
        assert len(waiting) <= 4
        for sock in waiting:
            sock.close()


def test_accept_has_a_deadline_and_is_ended_by_close() -> None:
    listener = listen("tcp:127.0.0.1:0")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        listener.accept(0.05)
    assert caught.value.phase == "accept"
    assert time.monotonic() - started >= 0.05
    errors = []

    def wait() -> None:
        try:
            listener.accept()
        except Interrupted as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    address = listener.address
    listener.close()
    listener.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(errors) == 3
    assert listener.address == address
    with pytest.raises(Interrupted):
        listener.accept(1)
    with pytest.raises(ChannelError):
        connect(address, 1)


def test_a_connection_that_was_reset_before_it_was_accepted_does_no_harm() -> None:
    with listen("tcp:127.0.0.1:0") as listener:
        abort(connect(listener.address, 5))
        with connect(listener.address, 5) as ours:
            ours.sendall(b"x")
            while True:
                with listener.accept(5) as theirs:
                    try:
                        if theirs.recv(1) == b"x":
                            break
                    except ConnectionResetError:
                        pass


def test_abort_resets_and_throws_away_what_was_not_sent() -> None:
    with listen("tcp:127.0.0.1:0") as listener:
        ours, theirs = connect(listener.address, 5), listener.accept(5)
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    started = time.monotonic()
    abort(ours)
    assert time.monotonic() - started < 5
    assert ours.fileno() == -1
    abort(ours)
    with pytest.raises(ConnectionResetError):
        b"".join(iter(lambda: theirs.recv(1 << 20), b""))
    theirs.close()


def test_abort_wakes_who_waits_to_read() -> None:
    with listen("tcp:127.0.0.1:0") as listener, connect(listener.address, 5) as ours, listener.accept(5):
        got: list[object] = []

        def read() -> None:
            try:
                got.append(ours.recv(1))
            except OSError as error:
                got.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.05)
        abort(ours)
        thread.join(10)
        assert not thread.is_alive()
        assert len(got) == 1


def test_a_listener_can_be_polled() -> None:
    import select

    with listen("tcp:127.0.0.1:0") as listener:
        assert listener.socket.fileno() == listener.fileno()
        assert not listener.socket.getblocking()
        assert select.select([listener], [], [], 0)[0] == []
        with connect(listener.address, 5):
            assert select.select([listener], [], [], 5)[0] == [listener]
