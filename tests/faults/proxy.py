"""A TCP proxy between a primary and its secondary that acts at an exactly chosen point of the protocol.

The secondary's messages tell which checkpoint is under way. From the moment one may begin, what the primary sends is
held back until a whole part of it is here (the primary waits for RECEIVED then), so its regions are known, and any
prefix of it can be let through before the fault.
"""

from __future__ import annotations

import contextlib
import queue
import random
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from colo.wire import LEASE_MAGIC

REQUEST, REPLY, SEND, SIZE, RECEIVED, LOADED = range(1, 7)
LEASE = LEASE_MAGIC.to_bytes(4, "big")
LINGER = struct.pack("ii", 1, 0)


class Point(Enum):
    """Where the fault comes. The value: what is committed then, relative to the target checkpoint; None is nothing."""

    CONNECT = ("connect", None)
    HEADER = ("header", None)
    INITIAL_BEGIN = ("initial-begin", None)
    INITIAL_RAM = ("initial-ram", None)
    INITIAL_DEVICES = ("initial-devices", None)
    INITIAL_LAST_BYTE = ("initial-last-byte", None)
    READY_UNREAD = ("ready-unread", -1)
    READY = ("ready", -1)
    HALF_REQUEST = ("half-request", -1)
    REQUEST = ("request", -1)
    REPLY = ("reply", -1)
    VMSTATE_SEND = ("vmstate-send", -1)
    RAM = ("ram", -1)
    RAM_EOF = ("ram-eof", -1)
    VMSTATE_SIZE = ("vmstate-size", -1)
    DEVICE = ("device", -1)
    LAST_BYTE = ("last-byte", -1)
    RECEIVED_UNREAD = ("received-unread", 0)
    LOADED_UNREAD = ("loaded-unread", 0)
    LOADED = ("loaded", 0)

    @property
    def initial(self) -> bool:
        return self.value[1] is None

    @property
    def of_ready(self) -> bool:
        """These come once, with checkpoint 0: the target is then 1."""
        return self in (Point.READY_UNREAD, Point.READY)

    def committed(self, checkpoint: int) -> int | None:
        """The highest committed checkpoint when the fault comes in ``checkpoint``."""
        relative = self.value[1]
        return None if relative is None else checkpoint + relative


@dataclass(frozen=True)
class Regions:
    """Byte ranges of one checkpoint, counted from its VMSTATE_SEND: [4, ram_end) live state with its EOF."""

    ram_end: int
    device: int
    end: int


def regions_of(data: bytes | bytearray) -> Regions | None:
    """The regions, once ``data`` is a whole checkpoint: it ends with VMSTATE_SIZE and just so many bytes."""
    at = data.rfind(b"\0\0\0\x04\0\0\0\0")
    while at > 0:
        if at + 12 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 12], "big")
            if size and at + 12 + size == len(data):
                return Regions(at, at + 12, len(data))
        at = data.rfind(b"\0\0\0\x04\0\0\0\0", 0, at + 7)
    return None


def initial_regions(data: bytes | bytearray) -> tuple[int, int] | None:
    """(where the devices begin, about; where the vmdesc begins), once ``data`` is a whole initial stream."""
    if not data.endswith(b"}"):
        return None
    at = data.rfind(b'{"configuration"')
    at = at if at >= 0 else data.rfind(b'{"page_size"')
    if at < 5 or int.from_bytes(data[at - 4 : at], "big") != len(data) - at:
        return None
    first_device = data.rfind(b"\x10timer", 0, at) if b"\x10timer" in data else data.rfind(b"\x05timer", 0, at)
    return (max(first_device, 0) or at - 1000, at - 5)


def carry(primary: socket.socket, address: tuple[str, int]) -> None:
    """Both ways, until one side closes."""
    with primary, contextlib.suppress(OSError), socket.create_connection(address) as secondary:
        while True:
            for ready in select.select([primary, secondary], [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                (secondary if ready is primary else primary).sendall(data)


class Proxy:
    """Listens on :attr:`port` for one primary, and connects it to ``secondary`` (host, port).

    At ``point`` of ``checkpoint`` it stops forwarding for good and calls ``act(proxy)``, once, on its own thread.
    :meth:`close_both`, :meth:`reset_both` are for the act. ``rng`` chooses bytes within a region.
    """

    def __init__(
        self,
        secondary: tuple[str, int],
        *,
        point: Point,
        checkpoint: int,
        act: Callable[[Proxy], None],
        rng: random.Random,
    ) -> None:
        self.point = point
        self.checkpoint = 1 if point.of_ready else checkpoint
        self.acted = threading.Event()
        self.error: BaseException | None = None
        self.forwarded_of: str = "nothing"
        """Where exactly it acted, for messages."""
        self._act = act
        self._rng = rng
        self._secondary = secondary
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._primary_sock: socket.socket | None = None
        self._secondary_sock: socket.socket | None = None
        self._number = -1
        """The last checkpoint whose acknowledgement went to the primary."""
        self._ready = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()

    # -- the faults

    def close_both(self) -> None:
        """An orderly end, told to both."""
        for sock in (self._secondary_sock, self._primary_sock):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                sock.close()

    def reset_both(self) -> None:
        """A reset, told to both."""
        for sock in (self._secondary_sock, self._primary_sock):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
                sock.close()

    def cut_secondary(self) -> None:
        """An end told to the secondary alone."""
        self._cut(self._secondary_sock)

    def cut_primary(self) -> None:
        """An end told to the primary alone."""
        self._cut(self._primary_sock)

    @staticmethod
    def _cut(sock: socket.socket | None) -> None:
        assert sock is not None
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not end an accept()
        self._listener.close()
        self._thread.join(5)
        self.close_both()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- forwarding

    def _run(self) -> None:
        try:
            self._primary_sock = self._accept_stream()
            self._secondary_sock = socket.create_connection(self._secondary)
            for sock in (self._primary_sock, self._secondary_sock):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._follow()
        except (OSError, EOFError) as error:
            if not self._closing.is_set() and not self.acted.is_set():
                self.error = error
                self.close_both()
        except BaseException as error:
            self.error = error
            self.close_both()

    def _accept_stream(self) -> socket.socket:
        """The migration stream's connection; lease connections before and after it are carried as they are."""
        streams: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()

        def accept() -> None:
            while True:
                try:
                    sock, _ = self._listener.accept()
                    first = sock.recv(4, socket.MSG_PEEK)
                except OSError:
                    streams.put(None)
                    return
                if first == LEASE:
                    threading.Thread(target=carry, args=(sock, self._secondary), daemon=True).start()
                else:
                    streams.put(sock)

        threading.Thread(target=accept, name="fault-proxy-door", daemon=True).start()
        sock = streams.get()
        if sock is None:
            raise EOFError("nobody came")
        return sock

    def _fault(self, where: str) -> None:
        self.forwarded_of = where
        self._act(self)
        self.acted.set()

    def _follow(self) -> None:
        if self.point is Point.CONNECT:
            return self._fault("connect")
        if self._follow_initial():
            return None
        while not self._closing.is_set():
            if self._number + 1 < self.checkpoint:
                self._pass_checkpoint()
            elif self._follow_target():
                return None
        return None

    def _follow_initial(self) -> bool:
        """The initial stream up to READY; True if the fault came."""
        if self.point.initial:
            data, devices, vmdesc = self._take_initial()
            start, stop = {
                Point.HEADER: (4, 8),
                Point.INITIAL_BEGIN: (8, 600),
                Point.INITIAL_RAM: (600, devices),
                Point.INITIAL_DEVICES: (devices, vmdesc),
                Point.INITIAL_LAST_BYTE: (len(data) - 1, len(data)),
            }[self.point]
            upto = self._rng.randrange(start, stop)
            self._to_secondary(data[:upto])
            self._fault(f"byte {upto} of {len(data)} of the initial stream")
            return True
        while not self._ready:
            if self._pump(down=True, up=True) and self._ready:
                break
        if self.point is Point.READY_UNREAD:
            self._fault("READY, unread")
            return True
        self._to_primary(self._held)
        self._number = 0
        if self.point is Point.READY:
            self._fault("READY, read")
            return True
        return False

    def _take_initial(self) -> tuple[bytes, int, int]:
        data = bytearray()
        while True:
            data += self._from_primary()
            # With a return path a first answer is waited for at times; nothing is let through, and nothing is due.
            found = initial_regions(data)
            if found:
                return bytes(data), *found

    def _pump(self, *, down: bool, up: bool) -> bool:
        """Forward once what is there; before READY the return path's own messages pass by as they are."""
        assert self._primary_sock is not None and self._secondary_sock is not None
        readable, _, _ = select.select([self._primary_sock, self._secondary_sock], [], [], 0.5)
        if self._primary_sock in readable and down:
            self._to_secondary(self._from_primary())
        if self._secondary_sock in readable and up:
            head = self._exactly(self._secondary_sock, 4)
            kind, length = struct.unpack(">HH", head)
            if kind:
                self._to_primary(head + self._exactly(self._secondary_sock, length))
            else:
                self._held = head
                self._ready = True
        return bool(readable)

    def _pass_checkpoint(self) -> None:
        """A checkpoint that is not the target, whole."""
        self._to_secondary(self._exactly(self._primary_sock, 4))
        self._to_primary(self._message(REPLY))
        self._to_secondary(self._take_checkpoint()[0])
        self._to_primary(self._message(RECEIVED))
        self._to_primary(self._message(LOADED))
        self._number += 1

    def _take_checkpoint(self) -> tuple[bytes, Regions]:
        data = bytearray()
        while True:
            data += self._from_primary()
            found = regions_of(data)
            if found:
                return bytes(data), found

    def _follow_target(self) -> bool:
        point = self.point
        request = self._exactly(self._primary_sock, 4)
        if point is Point.HALF_REQUEST:
            self._to_secondary(request[:2])
            self._fault("half of REQUEST")
            return True
        self._to_secondary(request)
        reply = self._message(REPLY)
        if point is Point.REQUEST:
            self._fault("REPLY, unread")
            return True
        self._to_primary(reply)
        data, regions = self._take_checkpoint()
        ranges = {
            Point.REPLY: (0, 1),
            Point.VMSTATE_SEND: (4, 5),
            Point.RAM: (5, regions.ram_end - 1),
            Point.RAM_EOF: (regions.ram_end - 1, regions.ram_end + 1),
            Point.VMSTATE_SIZE: (regions.ram_end + 1, regions.device + 1),
            Point.DEVICE: (regions.device + 1, regions.end - 1),
            Point.LAST_BYTE: (regions.end - 1, regions.end),
        }
        if point in ranges:
            upto = self._rng.randrange(*ranges[point])
            self._to_secondary(data[:upto])
            self._fault(f"byte {upto} of {regions}")
            return True
        self._to_secondary(data)
        received = self._message(RECEIVED)
        if point is Point.RECEIVED_UNREAD:
            self._fault("RECEIVED, unread")
            return True
        self._to_primary(received)
        loaded = self._message(LOADED)
        if point is Point.LOADED_UNREAD:
            self._fault("LOADED, unread")
            return True
        assert point is Point.LOADED
        self._to_primary(loaded)
        self._fault("LOADED, read")
        return True

    # -- bytes

    def _message(self, kind: int) -> bytes:
        raw = self._exactly(self._secondary_sock, 4)
        if int.from_bytes(raw, "big") != kind:
            raise AssertionError(f"the secondary sent {raw.hex()}, message {kind} was due")
        return raw

    def _from_primary(self) -> bytes:
        assert self._primary_sock is not None
        data = self._primary_sock.recv(1 << 20)
        if not data:
            raise EOFError("the primary closed its connection")
        return data

    def _exactly(self, sock: socket.socket | None, n: int) -> bytes:
        assert sock is not None
        data = b""
        while len(data) < n:
            got = sock.recv(n - len(data))
            if not got:
                raise EOFError(f"a side closed its connection ({len(data)} of {n} bytes)")
            data += got
        return data

    def _to_secondary(self, data: bytes) -> None:
        assert self._secondary_sock is not None
        self._secondary_sock.sendall(data)

    def _to_primary(self, data: bytes) -> None:
        assert self._primary_sock is not None
        self._primary_sock.sendall(data)
