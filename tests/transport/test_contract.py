"""What every transport promises (colo.abc.Transport), tried on each, and in both directions: from the end that connected, and
from the end that accepted. A new transport joins by one line in ``ADDRESSES``."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from colo import abc
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.send.pageencoder import PageEncoder
from colo.errors import ChannelError, ChannelLost, DeadlineExceeded, Interrupted
from colo.transport import connect, listen
from colo.wake import Wake, wait_ready

ADDRESSES = {"tcp": "tcp:127.0.0.1:0", "tcp6": "tcp:[::1]:0", "unix": "unix:{directory}/s"}
LONG_S = 30.0
"""More than anything here takes: whoever waits so long has failed."""
SHORT_S = 0.05
"""For what never comes."""
YANK_S = 0.1
EXCHANGE = b"QEVM" + bytes(range(64)) + b"last"
ANSWER = b"and back"


class Ends(NamedTuple):
    """``here`` is what is tried, ``there`` its peer."""

    here: abc.Transport
    there: abc.Transport


@pytest.fixture(params=ADDRESSES)
def listener(request: pytest.FixtureRequest, short_path: Path) -> Iterator[abc.Listener]:
    try:
        made = listen(ADDRESSES[request.param].format(directory=short_path), backlog=64)
    except ChannelError as error:
        if request.param != "tcp6":
            raise
        pytest.skip(f"no IPv6 here: {error}")
    with made:
        yield made


@pytest.fixture(params=["from the end that connected", "from the end that accepted"])
def both_ways(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "from the end that accepted")


@pytest.fixture
def pair(listener: abc.Listener, both_ways: bool) -> Iterator[Callable[[], Ends]]:
    """Makes connections, which are closed at the end."""
    made: list[abc.Transport] = []

    def make() -> Ends:
        connected = connect(listener.address, LONG_S)
        made.append(connected)
        accepted = listener.accept(LONG_S)
        made.append(accepted)
        return Ends(accepted, connected) if both_ways else Ends(connected, accepted)

    yield make
    for each in made:
        each.close()


@pytest.fixture
def ends(pair: Callable[[], Ends]) -> Ends:
    return pair()


@pytest.fixture
def wake() -> Iterator[Wake]:
    each = Wake()
    yield each
    each.close()


class Doing:
    """``do`` on a thread of its own; :attr:`error` is what it raised."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self._do = do
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._do()
        except BaseException as error:
            self.error = error
        self.ended_at = time.monotonic()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def finish(self) -> None:
        self._thread.join(LONG_S)
        assert self.over


def receive_exactly(transport: abc.Transport, length: int) -> bytes:
    got = b""
    while len(got) < length and (more := transport.receive(length - len(got), timeout_s=LONG_S)):
        got += more
    return got


def fill(transport: abc.Transport) -> int:
    """Send until no more is taken; how much was."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += os.write(transport.fileno(), bytes(1 << 16))
    return sent


def until_blocked(doing: Doing) -> None:
    """Give it the time to come to its wait. Whether it has cannot be told: at worst it finds at its start what would have
    ended the wait."""
    time.sleep(SHORT_S)
    assert not doing.over, doing.error or doing.result


# -- what it is


def test_it_keeps_the_promise_by_its_type(ends: Ends, listener: abc.Listener) -> None:
    assert isinstance(listener, abc.Listener)
    for each in ends:
        assert isinstance(each, abc.Transport)
        assert not os.get_blocking(each.fileno())
        assert not os.get_inheritable(each.fileno())


def test_who_and_where_the_peer_is(ends: Ends, listener: abc.Listener) -> None:
    scheme = listener.address.partition(":")[0]
    for each in ends:
        assert each.peer.partition(":")[0] == scheme
        assert each.identity() == abc.Peer(local=True, uid=os.geteuid())
        each.check_user()


def test_the_end_that_connected_knows_how_to_reach_the_other_again(listener: abc.Listener) -> None:
    import socket

    with connect(listener.address, LONG_S) as first, listener.accept(LONG_S):
        family, address = first.address
        with socket.socket(family) as again:
            again.connect(address)  # type: ignore[arg-type]
            with listener.accept(LONG_S) as accepted:
                again.sendall(b"x")
                assert accepted.receive(1, timeout_s=LONG_S) == b"x"


# -- bytes


@pytest.mark.parametrize("step", [1, 3, len(EXCHANGE)])
def test_a_whole_exchange_however_it_is_cut(ends: Ends, step: int) -> None:
    for at in range(0, len(EXCHANGE), step):
        ends.here.send(EXCHANGE[at : at + step], timeout_s=LONG_S)
    assert receive_exactly(ends.there, len(EXCHANGE)) == EXCHANGE
    for at in range(0, len(ANSWER), step):
        ends.there.send(ANSWER[at : at + step], timeout_s=LONG_S)
    got = b""
    while len(got) < len(ANSWER):
        got += ends.here.receive(step, timeout_s=LONG_S)
    assert got == ANSWER


def test_a_trickle_is_heard_as_it_comes(ends: Ends) -> None:
    for value in EXCHANGE:
        ends.there.send(bytes([value]), timeout_s=LONG_S)
        assert ends.here.receive(1 << 16, timeout_s=LONG_S) == bytes([value])


def test_small_parts_leave_together_and_large_ones_in_their_order(ends: Ends) -> None:
    parts: list[bytes | bytearray | memoryview] = [b"", b"head", bytearray(b"body"), memoryview(b"tail"), b""]
    ends.here.send(*parts, timeout_s=LONG_S)
    assert ends.there.receive(100, timeout_s=LONG_S) == b"headbodytail"
    large = [os.urandom(9 << 20), b"x" * 5, os.urandom(5 << 20), *(bytes([n % 256]) for n in range(300))]
    sending = Doing(lambda: ends.here.send(*large, timeout_s=LONG_S))
    assert receive_exactly(ends.there, sum(map(len, large))) == b"".join(large)
    sending.finish()
    assert sending.error is None


def test_nothing_is_sent_for_nothing(ends: Ends) -> None:
    ends.here.send(timeout_s=0)
    ends.here.send(b"", timeout_s=0)
    assert ends.there.peek(1) is None


def test_peeking_takes_nothing(ends: Ends) -> None:
    assert ends.here.peek(4) is None
    ends.there.send(EXCHANGE, timeout_s=LONG_S)
    assert wait_ready((ends.here.fileno(),), LONG_S)
    for _ in range(2):
        assert ends.here.peek(4) == EXCHANGE[:4]
    assert receive_exactly(ends.here, len(EXCHANGE)) == EXCHANGE
    ends.there.close()
    assert wait_ready((ends.here.fileno(),), LONG_S)
    assert ends.here.peek(4) == b""


def test_the_core_and_python_speak_over_one_descriptor_in_one_order(ends: Ends, wake: Wake) -> None:
    encoder = PageEncoder(ends.here.fileno(), wake_fd=wake.fd)
    encoder.write(EXCHANGE[:4], time.monotonic_ns() + int(LONG_S * 1e9), True)
    ends.here.send(EXCHANGE[4:20], timeout_s=LONG_S)
    encoder.write(EXCHANGE[20:], time.monotonic_ns() + int(LONG_S * 1e9), True)
    encoder.close()
    ends.here.send(ANSWER, timeout_s=LONG_S)
    buffer = ReadBuffer(ends.there.fileno(), wake_fd=wake.fd)
    buffer.set_deadline("message", LONG_S)
    assert buffer.read_exact(len(EXCHANGE)) == EXCHANGE
    assert buffer.read_exact(len(ANSWER)) == ANSWER


def test_much_passes_both_ways_at_once(ends: Ends) -> None:
    memory = os.urandom(8 << 20)
    far = Doing(lambda: ends.there.send(memory, timeout_s=LONG_S))
    near = Doing(lambda: ends.here.send(memory, timeout_s=LONG_S))
    reading = Doing(lambda: receive_exactly(ends.there, len(memory)))
    assert receive_exactly(ends.here, len(memory)) == memory
    for each in (far, near, reading):
        each.finish()
        assert each.error is None
    assert reading.result == memory


# -- a peer that is gone


@pytest.mark.parametrize("how", ["close", "abort"])
def test_the_peer_gone_at_every_byte(pair: Callable[[], Ends], how: str) -> None:
    """What came whole before an orderly end is heard; then the end, and nothing that hangs. Of what came before a reset, a
    part is, and then the loss."""
    for length in range(len(EXCHANGE) + 1):
        here, there = pair()
        if length:
            there.send(EXCHANGE[:length], timeout_s=LONG_S)
        getattr(there, how)()
        got, lost = b"", False
        try:
            while more := here.receive(7, timeout_s=LONG_S):
                got += more
        except ChannelLost:
            lost = True
        assert got == EXCHANGE[:length] or (lost and EXCHANGE.startswith(got))
        assert lost == (how == "abort" and here.peer.startswith("tcp"))
        for each in (here, there):
            each.close()


@pytest.mark.parametrize("how", ["close", "abort"])
def test_the_core_hears_of_a_peer_gone_at_every_byte(pair: Callable[[], Ends], how: str) -> None:
    for length in range(len(EXCHANGE)):
        here, there = pair()
        buffer = ReadBuffer(here.fileno(), capacity_bytes=4096)
        buffer.set_deadline("message", LONG_S)
        if length:
            there.send(EXCHANGE[:length], timeout_s=LONG_S)
        getattr(there, how)()
        with pytest.raises(ChannelLost):
            buffer.read_exact(len(EXCHANGE))
        for each in (here, there):
            each.close()


def test_sending_to_a_peer_that_is_gone_fails_and_raises_no_signal(ends: Ends) -> None:
    ends.there.close()
    with pytest.raises(ChannelLost):
        for _ in range(1000):
            ends.here.send(bytes(1 << 16), timeout_s=LONG_S)


def test_a_peer_that_closes_with_something_unread_loses_nothing_that_it_sent_before(ends: Ends) -> None:
    ends.there.send(EXCHANGE, timeout_s=LONG_S)
    assert receive_exactly(ends.here, len(EXCHANGE)) == EXCHANGE
    ends.here.send(ANSWER, timeout_s=LONG_S)
    assert wait_ready((ends.there.fileno(),), LONG_S)
    ends.there.close()
    with pytest.raises((ChannelLost, DeadlineExceeded)):
        while ends.here.receive(1, timeout_s=LONG_S):
            pass
        raise ChannelLost("an orderly end")


def test_a_close_still_delivers_all_that_was_sent(ends: Ends) -> None:
    sent = fill(ends.here)
    ends.here.close()
    got = 0
    while more := ends.there.receive(1 << 20, timeout_s=LONG_S):
        got += len(more)
    assert got == sent


def test_half_a_connection_can_end_and_the_other_go_on(ends: Ends) -> None:
    ends.here.send(EXCHANGE, timeout_s=LONG_S)
    ends.here.end_sending()
    ends.here.end_sending()
    assert receive_exactly(ends.there, len(EXCHANGE)) == EXCHANGE
    assert ends.there.receive(1, timeout_s=LONG_S) == b""
    ends.there.send(ANSWER, timeout_s=LONG_S)
    assert receive_exactly(ends.here, len(ANSWER)) == ANSWER
    with pytest.raises(ChannelLost):
        ends.here.send(b"x", timeout_s=LONG_S)
    ends.there.close()
    assert ends.here.receive(1, timeout_s=LONG_S) == b""


# -- a peer that hangs


def test_a_peer_that_says_nothing_runs_into_the_deadline(ends: Ends) -> None:
    for timeout_s in (0, SHORT_S):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            ends.here.receive(1, timeout_s=timeout_s)
        assert caught.value.phase == "receive"
        assert time.monotonic() - began >= timeout_s
    ends.there.send(b"x", timeout_s=LONG_S)
    assert ends.here.receive(1, timeout_s=LONG_S) == b"x", "the connection lives on"


def test_a_peer_that_takes_nothing_runs_into_the_deadline_of_who_sends(ends: Ends) -> None:
    fill(ends.here)
    for timeout_s in (0, SHORT_S):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="took 0 of") as caught:
            ends.here.send(bytes(1 << 20), timeout_s=timeout_s, phase="send pages")
        assert caught.value.phase == "send pages"
        assert time.monotonic() - began >= timeout_s


def test_a_peer_that_takes_a_byte_now_and_then_does_not_stretch_the_deadline(ends: Ends) -> None:
    fill(ends.here)
    sending = Doing(lambda: ends.here.send(bytes(64 << 20), timeout_s=0.3))
    while not sending.over:
        with contextlib.suppress(DeadlineExceeded):
            ends.there.receive(1, timeout_s=SHORT_S)
    assert isinstance(sending.error, DeadlineExceeded)


def test_who_sends_waits_for_a_peer_that_is_slow(ends: Ends) -> None:
    sent = fill(ends.here)
    sending = Doing(lambda: ends.here.send(EXCHANGE * 1000, timeout_s=LONG_S))
    until_blocked(sending)
    assert receive_exactly(ends.there, sent) == bytes(sent)
    assert receive_exactly(ends.there, len(EXCHANGE) * 1000) == EXCHANGE * 1000
    sending.finish()
    assert sending.error is None


def test_what_waits_to_be_taken_is_counted(ends: Ends) -> None:
    assert ends.here.unsent_bytes() == 0
    fill(ends.here)
    assert ends.here.unsent_bytes() > 0
    while ends.here.unsent_bytes():
        ends.there.receive(1 << 20, timeout_s=LONG_S)
    ends.here.close()
    assert ends.here.unsent_bytes() == 0


def test_how_long_the_peer_was_silent_is_known_or_infinite(ends: Ends) -> None:
    ends.there.send(b"x", timeout_s=LONG_S)
    assert ends.here.receive(1, timeout_s=LONG_S) == b"x"
    if ends.here.peer.startswith("tcp"):
        assert 0 <= ends.here.silence_ms() < LONG_S * 1000
        ends.here.probe_silence(1)
    else:
        assert ends.here.silence_ms() == float("inf")
        ends.here.probe_silence(1)
    ends.here.close()
    assert ends.here.silence_ms() == float("inf")


# -- an end from this side


def waits(ends: Ends, wake: Wake) -> dict[str, Callable[[], object]]:
    """Every way to wait for the peer."""
    def read_by_core() -> None:
        buffer = ReadBuffer(ends.here.fileno(), wake_fd=wake.fd, capacity_bytes=4096)
        buffer.set_deadline("message", LONG_S)
        buffer.read_exact(1)

    def write_by_core() -> None:
        fill(ends.here)
        encoder = PageEncoder(ends.here.fileno(), wake_fd=wake.fd)
        try:
            while True:
                encoder.write(bytes(1 << 20), time.monotonic_ns() + int(LONG_S * 1e9), True)
        finally:
            with contextlib.suppress(ChannelError):
                encoder.close()

    def send() -> None:
        fill(ends.here)
        while True:
            ends.here.send(bytes(1 << 20), timeout_s=LONG_S, wake_fd=wake.fd)

    return {
        "receive": lambda: ends.here.receive(1, timeout_s=LONG_S, wake_fd=wake.fd),
        "receive for ever": lambda: ends.here.receive(1, timeout_s=None, wake_fd=wake.fd),
        "send": send,
        "core reads": read_by_core,
        "core writes": write_by_core,
    }


WAITS = ("receive", "receive for ever", "send", "core reads", "core writes")


@pytest.mark.parametrize("name", WAITS)
def test_a_wake_up_ends_any_wait(ends: Ends, wake: Wake, name: str) -> None:
    doing = Doing(waits(ends, wake)[name])
    until_blocked(doing)
    wake.set()
    doing.finish()
    assert isinstance(doing.error, Interrupted)
    wake.clear()
    if "write" not in name and name != "send":
        ends.there.send(b"x", timeout_s=LONG_S)
        assert ends.here.receive(1, timeout_s=LONG_S) == b"x", "the connection lives on"


@pytest.mark.parametrize("name", WAITS)
def test_a_yank_ends_any_wait_and_the_peer_hears_of_it(ends: Ends, wake: Wake, name: str) -> None:
    """From another thread, while one waits in poll(2) with the descriptor held."""
    doing = Doing(waits(ends, wake)[name])
    until_blocked(doing)
    began = time.monotonic()
    ends.here.abort()
    assert time.monotonic() - began < LONG_S, "it never blocks"
    doing.finish()
    assert isinstance(doing.error, ChannelLost), doing.error
    try:
        while ends.there.receive(1 << 20, timeout_s=LONG_S):
            pass
        heard_reset = False
    except ChannelLost:
        heard_reset = True
    assert heard_reset == ends.here.peer.startswith("tcp")
    with pytest.raises(ChannelLost):
        ends.here.receive(1, timeout_s=LONG_S)
    with pytest.raises(ChannelLost):
        ends.here.send(b"x", timeout_s=LONG_S)
    ends.here.abort()


def test_of_many_yanks_the_quickest_is_quick(pair: Callable[[], Ends], wake: Wake) -> None:
    """Within 100 ms; a machine that is busy may be late now and then, not always."""
    took = []
    while not took or (min(took) >= YANK_S and len(took) < 50):
        ends = pair()
        doing = Doing(waits(ends, wake)["send"])
        until_blocked(doing)
        began = time.monotonic()
        ends.here.abort()
        doing.finish()
        took.append(doing.ended_at - began)
        for each in ends:
            each.close()
    assert min(took) < YANK_S


def test_an_aborted_one_keeps_its_number_until_it_is_closed(ends: Ends) -> None:
    number = ends.here.fileno()
    ends.here.abort()
    assert ends.here.fileno() == number
    os.fstat(number)
    ends.here.close()
    ends.here.close()
    assert ends.here.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    ends.here.abort()
    ends.here.end_sending()
    for do in (lambda: ends.here.send(b"x", timeout_s=LONG_S), lambda: ends.here.receive(1, timeout_s=LONG_S)):
        with pytest.raises(ChannelLost):
            do()


def test_what_was_sent_before_an_abort_and_not_taken_is_thrown_away(ends: Ends) -> None:
    sent = fill(ends.here)
    ends.here.abort()
    ends.here.close()
    got = 0
    with contextlib.suppress(ChannelLost):
        while more := ends.there.receive(1 << 16, timeout_s=LONG_S):
            got += len(more)
    assert got <= sent
    if ends.here.peer.startswith("tcp"):
        assert got < sent


# -- listening


def test_a_listener_can_be_polled_and_has_a_deadline(listener: abc.Listener) -> None:
    assert not wait_ready((listener.fileno(),), 0)
    for timeout_s in (0, SHORT_S):
        with pytest.raises(DeadlineExceeded) as caught:
            listener.accept(timeout_s)
        assert caught.value.phase == "accept"
    with connect(listener.address, LONG_S):
        assert wait_ready((listener.fileno(),), LONG_S) == {listener.fileno()}
        listener.accept(0).close()


def test_closing_the_listener_ends_accept_and_leaves_what_was_accepted(listener: abc.Listener) -> None:
    with connect(listener.address, LONG_S) as ours, listener.accept(LONG_S) as theirs:
        doing = Doing(listener.accept)
        until_blocked(doing)
        listener.close()
        doing.finish()
        assert isinstance(doing.error, Interrupted)
        assert listener.fileno() == -1
        with pytest.raises(Interrupted):
            listener.accept(0)
        ours.send(b"x", timeout_s=LONG_S)
        assert theirs.receive(1, timeout_s=LONG_S) == b"x"
        with pytest.raises(ChannelError):
            connect(listener.address, 1)


# -- what is left behind


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_however_it_ends(listener: abc.Listener, both_ways: bool) -> None:
    def once(end: Callable[[abc.Transport], None]) -> None:
        ends = [connect(listener.address, LONG_S), listener.accept(LONG_S)]
        here, there = ends[::-1] if both_ways else ends
        fill(here)
        end(here)
        there.close()
        here.close()

    once(lambda here: None)
    before = open_descriptors()
    for _ in range(20):
        for end in (
            lambda here: None, lambda here: here.abort(), lambda here: here.end_sending(), lambda here: here.close(),
        ):
            once(end)
        with contextlib.suppress(DeadlineExceeded):
            listener.accept(0)
    assert open_descriptors() == before


def test_a_forked_child_keeps_neither_the_connection_nor_the_listener_open(ends: Ends, listener: abc.Listener) -> None:
    numbers = [ends.here.fileno(), ends.there.fileno(), listener.fileno()]
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            left = [fd for fd in numbers if os.path.exists(f"/proc/self/fd/{fd}")]
            ends.here.abort()  # the copy is gone: its parent's connection is not touched
            ends.there.close()
            listener.close()
            os.write(tell, repr(left).encode())
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(tell)
        assert select.select([told], [], [], LONG_S)[0]
        assert os.read(told, 100) == b"[]"
        ends.here.send(b"x", timeout_s=LONG_S)
        assert ends.there.receive(1, timeout_s=LONG_S) == b"x"
        with connect(listener.address, LONG_S):
            listener.accept(LONG_S).close()
        ends.here.close()
        assert ends.there.receive(1, timeout_s=LONG_S) == b"", "the child would keep it open"
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_forked_while_another_thread_ends_it_does_not_wait_for_that(ends: Ends) -> None:
    with ends.here._closing:  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            ends.here.abort()
            ends.here.close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
