"""Lease connections that others have opened to this side: a few at a time, served by one thread."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

from colo.abc import Transport
from colo.errors import ChannelError, ChannelLost, ColoError, DeadlineExceeded
from colo.lease.frames import Frame, FrameReader, encode
from colo.wake import Wake

CONNECTIONS_MAX = 8
MEET_S = 10.0
READ_BYTES = 1 << 16


class Served:
    """One of them. ``asked``: its other end wanted to be met, ``busy``: that is under way; ``met``: it belongs to the
    session."""

    __slots__ = ("asked", "busy", "met", "reader", "sock", "until")

    def __init__(self, sock: Transport) -> None:
        self.sock = sock
        self.reader = FrameReader()
        self.asked = self.busy = self.met = False
        self.until = time.monotonic() + MEET_S


class ServedConnections:
    """``take_frame(connection, frame)`` hears every frame, and closes the connection by raising ColoError; ``look()`` is
    called at least every ``turn_ms()``: both on the serving thread. ``tell`` hears why a connection was closed.
    ``lock`` is the owner's, and held wherever the connections change."""

    def __init__(
        self, lock: threading.Condition, *, take_frame: Callable[[Served, Frame], None], look: Callable[[], None],
        turn_ms: Callable[[], float], tell: Callable[[str], None],
    ) -> None:
        self._lock = lock
        self._take_frame, self._look, self._turn_ms, self._tell = take_frame, look, turn_ms, tell
        self._connections: dict[int, Served] = {}
        self._closed = False
        self._poke = Wake()
        self._thread = threading.Thread(target=self._serve, name="colo-lease", daemon=True)
        self._thread.start()

    def take(self, sock: Transport) -> None:
        """A connection that opens with a lease frame is served from now on, if there is room."""
        with self._lock:
            if len(self._connections) >= CONNECTIONS_MAX:
                # Who has not met this side makes room; else whoever says nothing could keep the fence out.
                strangers = [each for each in self._connections.values() if not each.met and not each.busy]
                if strangers:
                    self._drop(min(strangers, key=lambda each: each.until))
            if self._closed or len(self._connections) >= CONNECTIONS_MAX:
                sock.close()
                return
            self._connections[sock.fileno()] = Served(sock)
        self._poke.set()

    def send(self, connection: Served, frame: Frame) -> None:
        """Frames are small: whoever does not take one has not read for long, and will connect again."""
        try:
            connection.sock.send(encode(frame), timeout_s=0)
        except ChannelError:
            connection.sock.abort()

    def send_all(self, frame: Frame) -> None:
        """To all that belong to the session."""
        for connection in list(self._connections.values()):
            if connection.met:
                self.send(connection, frame)

    def part(self) -> None:
        """None belongs to the session any more: another one begins."""
        for connection in self._connections.values():
            connection.met = False

    def close(self) -> None:
        """End them all. Any number of times."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._poke.set()
        self._thread.join()
        self._poke.close()

    def _serve(self) -> None:
        while not self._closed:
            poller = select.poll()
            poller.register(self._poke.fd, select.POLLIN)
            with self._lock:
                connections = list(self._connections.items())
            for fd, _ in connections:
                poller.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poller.poll(self._turn_ms())}
            self._look()
            if self._poke.fd in ready:
                self._poke.clear()
            now = time.monotonic()
            for fd, connection in connections:
                if fd in ready:
                    self._read(connection)
                elif not connection.met and now > connection.until:
                    self._drop(connection)
        with self._lock:
            for connection in list(self._connections.values()):
                self._drop(connection)

    def _drop(self, connection: Served) -> None:
        with self._lock:
            if self._connections.get(connection.sock.fileno()) is connection:
                del self._connections[connection.sock.fileno()]
        connection.sock.close()

    def _read(self, connection: Served) -> None:
        try:
            data = connection.sock.receive(READ_BYTES, timeout_s=0)
            if not data:
                self._drop(connection)
                return
            for frame in connection.reader.feed(data):
                self._take_frame(connection, frame)
        except DeadlineExceeded:
            return
        except (ColoError, OSError, ValueError) as error:
            if isinstance(error, ColoError) and not isinstance(error, ChannelLost):
                self._tell(f"a lease connection was closed: {error}")
            self._drop(connection)
