"""A primary of a few pages, written out byte by byte, and a follower at the other end of a socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo.abc import EpochSink
from colo.epoch.committed import Committed
from colo.epoch.composed import compose
from colo.epoch.last_committed import LastCommitted
from colo.epoch.ram_sink import RamSink
from colo.link.follower import Follower
from colo.memory import RamImage
from colo.protocol import Mode
from colo.protocol.deadlines import Deadlines
from colo.stream import DeviceState, LiveSection, RamBlockInfo, StreamLimits, StreamReader, parse_mem_size
from colo.stream.writer import (
    command,
    configuration,
    device_section,
    end_of_section,
    end_of_stream,
    file_header,
    ram_start_section,
    section_end,
    section_footer,
    vmdescription,
)
from colo.transport import SocketTransport
from colo.wire import Command, RamFlag

PAGE = 4096
BLOCKS = (("pc.ram", 16 * PAGE), ("/rom@etc/acpi/tables", 2 * PAGE))
READY, REPLY, RECEIVED, LOADED = (n.to_bytes(4, "big") for n in (0, 2, 5, 6))
REQUEST, SEND = (n.to_bytes(4, "big") for n in (1, 3))
LIMITS = StreamLimits(device_state_bytes=1 << 20, quiet_ms=50)
DEADLINES = Deadlines(handshake_s=1.0, message_s=1.0, progress_s=0.5, epoch_s=2.0, idle_s=1.0)


def page(number: int) -> bytes:
    """A page that tells its number."""
    return (number.to_bytes(4, "big") * (PAGE // 4))[:PAGE]


def record(offset: int, flags: int, payload: bytes = b"", name: str | None = "pc.ram") -> bytes:
    if name is None:
        return (offset | flags | RamFlag.CONTINUE).to_bytes(8, "big") + payload
    return (offset | flags).to_bytes(8, "big") + bytes((len(name),)) + name.encode() + payload


def raw(offset: int, number: int, name: str | None = "pc.ram") -> bytes:
    return record(offset, RamFlag.PAGE, page(number), name)


def zero(offset: int, name: str | None = "pc.ram", fill: int = 0) -> bytes:
    return record(offset, RamFlag.ZERO, bytes((fill,)), name)


def delta(offset: int, encoded: bytes, name: str | None = "pc.ram") -> bytes:
    return record(offset, RamFlag.XBZRLE, b"\x01" + len(encoded).to_bytes(2, "big") + encoded, name)


def infos(blocks: tuple[tuple[str, int], ...] = BLOCKS) -> list[RamBlockInfo]:
    return [RamBlockInfo(name, length) for name, length in blocks]


def devices(value: int) -> bytes:
    """Two device sections up to their EOF; ``value`` tells one checkpoint's from another's."""
    return (
        device_section(3, "timer", value.to_bytes(8, "big"), version_id=2)
        + device_section(4, "cpu", value.to_bytes(4, "big") * 4, version_id=1)
        + end_of_stream()
    )


def vmdesc() -> bytes:
    def device(name: str, version: int, size: int) -> dict[str, object]:
        field = {"name": "state", "type": "buffer", "size": size}
        return {"name": name, "instance_id": 0, "version": version, "fields": [field]}

    text = {"page_size": PAGE, "devices": [device("timer", 2, 8), device("cpu", 1, 16)]}
    return vmdescription(json.dumps(text).encode())


def section(records: bytes, section_id: int = 2) -> bytes:
    return section_end(section_id) + records + end_of_section() + section_footer(section_id)


def initial(records: bytes | None = None) -> bytes:
    """The initial stream: page n of pc.ram holds number n."""
    if records is None:
        records = raw(0, 0) + b"".join(raw(n * PAGE, n, None) for n in range(1, 16)) + raw(0, 100, BLOCKS[1][0])
    return (
        file_header() + configuration("pc-test") + command(Command.ENABLE_COLO)
        + ram_start_section(2, infos()) + section(records) + devices(0) + vmdesc()
    )


def size_message(n: int) -> bytes:
    return (4).to_bytes(4, "big") + n.to_bytes(8, "big")


def live(records: bytes, *, start: bool = True) -> bytes:
    """A checkpoint's live state with its EOF."""
    return (ram_start_section(2, infos()) if start else b"") + section(records) + end_of_stream()


def epoch(records: bytes, number: int) -> bytes:
    """What follows VMSTATE_SEND, that included."""
    blob = devices(number)
    return SEND + live(records) + size_message(len(blob)) + blob


class Peer:
    """The primary's end of a connection whose other end is followed in a thread.

    :meth:`begin` brings it to checkpoint 0, :meth:`checkpoint` one further; :meth:`send` says anything. :attr:`memory`
    is what the committed image must hold.
    """

    def __init__(
        self, directory: Path, *, deadlines: Deadlines = DEADLINES, limits: StreamLimits = LIMITS,
        mode: Mode = Mode.EARLY, tcp: bool = False, sinks: Sequence[EpochSink] = (),
    ) -> None:
        self.image = RamImage(directory / "ram", max_ram_bytes=1 << 20)
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.sock = socket.create_connection(listener.getsockname())
                other, _ = listener.accept()
        else:
            self.sock, other = socket.socketpair()
        self.sock.settimeout(5)
        self.ram = RamSink(self.image)
        self.last = LastCommitted(self.ram, [self.ram, *sinks])
        self.follower = Follower(SocketTransport(other), self.ram, self.last, deadlines=deadlines, limits=limits, mode=mode)
        self.memory = {name: bytearray(length) for name, length in BLOCKS}
        self.number = -1
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.follower.run()
        except BaseException as error:
            self.error = error

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def expect(self, data: bytes) -> None:
        got = b""
        while len(got) < len(data):
            more = self.sock.recv(len(data) - len(got))
            assert more, f"closed after {got!r} of {data!r}: {self.error}"
            got += more
        assert got == data

    def begin(self) -> None:
        self.send(initial())
        self.expect(READY)
        self.number = 0
        for n in range(16):
            self.memory["pc.ram"][n * PAGE : (n + 1) * PAGE] = page(n)
        self.memory[BLOCKS[1][0]][:PAGE] = page(100)

    def request(self) -> None:
        self.send(REQUEST)
        self.expect(REPLY)

    def checkpoint(self, records: bytes, changes: dict[int, bytes]) -> None:
        """A whole checkpoint; ``changes``: offset in pc.ram to the bytes there afterwards."""
        self.request()
        self.send(epoch(records, self.number + 1))
        self.expect(RECEIVED + LOADED)
        self.number += 1
        for offset, data in changes.items():
            self.memory["pc.ram"][offset : offset + len(data)] = data

    def finish(self) -> BaseException:
        """The error the follower ended with."""
        self._thread.join(10)
        assert not self._thread.is_alive(), f"hangs in {self.follower.machine.state}"
        assert self.error is not None
        return self.error

    def check(self) -> None:
        """The committed checkpoint is :attr:`number`, whole, and composes to a stream that says so."""
        self.ram.settle()
        committed = self.last.committed
        assert committed is not None and committed.number == self.number, committed
        assert committed.device_state == devices(self.number)
        for block in committed.blocks:
            # Read as a file: a mapping's holes take storage when they are looked at.
            data = self.image.path(block.idstr).read_bytes()
            assert data[: block.used_length] == bytes(self.memory[block.idstr])
        assert read_back(committed) == {name: bytes(data) for name, data in self.memory.items()}

    def close(self) -> None:
        self.sock.close()
        self._thread.join(10)
        self.follower.close()
        self.ram.close()
        self.image.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_back(committed: Committed) -> dict[str, bytes]:
    """The memory that the composed stream of ``committed`` has."""
    ours, theirs = socket.socketpair()
    data = bytearray()

    def read() -> None:
        while chunk := theirs.recv(1 << 20):
            data.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    with ours:
        compose(committed).write(ours.fileno(), timeout_s=5)
    thread.join(5)
    theirs.close()
    buffer = ReadBuffer.from_bytes(bytes(data))
    decoder = PageDecoder(Staging(), immediate=True)
    memory: dict[str, bytearray] = {}
    state = None
    for item in StreamReader(buffer):
        if isinstance(item, LiveSection):
            while (total := decoder.decode(buffer)) != EOS:
                found = parse_mem_size(buffer, total)
                memory = {info.idstr: bytearray(info.used_length) for info in found}
                decoder.set_blocks([RamBlock(i.idstr, i.used_length, memory=memory[i.idstr]) for i in found])
        elif isinstance(item, DeviceState):
            state = item.blob
    assert state == committed.device_state
    return {name: bytes(block) for name, block in memory.items()}
