"""The page encoder against a slow receiver written from the wire format's description."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import struct
import threading
import time

import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.send import pageencoder
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import PageCache, ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo.errors import ChannelError, ChannelLost, DeadlineExceeded, Interrupted, StorageError
from colo.wire import RamFlag

PAGE = 4096
EOS = struct.pack(">Q", RamFlag.EOS)


def apply_xbzrle(encoded: bytes, page: bytearray) -> None:
    at = position = 0

    def number() -> int:
        nonlocal at
        value = encoded[at]
        at += 1
        if value & 0x80:
            value = value & 0x7F | encoded[at] << 7
            at += 1
        return value

    while at < len(encoded):
        position += number()
        length = number()
        page[position : position + length] = encoded[at : at + length]
        at += length
        position += length


class Receiver:
    """Applies a section body to its own RAM blocks and remembers the records' kinds."""

    def __init__(self, blocks: dict[str, int], page_bytes: int = PAGE) -> None:
        self.page_bytes = page_bytes
        self.blocks = {name: bytearray(size) for name, size in blocks.items()}
        self.records: list[tuple[str, str, int]] = []
        self.names = 0
        self.bytes_by_kind: dict[str, int] = {}

    def feed(self, body: bytes) -> bytes:
        """Apply records up to EOS or the end; returns what follows EOS."""
        at, block = 0, ""
        size = self.page_bytes
        while at < len(body):
            start = at
            (word,) = struct.unpack_from(">Q", body, at)
            at += 8
            offset, flags = word & ~(0x3FF), RamFlag(word & 0x3FF)
            if flags == RamFlag.EOS:
                return body[at:]
            if flags & RamFlag.CONTINUE:
                assert block, "CONTINUE with no block before"
            else:
                block = body[at + 1 : at + 1 + body[at]].decode()
                at += 1 + body[at]
                self.names += 1
            ram = self.blocks[block]
            assert offset + size <= len(ram)
            kind = flags & ~RamFlag.CONTINUE
            if kind == RamFlag.ZERO:
                ram[offset : offset + size] = bytes([body[at]]) * size
                at += 1
                name = "zero"
            elif kind == RamFlag.PAGE:
                assert len(body) - at >= size
                ram[offset : offset + size] = body[at : at + size]
                at += size
                name = "page"
            else:
                assert kind == RamFlag.XBZRLE
                encoding, length = struct.unpack_from(">BH", body, at)
                assert encoding == 1
                page = bytearray(ram[offset : offset + size])
                apply_xbzrle(body[at + 3 : at + 3 + length], page)
                ram[offset : offset + size] = page
                at += 3 + length
                name = "xbzrle"
            self.records.append((name, block, offset // size))
            self.bytes_by_kind[name] = self.bytes_by_kind.get(name, 0) + at - start
        return b""

    def kinds(self) -> list[str]:
        return [name for name, _, _ in self.records]


def guest_memory(pages: int, seed: int = 1, zero_share: float = 0.3) -> bytearray:
    chance = random.Random(seed)
    parts = [bytes(PAGE) if chance.random() < zero_share else chance.randbytes(PAGE) for _ in range(pages)]
    return bytearray(b"".join(parts))


def dirty(pages: int, numbers: list[int]) -> DirtyBitmap:
    made = DirtyBitmap(pages)
    for number in numbers:
        made.set(number)
    return made


def test_without_a_bitmap_every_page_of_the_block_is_sent() -> None:
    memory = guest_memory(40)
    encoder = PageEncoder()
    encoder.begin_block("pc.ram", memory)
    pages, made, more = encoder.encode()
    encoder.end_section()
    stream = encoder.take()
    assert (pages, more) == (40, False)
    assert made == len(stream) - 8
    receiver = Receiver({"pc.ram": len(memory)})
    receiver.blocks["pc.ram"][:] = b"\xff" * len(memory)
    assert receiver.feed(stream) == b""
    assert receiver.blocks["pc.ram"] == memory
    assert receiver.names == 1
    stats = encoder.stats
    assert stats.pages["zero"] + stats.pages["page"] == 40
    assert stats.bytes["page"] == receiver.bytes_by_kind["page"]
    assert stats.bytes["zero"] == receiver.bytes_by_kind["zero"]
    assert stats.sent_bytes == len(stream)


def test_records_are_those_of_the_wire_format_byte_for_byte() -> None:
    memory = bytearray(4 * PAGE)
    memory[PAGE : 2 * PAGE] = b"\x07" * PAGE
    memory[3 * PAGE] = 1
    encoder = PageEncoder()
    encoder.begin_block("ab", memory)
    encoder.encode()
    encoder.end_section()
    expected = (
        struct.pack(">Q", RamFlag.ZERO)
        + b"\x02ab\x00"
        + struct.pack(">Q", PAGE | RamFlag.PAGE | RamFlag.CONTINUE)
        + b"\x07" * PAGE
        + struct.pack(">Q", 2 * PAGE | RamFlag.ZERO | RamFlag.CONTINUE)
        + b"\x00"
        + struct.pack(">Q", 3 * PAGE | RamFlag.PAGE | RamFlag.CONTINUE)
        + b"\x01"
        + bytes(PAGE - 1)
        + EOS
    )
    assert encoder.take() == expected


def test_only_dirty_pages_are_sent_and_the_bitmap_is_left_alone() -> None:
    memory = guest_memory(200, zero_share=0)
    bitmap = dirty(200, [0, 3, 63, 64, 130, 199])
    encoder = PageEncoder()
    encoder.begin_block("pc.ram", memory, bitmap)
    assert encoder.encode()[0] == 6
    receiver = Receiver({"pc.ram": len(memory)})
    receiver.feed(encoder.take())
    assert [page for _, _, page in receiver.records] == [0, 3, 63, 64, 130, 199]
    assert bitmap.count() == 6


def test_zero_pages_go_raw_when_detection_is_off() -> None:
    encoder = PageEncoder()
    encoder.begin_block("b", bytes(2 * PAGE), detect_zero=False)
    encoder.encode()
    assert encoder.stats.pages["page"] == 2


@pytest.mark.parametrize("budget", [1, 4104, 4105, 20_000, 1 << 20])
def test_a_budget_is_passed_by_less_than_a_record_and_the_block_goes_on(budget: int) -> None:
    memory = guest_memory(90, seed=budget)
    encoder = PageEncoder()
    encoder.begin_block("pc.ram", memory)
    total = 0
    more = True
    while more:
        pages, made, more = encoder.encode(budget)
        assert pages > 0
        assert made < budget + 8 + 7 + PAGE
        assert not more or made >= budget
        total += pages
    assert total == 90
    assert encoder.encode(budget) == (0, 0, False)
    receiver = Receiver({"pc.ram": len(memory)})
    receiver.feed(encoder.take())
    assert receiver.blocks["pc.ram"] == memory
    assert receiver.names == 1


def test_a_new_section_names_the_block_again() -> None:
    memory = guest_memory(10, zero_share=0)
    encoder = PageEncoder()
    encoder.begin_block("pc.ram", memory)
    encoder.encode(3 * PAGE)
    encoder.end_section()
    encoder.encode()
    encoder.end_section()
    receiver = Receiver({"pc.ram": len(memory)})
    assert receiver.feed(receiver.feed(encoder.take())) == b""
    assert receiver.blocks["pc.ram"] == memory
    assert receiver.names == 2


def test_blocks_follow_one_another_each_with_its_name() -> None:
    encoder = PageEncoder()
    sizes = {"pc.ram": 8, "/rom@etc/acpi/tables": 3, "x" * 255: 1, "empty": 0}
    memories = {name: guest_memory(pages, seed=pages) for name, pages in sizes.items()}
    for name, memory in memories.items():
        encoder.begin_block(name, memory)
        assert encoder.encode(flush=False)[2] is False
    encoder.end_section()
    receiver = Receiver({name: len(memory) for name, memory in memories.items()})
    receiver.feed(encoder.take())
    assert receiver.blocks == memories
    assert receiver.names == 3


def test_written_bytes_stand_between_the_records_in_order() -> None:
    encoder = PageEncoder()
    encoder.write(b"<head>")
    encoder.begin_block("b", b"\x01" * PAGE)
    encoder.encode(flush=False)
    encoder.end_section(flush=False)
    encoder.write(b"<foot>")
    encoder.write(b"")
    big = os.urandom(3 << 20)
    encoder.write(big)
    encoder.write(b"<last>")
    encoder.flush()
    stream = encoder.take()
    assert stream.startswith(b"<head>" + struct.pack(">Q", RamFlag.PAGE) + b"\x01b\x01")
    assert stream.endswith(b"\x01" + EOS + b"<foot>" + big + b"<last>")
    assert encoder.stats.sent_bytes == len(stream)


def test_small_records_wait_for_a_flush() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        encoder = PageEncoder(ours)
        encoder.write(b"head")
        encoder.begin_block("b", bytes(3 * PAGE))
        encoder.encode(flush=False)
        assert encoder.pending_bytes == 4 + 3 * 9 + 2
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        encoder.end_section()
        assert encoder.pending_bytes == 0
        assert len(theirs.recv(1000)) == 4 + 3 * 9 + 2 + 8
        assert encoder.stats.sends == 1


# -- with a shadow copy or a cache


class Guest:
    """Writes to its pages as programs do: a few bytes, runs, whole pages, zeroing."""

    def __init__(self, pages: int, seed: int, page_bytes: int = PAGE) -> None:
        self.chance = random.Random(seed)
        self.pages = pages
        self.page_bytes = page_bytes
        self.memory = bytearray(self.chance.randbytes(pages * page_bytes))
        self.memory_before_the_last_work = b""

    def work(self, writes: int) -> DirtyBitmap:
        chance, size = self.chance, self.page_bytes
        bitmap = DirtyBitmap(self.pages)
        self.memory_before_the_last_work = bytes(self.memory)
        for _ in range(writes):
            page = chance.randrange(self.pages)
            bitmap.set(page)
            at = page * size
            match chance.randrange(6):
                case 0:
                    self.memory[at : at + size] = bytes(size)
                case 1:
                    self.memory[at : at + size] = chance.randbytes(size)
                case 2:
                    pass
                case 3:
                    start = at + chance.randrange(size - 300)
                    self.memory[start : start + 300] = chance.randbytes(300)
                case _:
                    for _ in range(chance.randrange(1, 40)):
                        self.memory[at + chance.randrange(size)] = chance.randrange(256)
        return bitmap


@pytest.mark.parametrize("page_bytes", [1024, 4096, 16384, 65536])
@pytest.mark.parametrize("kind", ["shadow", "cache", "small cache", "none"])
def test_the_receiver_holds_the_guests_memory_after_every_checkpoint(kind: str, page_bytes: int) -> None:
    pages = 130 if page_bytes <= PAGE else 20
    guest = Guest(pages, seed=page_bytes, page_bytes=page_bytes)
    cache: ShadowCache | PageCache | None = None
    if kind == "shadow":
        cache = ShadowCache(pages, page_bytes)
    elif kind != "none":
        cache = PageCache(page_bytes * (256 if kind == "cache" else 16), page_bytes)
    encoder = PageEncoder(page_bytes=page_bytes)
    receiver = Receiver({"pc.ram": len(guest.memory)}, page_bytes)
    bitmap: DirtyBitmap | None = None
    for checkpoint in range(8):
        encoder.begin_block("pc.ram", guest.memory, bitmap, cache, address=1 << 32, age=checkpoint)
        more = True
        while more:
            more = encoder.encode(7000)[2]
        encoder.end_section()
        receiver.feed(encoder.take())
        assert receiver.blocks["pc.ram"] == guest.memory
        bitmap = guest.work(60)
    if kind in ("shadow", "cache"):
        assert encoder.stats.pages["unchanged"] > 0
        assert encoder.stats.pages["zero"] > 0
        assert (encoder.stats.pages["xbzrle"] > 0) == (page_bytes <= 65536)
    if kind == "shadow":
        assert isinstance(cache, ShadowCache)
        assert memoryview(cache) == guest_snapshot(guest, bitmap, receiver)


def guest_snapshot(guest: Guest, bitmap: DirtyBitmap | None, receiver: Receiver) -> bytes:
    """What a faithful copy holds: the receiver's memory."""
    return bytes(receiver.blocks["pc.ram"])


@pytest.mark.parametrize("kind", ["shadow", "cache"])
def test_after_a_lost_checkpoint_its_pages_are_sent_whole(kind: str) -> None:
    guest = Guest(64, seed=5)
    cache = ShadowCache(64) if kind == "shadow" else PageCache(64 * PAGE)
    encoder = PageEncoder()
    receiver = Receiver({"b": len(guest.memory)})

    def checkpoint(bitmap: DirtyBitmap | None, age: int) -> bytes:
        encoder.begin_block("b", guest.memory, bitmap, cache, age=age)
        encoder.encode()
        encoder.end_section()
        return encoder.take()

    receiver.feed(checkpoint(None, 1))
    lost = guest.work(40)
    checkpoint(lost, 2)
    cache.invalidate(lost)
    again = guest.work(10)
    again.union(lost)
    receiver.records.clear()
    receiver.feed(checkpoint(again, 3))
    assert receiver.blocks["b"] == guest.memory
    lost_pages = {page for page in range(64) if lost.test(page)}
    assert all(kind in {"zero", "page"} for kind, _, page in receiver.records if page in lost_pages)


def test_a_page_that_overflows_goes_raw_from_the_copy() -> None:
    memory = bytearray(os.urandom(2 * PAGE))
    shadow = ShadowCache(2)
    encoder = PageEncoder()
    encoder.begin_block("b", memory, None, shadow)
    encoder.encode()
    encoder.take()
    memory[:PAGE] = bytes(byte ^ 0xFF for byte in memory[:PAGE])
    encoder.begin_block("b", memory, dirty(2, [0, 1]), shadow)
    encoder.encode()
    receiver = Receiver({"b": 2 * PAGE})
    receiver.feed(encoder.take())
    assert receiver.records == [("page", "b", 0)]
    assert shadow.stats.overflows == 1
    assert shadow.stats.unchanged == 1
    assert memoryview(shadow)[:PAGE] == memory[:PAGE]


def test_a_guest_that_writes_meanwhile_never_parts_the_copy_from_the_receiver() -> None:
    pages = 64
    memory = mmap.mmap(-1, pages * PAGE)
    shadow = ShadowCache(pages)
    encoder = PageEncoder()
    receiver = Receiver({"b": pages * PAGE})
    stop = threading.Event()

    def write() -> None:
        chance = random.Random(3)
        while not stop.is_set():
            for _ in range(200):
                memory[chance.randrange(pages * PAGE)] = chance.randrange(256)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            encoder.begin_block("b", memory, None, shadow)
            encoder.encode()
            encoder.end_section()
            receiver.feed(encoder.take())
            assert memoryview(shadow) == receiver.blocks["b"]
    finally:
        stop.set()
        writer.join()
    encoder.close()
    memory.close()


@pytest.mark.parametrize("budget", [None, 3 << 20, 100_000])
@pytest.mark.parametrize("compressed", [False, True])
def test_several_threads_make_the_stream_of_one(compressed: bool, budget: int | None) -> None:
    pages = 3000
    streams: list[list[bytes]] = []
    for threads in (1, 4):
        guest = Guest(pages, seed=11)
        shadow = ShadowCache(pages)
        codec = AdaptiveCodec(1.0, methods=("lz4",)) if compressed else None
        encoder = PageEncoder(threads=threads, codec=codec)
        made: list[bytes] = []
        bitmap: DirtyBitmap | None = None
        for _ in range(4):
            encoder.begin_block("pc.ram", guest.memory, bitmap, shadow)
            total = 0
            more = True
            while more:
                done, size, more = encoder.encode(budget)
                total += done
                assert budget is None or size < budget + 8 + 7 + PAGE
            assert total == (pages if bitmap is None else bitmap.count())
            encoder.end_section()
            made.append(encoder.take())
            assert memoryview(shadow) == guest.memory
            bitmap = guest.work(4000)
        stats = encoder.stats
        assert stats.sent_bytes == sum(map(len, made))
        assert sum(stats.bytes.values()) == stats.sent_bytes - 4 * 8
        streams.append(made)
        if threads == 1:
            expected = (stats.pages, stats.bytes, shadow.stats)
        elif not compressed:
            assert (stats.pages, stats.bytes, shadow.stats) == expected
    if not compressed:
        assert streams[0] == streams[1]
        return
    # Each thread learns by itself what compression is worth, so only what arrives is the same.
    received = bytearray(pages * PAGE)
    for body in streams[1]:
        assert AdaptiveDecoder().apply(body, received)[0] == len(body)
    assert received == guest.memory_before_the_last_work


def test_threads_stop_when_the_channel_is_lost() -> None:
    pages = 4000
    guest = Guest(pages, seed=12)
    shadow = ShadowCache(pages)
    ours, theirs = socket.socketpair()
    encoder = PageEncoder(ours, threads=3)
    encoder.begin_block("b", guest.memory, None, shadow)
    timer = threading.Timer(0.03, theirs.close)
    timer.start()
    before = set(os.listdir("/proc/self/task"))  # the timer's is among them
    with pytest.raises(ChannelLost):
        encoder.encode()
    timer.join()
    ours.close()
    until = time.monotonic() + 10
    while set(os.listdir("/proc/self/task")) - before:  # one that was joined may show for a moment more
        assert time.monotonic() < until


# -- out through a descriptor


def drain(source: socket.socket | int, into: list[bytes], pause_s: float = 0.0) -> None:
    while True:
        part = os.read(source, 300_001) if isinstance(source, int) else source.recv(300_001)
        if not part:
            return
        into.append(part)
        if pause_s:
            time.sleep(pause_s)


@pytest.mark.parametrize("deadline", [False, True])
@pytest.mark.parametrize("nonblocking", [False, True])
@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_a_slow_reader_gets_every_byte(kind: str, nonblocking: bool, deadline: bool) -> None:
    memory = guest_memory(1500, seed=9, zero_share=0.1)
    source: socket.socket | int
    if kind == "socket":
        sink, source = socket.socketpair()
        out = sink.detach()
        os.set_blocking(out, not nonblocking)
    else:
        source, out = os.pipe()
        os.set_blocking(out, not nonblocking)
    got: list[bytes] = []
    reader = threading.Thread(target=drain, args=(source, got, 0.0002))
    reader.start()
    encoder = PageEncoder(out)
    encoder.begin_block("pc.ram", memory)
    limit = time.monotonic_ns() + 60_000_000_000 if deadline else None
    assert encoder.encode(deadline_ns=limit) == (1500, encoder.stats.sent_bytes, False)
    encoder.end_section(limit)
    os.close(out)
    reader.join()
    receiver = Receiver({"pc.ram": len(memory)})
    assert receiver.feed(b"".join(got)) == b""
    assert receiver.blocks["pc.ram"] == memory
    if isinstance(source, int):
        os.close(source)
    else:
        source.close()


def test_a_file_takes_the_stream(tmp_path: os.PathLike[str]) -> None:
    memory = guest_memory(700)
    path = os.path.join(tmp_path, "ram")
    with open(path, "wb") as file:
        encoder = PageEncoder(file)
        encoder.begin_block("pc.ram", memory)
        encoder.encode(deadline_ns=time.monotonic_ns() + 10**10)
        encoder.end_section()
    receiver = Receiver({"pc.ram": len(memory)})
    with open(path, "rb") as file:
        assert receiver.feed(file.read()) == b""
    assert receiver.blocks["pc.ram"] == memory


@pytest.mark.parametrize("kind", ["socket", "pipe", "nonblocking pipe"])
def test_a_reader_that_takes_nothing_meets_the_deadline(kind: str) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "socket":
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            out = ours.fileno()
        else:
            source, out = os.pipe()
            stack.callback(os.close, source)
            stack.callback(os.close, out)
            os.set_blocking(out, kind == "pipe")
        encoder = PageEncoder(out)
        encoder.begin_block("b", guest_memory(2000, zero_share=0))
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            encoder.encode(deadline_ns=time.monotonic_ns() + 50_000_000)
        assert caught.value.phase == "send pages"
        assert time.monotonic() - begun < 10
        with pytest.raises(ChannelError, match="make a new one"):
            encoder.encode()


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_a_peer_that_goes_away_is_a_lost_channel(kind: str) -> None:
    if kind == "socket":
        ours, theirs = socket.socketpair()
        theirs.close()
        out = ours.detach()
    else:
        source, out = os.pipe()
        os.close(source)
    encoder = PageEncoder(out)
    encoder.begin_block("b", guest_memory(3, zero_share=0))
    with pytest.raises(ChannelLost):
        encoder.encode()
    os.close(out)


def test_a_peer_that_goes_away_while_we_wait_is_a_lost_channel() -> None:
    ours, theirs = socket.socketpair()
    encoder = PageEncoder(ours)
    encoder.begin_block("b", guest_memory(2000, zero_share=0))
    timer = threading.Timer(0.05, theirs.close)
    timer.start()
    with pytest.raises(ChannelLost):
        encoder.encode(deadline_ns=time.monotonic_ns() + 10**10)
    timer.join()
    ours.close()


def test_a_full_device_is_a_storage_error() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        encoder = PageEncoder(full)
        encoder.begin_block("b", guest_memory(3, zero_share=0))
        with pytest.raises(StorageError, match="free space"):
            encoder.encode()


def test_the_wake_descriptor_ends_a_wait() -> None:
    ours, theirs = socket.socketpair()
    wake = os.eventfd(0)
    with ours, theirs:
        encoder = PageEncoder(ours, wake_fd=wake)
        encoder.begin_block("b", guest_memory(2000, zero_share=0))
        timer = threading.Timer(0.05, os.eventfd_write, (wake, 1))
        timer.start()
        with pytest.raises(Interrupted):
            encoder.encode()
        timer.join()
    os.close(wake)


class Rang(Exception):
    pass


@pytest.mark.parametrize("raises", [False, True])
def test_signal_handlers_run_while_a_call_waits(raises: bool) -> None:
    memory = guest_memory(1500, zero_share=0)
    ours, theirs = socket.socketpair()
    got: list[bytes] = []
    reader = threading.Thread(target=drain, args=(theirs, got))
    rings: list[int] = []

    def ring(number: int, frame: object) -> None:
        rings.append(number)
        if raises:
            raise Rang
        if len(rings) == 3:
            reader.start()

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    encoder = PageEncoder(ours)
    try:
        encoder.begin_block("b", memory)
        if raises:
            with pytest.raises(Rang):
                encoder.encode(deadline_ns=time.monotonic_ns() + 10**10)
            with pytest.raises(ChannelError):
                encoder.flush()
        else:
            encoder.encode()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ours.close()
    if not raises:
        reader.join()
        receiver = Receiver({"b": len(memory)})
        receiver.feed(b"".join(got))
        assert receiver.blocks["b"] == memory
    theirs.close()


# -- bad input


def test_what_does_not_fit_is_refused_before_anything_is_touched() -> None:
    encoder = PageEncoder()
    memory = bytearray(8 * PAGE)
    with pytest.raises(RuntimeError, match="begin_block"):
        encoder.encode()
    with pytest.raises(ValueError, match="no whole number of pages"):
        encoder.begin_block("b", memory[:-1])
    with pytest.raises(ValueError, match="dirty bitmap 9"):
        encoder.begin_block("b", memory, DirtyBitmap(9))
    with pytest.raises(ValueError, match="shadow copy 7"):
        encoder.begin_block("b", memory, None, ShadowCache(7))
    with pytest.raises(ValueError, match="1024 bytes"):
        encoder.begin_block("b", memory, None, ShadowCache(32, 1024))
    with pytest.raises(ValueError, match="overlap"):
        encoder.begin_block("b", memory, None, ShadowCache(8, memory=memory))
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        encoder.begin_block("", memory)
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        encoder.begin_block("é" * 128, memory)
    with pytest.raises(BufferError):
        encoder.begin_block("b", memoryview(memory)[::2])
    with pytest.raises(ValueError, match="items of 8"):
        encoder.begin_block("b", memoryview(memory).cast("Q"))
    with pytest.raises(TypeError):
        encoder.begin_block("b", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="file descriptor"):
        PageEncoder(1 << 20)
    with pytest.raises(ValueError, match="power of two"):
        PageEncoder(page_bytes=4095)
    with pytest.raises(ValueError, match="1 to 16 threads"):
        PageEncoder(threads=17)
    with open(os.devnull, "rb") as reading, pytest.raises(ValueError, match="not open for writing"):
        PageEncoder(reading)
    with open(os.devnull, "wb") as writing, pytest.raises(ValueError, match="file descriptor"):
        PageEncoder(writing).take()
    memory.extend(b"still resizable")
    assert encoder.stats.sent_bytes == 0


def test_memory_cannot_be_resized_while_its_block_is_open() -> None:
    memory = bytearray(2 * PAGE)
    encoder = PageEncoder()
    encoder.begin_block("b", memory)
    with pytest.raises(BufferError):
        memory.extend(b"x")
    encoder.close()
    memory.extend(b"x")


def test_read_only_and_misaligned_memory_is_sent() -> None:
    memory = b"abc" + bytes(guest_memory(6))
    encoder = PageEncoder()
    encoder.begin_block("b", memoryview(memory)[3:])
    encoder.encode()
    receiver = Receiver({"b": 6 * PAGE})
    receiver.feed(encoder.take())
    assert receiver.blocks["b"] == memory[3:]


def test_a_cache_can_be_resized_between_calls_of_one_block() -> None:
    guest = Guest(64, seed=2)
    cache = PageCache(64 * PAGE)
    encoder = PageEncoder()
    receiver = Receiver({"b": len(guest.memory)})
    bitmap: DirtyBitmap | None = None
    for age, pages in enumerate([64, 16, 128, 1, 32]):
        encoder.begin_block("b", guest.memory, bitmap, cache, age=age)
        encoder.encode(50_000)
        cache.resize(pages * PAGE)
        encoder.encode()
        receiver.feed(encoder.take())
        assert receiver.blocks["b"] == guest.memory
        bitmap = guest.work(40)


def test_a_cache_is_resized_while_another_thread_encodes() -> None:
    guest = Guest(256, seed=8)
    cache = PageCache(256 * PAGE)
    encoder = PageEncoder()
    receiver = Receiver({"b": len(guest.memory)})
    stop = threading.Event()

    def resize() -> None:
        chance = random.Random(1)
        while not stop.is_set():
            cache.resize(PAGE << chance.randrange(10))

    resizer = threading.Thread(target=resize)
    resizer.start()
    try:
        bitmap: DirtyBitmap | None = None
        for age in range(40):
            encoder.begin_block("b", guest.memory, bitmap, cache, age=age)
            encoder.encode()
            receiver.feed(encoder.take())
            assert receiver.blocks["b"] == guest.memory
            bitmap = guest.work(100)
    finally:
        stop.set()
        resizer.join()


def test_statistics_are_named_by_kind() -> None:
    assert set(PageEncoder().stats.pages) == set(pageencoder.KINDS)
