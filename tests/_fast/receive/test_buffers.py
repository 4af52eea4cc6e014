"""ReadBuffer: positions, ends, deadlines and signals, on real descriptors."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import ChannelLost, DeadlineExceeded, Interrupted, Truncated


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_numbers_are_big_endian_and_the_position_counts_bytes():
    buf = ReadBuffer.from_bytes(bytes(range(1, 16)))
    assert buf.read_u8() == 0x01
    assert buf.read_u16() == 0x0203
    assert buf.read_u32() == 0x04050607
    assert buf.read_u64() == 0x08090A0B0C0D0E0F
    assert buf.position == 15
    assert buf.at_end()


def test_reading_past_the_end_of_bytes_says_where():
    buf = ReadBuffer.from_bytes(b"abc")
    buf.skip(1)
    with pytest.raises(Truncated, match="at byte 3") as caught:
        buf.read_u32()
    assert caught.value.offset == 3


def test_empty_bytes_are_at_their_end():
    buf = ReadBuffer.from_bytes(b"")
    assert buf.at_end()
    assert buf.peek(10) == b""
    with pytest.raises(Truncated):
        buf.read_u8()


def test_peek_does_not_move_and_is_short_only_at_the_end():
    buf = ReadBuffer.from_bytes(b"abcdef")
    assert buf.peek(4) == b"abcd"
    assert buf.position == 0
    buf.skip(4)
    assert buf.peek(10) == b"ef"


@pytest.mark.parametrize("chunk", [1, 3, 4096, 100_000])
def test_bytes_arrive_whole_however_they_are_cut(pair, chunk):
    ours, theirs = pair
    data = os.urandom(300_000)

    def send():
        for i in range(0, len(data) if chunk > 4 else 2000, chunk):
            theirs.sendall(data[i : i + chunk])

    thread = threading.Thread(target=send)
    thread.start()
    buf = ReadBuffer(ours.fileno(), capacity_bytes=4096)
    want = len(data) if chunk > 4 else 2000
    assert buf.read_exact(100) == data[:100]
    assert buf.peek(1000) == data[100:1100]
    got = data[:100]
    while len(got) < want:
        got += buf.read_exact(min(7777, want - len(got)))
    assert got == data[:want]
    assert buf.position == want
    thread.join()


def test_a_closed_socket_is_a_lost_channel(pair):
    ours, theirs = pair
    theirs.sendall(b"ab")
    theirs.close()
    buf = ReadBuffer(ours.fileno())
    with pytest.raises(ChannelLost, match="closed the connection at byte 2"):
        buf.read_u32()


def test_a_half_closed_socket_gives_what_it_sent_first(pair):
    ours, theirs = pair
    theirs.sendall(b"abcd")
    theirs.shutdown(socket.SHUT_WR)
    buf = ReadBuffer(ours.fileno())
    assert buf.read_exact(4) == b"abcd"
    assert buf.at_end()


def test_a_reset_is_a_lost_channel():
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with ours, pytest.raises(ChannelLost, match="reset"):
            ReadBuffer(ours.fileno()).read_u8()


def test_silence_ends_at_the_idle_limit(pair):
    buf = ReadBuffer(pair[0].fileno())
    buf.set_deadline("ram", None)
    buf.set_idle(0.05)
    with pytest.raises(DeadlineExceeded, match="not a byte") as caught:
        buf.read_u8()
    assert caught.value.phase == "progress"


def test_trickling_bytes_do_not_extend_the_deadline(pair):
    ours, theirs = pair
    stop = threading.Event()

    def trickle():
        while not stop.wait(0.02):
            theirs.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    buf = ReadBuffer(ours.fileno())
    buf.set_deadline("message", 0.3)
    buf.set_idle(0.2)
    try:
        with pytest.raises(DeadlineExceeded, match="'message'") as caught:
            buf.read_exact(100_000)
        assert caught.value.phase == "message"
    finally:
        stop.set()
        thread.join()


def test_the_wake_descriptor_ends_a_wait(pair):
    wake = os.eventfd(0)
    try:
        buf = ReadBuffer(pair[0].fileno(), wake_fd=wake)
        threading.Timer(0.05, os.eventfd_write, (wake, 1)).start()
        with pytest.raises(Interrupted):
            buf.read_u8()
    finally:
        os.close(wake)


def test_signal_handlers_run_while_waiting(pair):
    ran = []
    before = signal.signal(signal.SIGALRM, lambda *_: ran.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
        buf = ReadBuffer(pair[0].fileno())
        buf.set_deadline("message", 0.3)
        with pytest.raises(DeadlineExceeded):
            buf.read_u8()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(ran) >= 3


def test_a_handler_that_raises_ends_the_wait(pair):
    def handler(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        with pytest.raises(KeyboardInterrupt):
            ReadBuffer(pair[0].fileno()).read_u8()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_poll_tells_without_reading(pair):
    ours, theirs = pair
    buf = ReadBuffer(ours.fileno())
    assert not buf.poll(10)
    theirs.sendall(b"a")
    assert buf.poll(1000)
    assert buf.position == 0
    assert buf.read_u8() == ord("a")


def test_pipes_and_files_end_in_truncated(tmp_path):
    read_end, write_end = os.pipe()
    os.write(write_end, b"abc")
    os.close(write_end)
    try:
        buf = ReadBuffer(read_end)
        assert not buf.is_socket
        assert buf.read_exact(3) == b"abc"
        with pytest.raises(Truncated):
            buf.read_u8()
    finally:
        os.close(read_end)
    path = tmp_path / "stream"
    path.write_bytes(b"x" * 10_000)
    with path.open("rb") as file:
        buf = ReadBuffer(file.fileno(), capacity_bytes=4096)
        assert len(buf.read_exact(9_999)) == 9_999
        with pytest.raises(Truncated, match="at byte 10000"):
            buf.read_u16()


def test_refused_arguments(pair):
    with pytest.raises(ValueError, match="capacity_bytes"):
        ReadBuffer(pair[0].fileno(), capacity_bytes=1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        ReadBuffer(10_000)
    with pytest.raises(ValueError, match="limited"):
        ReadBuffer.from_bytes(b"x").read_exact(1 << 40)
