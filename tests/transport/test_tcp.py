"""Real TCP sockets: options, plaintext, deadlines, resets."""

from __future__ import annotations

import os
import select
import socket
import threading
import time

import pytest

from colo.abc import Transport
from colo.errors import AddressError, ChannelError, ChannelLost, DeadlineExceeded, Interrupted
from colo.transport import TcpOptions, check_plaintext, connect, connect_until, listen
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


def option_of(transport: Transport, level: int, option: int) -> int:
    with socket.socket(fileno=os.dup(transport.fileno())) as sock:
        return sock.getsockopt(level, option)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", *(["[::1]"] if HAS_IPV6 else [])])
def test_port_0_shows_the_real_port_and_bytes_go_both_ways(host: str) -> None:
    with listen(f"tcp:{host}:0") as listener:
        assert listener.address.startswith(f"tcp:{host}:")
        assert not listener.address.endswith(":0")
        with connect(listener.address, 5) as ours, listener.accept(5) as theirs:
            ours.send(b"question", timeout_s=5)
            assert theirs.receive(100, timeout_s=5) == b"question"
            theirs.send(b"answer", timeout_s=5)
            assert ours.receive(100, timeout_s=5) == b"answer"


def test_both_ends_have_the_options_of_a_checkpoint_channel() -> None:
    options = TcpOptions(keepalive_idle_s=7, keepalive_interval_s=3, keepalive_count=4, user_timeout_ms=1234)
    with (
        listen("tcp:127.0.0.1:0", options=options) as listener,
        connect(listener.address, 5, options=options) as ours,
        listener.accept(5) as theirs,
    ):
        for sock in (ours, theirs):
            assert not os.get_blocking(sock.fileno())
            assert not os.get_inheritable(sock.fileno())
            assert option_of(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            for option, value in (
                (socket.TCP_NODELAY, 1),
                (socket.TCP_KEEPIDLE, 7),
                (socket.TCP_KEEPINTVL, 3),
                (socket.TCP_KEEPCNT, 4),
                (socket.TCP_USER_TIMEOUT, 1234),
            ):
                assert option_of(sock, socket.IPPROTO_TCP, option) == value


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


def test_what_is_accepted_has_the_listeners_options_and_can_be_probed_sooner() -> None:
    with (
        listen("tcp:127.0.0.1:0", options=TcpOptions.within(2.5)) as listener,
        connect(listener.address, 5, options=TcpOptions(keepalive_idle_s=0, user_timeout_ms=0)) as ours,
        listener.accept(5) as theirs,
    ):
        assert option_of(theirs, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2500
        theirs.probe_silence(1)
        assert option_of(theirs, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1
        assert option_of(ours, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert option_of(ours, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


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
        with connect(listener.address, 5) as gone:
            gone.abort()
        with connect(listener.address, 5) as ours:
            ours.send(b"x", timeout_s=5)
            while True:
                with listener.accept(5) as theirs:
                    try:
                        if theirs.receive(1, timeout_s=5) == b"x":
                            break
                    except ChannelLost:
                        pass


def test_abort_tells_the_peer_of_a_reset_and_never_of_an_orderly_end() -> None:
    """Nothing was sent: an end that shut its writing half first would look as if it had ended on purpose."""
    for _ in range(20):
        with listen("tcp:127.0.0.1:0") as listener, connect(listener.address, 5) as ours, listener.accept(5) as theirs:
            ours.abort()
            with pytest.raises(ChannelLost, match="reset"):
                theirs.receive(1, timeout_s=10)


def test_where_the_kernel_cannot_be_asked_for_a_reset_abort_still_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colo.transport.sockets._disconnect", lambda fd: False)
    with listen("tcp:127.0.0.1:0") as listener, connect(listener.address, 5) as ours, listener.accept(5) as theirs:
        with pytest.raises(DeadlineExceeded):
            while True:
                ours.send(bytes(1 << 20), timeout_s=0)
        ours.abort()
        with pytest.raises(ChannelLost):
            ours.receive(1, timeout_s=10)
        with pytest.raises(ChannelLost):
            ours.send(b"x", timeout_s=10)
        ours.close()
        with pytest.raises(ChannelLost, match="reset"):
            while theirs.receive(1 << 20, timeout_s=10):
                pass


def test_connecting_goes_on_until_somebody_listens() -> None:
    with listen("tcp:127.0.0.1:0") as listener:
        address = listener.address
    looked = threading.Event()

    def ended() -> bool:
        looked.set()
        return False

    came = []
    thread = threading.Thread(
        target=lambda: came.append(connect_until(address, time.monotonic() + 60, pause_s=0.01, ended=ended)))
    thread.start()
    assert looked.wait(20)
    with listen(address) as listener, listener.accept(60):
        thread.join(60)
        came.pop().close()


def test_connecting_ends_when_it_is_told_to_or_when_time_is_up_or_at_once_for_an_error_that_is_final() -> None:
    with listen("tcp:127.0.0.1:0") as listener:
        address = listener.address
    with pytest.raises(Interrupted):
        connect_until(address, None, pause_s=60, ended=iter([False, False, True, True]).__next__)
    with pytest.raises(ChannelError, match="refused"):
        connect_until(address, time.monotonic(), pause_s=60, ended=lambda: False)
    with pytest.raises(AddressError):
        connect_until("tcp:127.0.0.1:0", None, pause_s=60, ended=lambda: False, final=(AddressError,))


def test_a_listener_can_be_polled() -> None:
    with listen("tcp:127.0.0.1:0") as listener:
        assert not os.get_blocking(listener.fileno())
        assert select.select([listener], [], [], 0)[0] == []
        with connect(listener.address, 5):
            assert select.select([listener], [], [], 5)[0] == [listener]
