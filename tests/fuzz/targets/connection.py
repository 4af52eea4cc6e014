"""A whole COLO connection: a follower is brought to a state by a valid prefix, and what follows is the input's. Whatever
it is, the follower ends with an error of the project's own, and what is committed is whole. The first byte picks the
prefix."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from colo.epoch.last_committed import LastCommitted
from colo.epoch.ram_sink import RamSink
from colo.errors import ColoError
from colo.link.follower import Follower
from colo.memory import RamImage
from colo.protocol import Mode
from colo.protocol.deadlines import Deadlines
from colo.stream import StreamLimits
from colo.stream.configuration import configuration
from colo.stream.ram import RamBlockInfo, end_of_section
from colo.stream.writer import (
    device_section,
    end_of_stream,
    file_header,
    ram_start_section,
    section_end,
    section_footer,
)
from colo.transport import SocketTransport

PAGE, PAGES = 4096, 8
BLOCKS = [RamBlockInfo("pc.ram", PAGES * PAGE), RamBlockInfo("rom", PAGE)]
LIMITS = StreamLimits(device_state_bytes=1 << 16, vmdesc_bytes=1 << 16, quiet_ms=2)
DEADLINES = Deadlines(2.0, 2.0, 2.0, 2.0, 2.0)
MESSAGE = [struct.pack(">I", number) for number in range(7)]


def record(offset: int, flags: int, payload: bytes, name: bytes = b"pc.ram") -> bytes:
    return struct.pack(">QB", offset | flags, len(name)) + name + payload


def pages(mark: int) -> bytes:
    return (
        record(0, 0x8, bytes((mark,)) * PAGE)
        + record(PAGE, 0x2, b"\0")
        + record(0, 0x40, b"\1" + struct.pack(">H", 4) + bytes((7, 2, mark, 9)))
        + record(2 * PAGE, 0x8, bytes((mark, 1)) * (PAGE // 2))
    )


def live(body: bytes) -> bytes:
    return (
        ram_start_section(2, BLOCKS) + section_end(2) + body + end_of_section() + section_footer(2) + end_of_stream()
    )


def blob(mark: int) -> bytes:
    return device_section(3, "timer", bytes((mark,)) * 24, version_id=2) + end_of_stream()


def checkpoint(mark: int) -> bytes:
    state = blob(mark)
    return MESSAGE[1] + MESSAGE[3] + live(pages(mark)) + MESSAGE[4] + struct.pack(">Q", len(state)) + state


@cache
def prefixes() -> tuple[tuple[bytes, int], ...]:
    """Valid beginnings, each with the number of checkpoints committed by it (0: none)."""
    first = file_header() + configuration("pc") + live(pages(1))[:-1] + blob(1)
    one = checkpoint(2)
    return (
        (b"", 0),
        (first, 1),
        (first + MESSAGE[1] + MESSAGE[3], 1),
        (first + one, 2),
        (first + one + one[: one.index(pages(2)) + 100], 2),
        (first + one + MESSAGE[1] + MESSAGE[3] + live(pages(3)), 2),
        (file_header() + configuration("pc"), 0),
    )


def seeds() -> Iterator[bytes]:
    for which in range(len(prefixes())):
        yield bytes((which,))
        yield bytes((which,)) + checkpoint(4)
        yield bytes((which,)) + checkpoint(4)[4:]
        yield bytes((which,)) + MESSAGE[4] + struct.pack(">Q", 46) + blob(5)
    yield b"\0" + prefixes()[3][0]
    offered = configuration("pc", extensions=0xF)
    yield b"\0" + file_header() + offered + prefixes()[1][0][len(file_header() + configuration("pc")) :]
    digest = struct.pack(">I", 0x434F0002) + bytes(16)
    yield b"\1" + checkpoint(4).replace(MESSAGE[4], digest + MESSAGE[4], 1)
    yield b"\1" + MESSAGE[1] + MESSAGE[3] + live(pages(9))[:60]
    yield b"\6" + b"\x08\0\1\0\0" + b"\x08\0\2\0\4abcd" + prefixes()[1][0][20:]


def expected(mark: int) -> bytes:
    """The block's memory after checkpoint ``mark`` alone or on top of others."""
    memory = bytearray(PAGES * PAGE)
    memory[:PAGE] = bytes((mark,)) * PAGE
    memory[7:9] = bytes((mark, 9))
    memory[2 * PAGE : 3 * PAGE] = bytes((mark, 1)) * (PAGE // 2)
    return bytes(memory)


def feed(there: socket.socket, data: bytes) -> None:
    """Send ``data``; as a primary does, what follows a whole first stream only when it is answered."""
    first = prefixes()[1][0]
    with contextlib.suppress(OSError):
        if data.startswith(first) and len(data) > len(first):
            there.sendall(first)
            there.recv(4)
            data = data[len(first) :]
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)


def fuzz_one(data: bytes) -> None:
    if not data:
        return
    prefix, marks = prefixes()[data[0] % len(prefixes())]
    directory = Path(tempfile.mkdtemp(prefix="colo-fuzz-", dir="/dev/shm"))
    here, there = socket.socketpair()
    try:
        with here, there, RamImage(directory / "image", max_ram_bytes=1 << 20) as image:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            there.settimeout(5)
            feeder = threading.Thread(target=feed, args=(there, prefix + data[1:200_000]))
            feeder.start()
            mode = Mode.STRICT if data[0] & 0x80 else Mode.EARLY
            commits: list[int] = []
            ram = RamSink(image)
            last = LastCommitted(ram, [ram])
            follower = Follower(
                SocketTransport(here), ram, last, deadlines=DEADLINES, limits=LIMITS, mode=mode,
                on_commit=lambda committed, report: commits.append(committed.number),
            )
            try:
                follower.run()
            except ColoError as error:
                str(error)
            else:
                raise AssertionError("the follower ended without an error")
            finally:
                ram.close()
                committed = last.committed
                follower.close()
                feeder.join()
            assert (committed is None) == (not commits)
            assert len(commits) >= marks
            if committed is not None and len(commits) == marks:
                memory = next(block for block in committed.blocks if block.idstr == "pc.ram").memory_buffer
                assert bytes(memoryview(memory)) == expected(marks)  # type: ignore[arg-type]
                assert committed.device_state == blob(marks)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
