"""A QEMU monitor for blocking code: `qemu.qmp`, run by one background thread for the whole process.

Every call blocks its own thread only, with a timeout; any number of threads may share a connection.
Out-of-band commands overtake ordinary ones, also while QEMU's main loop is stuck in a migration.
Events carry QEMU's own timestamps, which is what a pause is measured by.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import socket
import struct
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from qemu.qmp import QMPError as LibraryError
from qemu.qmp.error import ProtocolError as LibraryProtocolError
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import ExecInterruptedError, ExecuteError

from colo.forked import keep_from_children
from colo.private import UNIX_PATH_MAX_BYTES
from colo.qemu.qmp.client import THREAD_NAME, Client, LoopThread
from colo.qemu.qmp.errors import QmpCommandError, QmpError, QmpLost, QmpReplyError, QmpTimeout
from colo.qemu.qmp.events import EventSubscription, QmpEvent
from colo.qemu.qmp.replies import Record, reply_records, reply_string
from colo.qemu.qmp.unread import Unread
from colo.text import printable

T = TypeVar("T")

UNANSWERED_MAX = 6
"""QEMU's monitor takes 8 commands that its main loop has not got to; then it reads no more, out-of-band ones neither
(seen on 7.2.22, 10.0.13 and 11.1.3). So with this many unanswered, the next one waits on our side."""


class QmpConnection:
    """A negotiated QMP connection; made by :meth:`connect`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.version: tuple[int, int, int] = (0, 0, 0)
        """QEMU's version from its greeting: major, minor, micro."""
        self.package = ""
        self.peer_pid: int | None = None
        """The process at the other end (SO_PEERCRED), if it made the socket itself."""
        self._loop = LoopThread.get()
        self._client = Client(self._dispatch)
        self._lock = threading.Lock()
        self._subscriptions: list[EventSubscription] = []
        self._callbacks: list[tuple[frozenset[str], Callable[[QmpEvent], None]]] = []
        self._on_lost: list[Callable[[], None]] = []
        self._closed_by_us = False
        self._unread: Unread | None = None
        self._lost = threading.Event()
        self._reason = ""

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout_s: float = 5.0) -> QmpConnection:
        """Connect to the unix socket of a monitor and negotiate, out-of-band execution included.

        A QEMU serves one client per monitor: a second one gets no greeting, and so runs into the timeout.

        Raises QmpError when there is no such socket, nobody listens, it may not be opened, or it is no QMP monitor.
        Raises QmpTimeout when there is no greeting within ``timeout_s`` seconds.
        """
        text = os.fspath(path)
        if len(os.fsencode(text)) > UNIX_PATH_MAX_BYTES:
            raise QmpError(f"the QMP socket's path is longer than {UNIX_PATH_MAX_BYTES} bytes: {text}")
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(timeout_s)
            peer.connect(text)
            peer.setblocking(False)
        except TimeoutError:
            peer.close()
            raise QmpTimeout(f"the QMP socket {text} took no connection within {timeout_s:.3f} s") from None
        except OSError as error:
            peer.close()
            raise QmpError(f"cannot connect to the QMP socket {text}: {error.strerror or error}") from error
        return cls._on_socket(peer, text, timeout_s)

    @classmethod
    def _on_socket(cls, peer: socket.socket, path: str, timeout_s: float) -> QmpConnection:
        connection = cls(path)
        keep_from_children(peer)
        with contextlib.suppress(OSError):
            pid, _uid, _gid = struct.unpack("iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            connection.peer_pid = pid or None
        try:
            connection._run(connection._client.connect(peer), timeout_s, "")
        except QmpTimeout:
            connection.close()
            peer.close()
            raise QmpTimeout(
                f"no greeting on {path} within {timeout_s:.3f} s: QEMU hangs, or another client holds "
                "this monitor"
            ) from None
        except Exception as error:
            connection.close()
            peer.close()
            raise QmpError(f"{path} is not a QMP monitor, or its QEMU just ended: {error}") from error
        greeting = connection._client.greeting
        try:
            if greeting is not None:
                connection._note_version(Record.of(greeting.QMP.version, "greeting", "'version'"))
        except QmpError:
            connection.close()
            raise
        connection._unread = Unread(peer)
        asyncio.run_coroutine_threadsafe(connection._watch(), connection._loop)
        _connections.add(connection)
        return connection

    def _note_version(self, version: Record) -> None:
        numbers = version.record("qemu")
        if numbers is None:
            raise QmpReplyError(f"the greeting on {self.path} says no version: it is not QEMU's", command="greeting")
        self.version = (numbers.whole("major"), numbers.whole("minor"), numbers.whole("micro"))
        self.package = printable(version.string("package", ""))[:200]

    # Calls

    def record(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> Record:
        """As :meth:`execute`, for an answer that is an object. Raises QmpReplyError if it is not."""
        return Record.of(self.execute(command, arguments, timeout_s=timeout_s), command)

    def records(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> list[Record]:
        """As :meth:`execute`, for an answer that is a list of objects. Raises QmpReplyError if it is not."""
        return reply_records(self.execute(command, arguments, timeout_s=timeout_s), command)

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> Any:
        """Execute ``command`` and return QEMU's answer.

        Raises QmpCommandError when QEMU refused; its words are in the message.
        Raises QmpTimeout when there is no answer in time (its main loop may be blocked: see :meth:`execute_oob`).
        Raises QmpLost when the connection ended before the answer.
        """
        return self._run(self._execute(command, arguments, oob=False), timeout_s, command)

    def execute_oob(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> Any:
        """As :meth:`execute`, out of band: done by QEMU's monitor thread, whatever the main loop does.

        QEMU accepts only commands that allow it (``yank``, ``migrate-pause``, ``migrate-recover``, …).
        """
        return self._run(self._execute(command, arguments, oob=True), timeout_s, command)

    def hmp(self, line: str, *, timeout_s: float = 10.0) -> str:
        """What the human monitor prints for ``line``."""
        arguments = {"command-line": line}
        answer = reply_string(
            self.execute("human-monitor-command", arguments, timeout_s=timeout_s), "human-monitor-command")
        return answer.replace("\r\n", "\n")

    async def _execute(self, command: str, arguments: Mapping[str, Any] | None, oob: bool) -> Any:
        while not oob and len(self._client.unanswered) >= UNANSWERED_MAX:
            if self._lost.is_set():
                raise EOFError("it is closed")
            await asyncio.sleep(0.005)
        return await self._client.execute(command, arguments, oob=oob)

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float, command: str) -> T:
        if threading.current_thread().name == THREAD_NAME:
            coroutine.close()
            raise QmpError("an event callback may not call QEMU: use another thread", command=command)
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        what = f"`{command}`" if command else "the connection"
        try:
            return future.result(timeout_s)
        except FutureTimeout:
            future.cancel()
            raise QmpTimeout(
                f"no answer to {what} on {self.path} within {timeout_s:.3f} s", command=command
            ) from None
        except ExecuteError as error:
            raise QmpCommandError(
                f"QEMU refused {what}: {error}", command=command, error_class=error.error_class
            ) from None
        except ExecInterruptedError:
            raise self._lost_error(f"during {what}", command) from None
        except (LibraryProtocolError, LibraryError, EOFError, OSError) as error:
            if not command:
                raise
            self._reason = self._reason or ("" if self._client.runstate.name == "IDLE" else str(error))
            raise self._lost_error(f"during {what}", command) from None

    # Events

    def subscribe(self, *names: str) -> EventSubscription:
        """Collect the events called ``names`` (none: all) from now on. Do it before you cause them."""
        subscription = EventSubscription(frozenset(names), lost_error=self._lost_error, end=self._unsubscribe)
        with self._lock:
            self._subscriptions.append(subscription)
            if self._lost.is_set():
                subscription.put(None)
        return subscription

    def on_event(self, callback: Callable[[QmpEvent], None], *names: str) -> Callable[[], None]:
        """Call ``callback`` from the background thread for each event with one of ``names`` (none: all).

        The callback must be quick and may not execute commands. Returns what ends it.
        """
        entry = (frozenset(names), callback)
        with self._lock:
            self._callbacks.append(entry)

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._callbacks.remove(entry)

        return end

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, on the background thread, when the connection ends but by us."""
        with self._lock:
            if not self._lost.is_set():
                self._on_lost.append(callback)
                return
        if not self._closed_by_us:
            callback()

    def wait_event(self, names: str | Iterable[str], timeout_s: float) -> QmpEvent:
        """The next event from now with one of ``names``. (To miss none, :meth:`subscribe` before acting.)"""
        with self.subscribe(*([names] if isinstance(names, str) else names)) as events:
            return events.get(timeout_s)

    def _dispatch(self, event: QmpEvent) -> None:
        with self._lock:
            subscriptions, callbacks = list(self._subscriptions), list(self._callbacks)
        for subscription in subscriptions:
            subscription.put(event)
        for names, callback in callbacks:
            if not names or event.name in names:
                try:
                    callback(event)
                except Exception:
                    Client.logger.exception("event callback failed")

    def _unsubscribe(self, subscription: EventSubscription) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._subscriptions.remove(subscription)

    # The end

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._lost.is_set()

    def wait_lost(self, timeout_s: float) -> bool:
        """Wait until the connection ends; True if it did."""
        return self._lost.wait(timeout_s)

    def _lost_error(self, when: str, command: str = "") -> QmpLost:
        if self._closed_by_us:
            return QmpLost(f"the QMP connection {self.path} was closed {when}", command=command)
        reason = f" ({self._reason})" if self._reason else ""
        return QmpLost(
            f"QEMU's monitor {self.path} is gone {when}: the process ended{reason}", command=command
        )

    async def _watch(self) -> None:
        """Notice the end of the connection, whoever ends it, and tell everyone who waits."""
        client = self._client
        stream = client._reader
        while client.runstate.name == "RUNNING":
            await client.runstate_changed()
        try:
            await client.disconnect()
        except EOFError:
            pass
        except Exception as error:
            self._reason = str(error) or type(error).__name__
        await self._last_words(bytes(getattr(stream, "_buffer", b"")))
        with self._lock:
            self._lost.set()
            subscriptions, callbacks = list(self._subscriptions), self._on_lost
            self._on_lost = []
        for subscription in subscriptions:
            subscription.put(None)
        if not self._closed_by_us:
            for callback in callbacks:
                try:
                    callback()
                except Exception:
                    Client.logger.exception("loss callback failed")

    async def _last_words(self, read_already: bytes) -> None:
        """Hand on the events that the broken connection still held."""
        unread, self._unread = self._unread, None
        if unread is None:
            return
        if self._closed_by_us:
            unread.close()
            return
        for message in unread.events(read_already):
            with contextlib.suppress(Exception):
                await self._client._event_dispatch(Message(message))

    def close(self, timeout_s: float = 2.0) -> None:
        """Close our end; QEMU lives on. Idempotent."""
        self._closed_by_us = self._closed_by_us or not self._lost.is_set()
        if threading.current_thread().name == THREAD_NAME:
            return
        _connections.discard(self)
        future = asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop)
        with contextlib.suppress(Exception):
            future.result(timeout_s)
        self._lost.wait(0 if self.version == (0, 0, 0) else timeout_s)

    async def _disconnect(self) -> None:
        with contextlib.suppress(Exception):
            await self._client.disconnect()

    def __enter__(self) -> QmpConnection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_connections: weakref.WeakSet[QmpConnection] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave no task pending in the loop when the interpreter goes; every QEMU lives on."""
    for connection in list(_connections):
        connection.close(0.5)
