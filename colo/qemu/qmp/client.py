"""The library's client of one monitor, as it is used here, and the thread that runs the clients of this process."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable

from qemu.qmp import QMPClient
from qemu.qmp.error import ProtocolError as LibraryProtocolError
from qemu.qmp.message import Message

from colo.qemu.qmp.events import QmpEvent
from colo.qemu.qmp.replies import event_whole

THREAD_NAME = "colo-qmp"
LINE_LIMIT_BYTES = 4 << 20
"""Of an answer or an event. The longest that QEMU gives (`query-machines`, `info mtree`) have a tenth of it."""


class Client(QMPClient):
    """The library's client without what would cost: an ever growing event history, printed messages."""

    logger = logging.getLogger("colo.qmp")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False  # a killed QEMU is an error to the library; here it is ordinary, and raised

    def __init__(self, on_event: Callable[[QmpEvent], None]) -> None:
        super().__init__("colo")
        self.readbuflen = LINE_LIMIT_BYTES
        self._colo_on_event = on_event
        self.unanswered: set[str] = set()
        """Ids of the in-band commands that QEMU has not answered, also of those that nobody waits for any more."""

    _limit = LINE_LIMIT_BYTES
    """What the library's first versions look at; later ones at ``readbuflen``."""

    async def _readline(self) -> bytes:
        try:
            return await super()._readline()
        except ValueError as error:  # asyncio's way to say that no line ended within the limit
            raise LibraryProtocolError(f"it sends a line of more than {LINE_LIMIT_BYTES} bytes") from error

    async def _do_recv(self) -> Message:
        try:
            return await super()._do_recv()
        except RecursionError as error:
            raise LibraryProtocolError("it sends JSON that is nested too deep") from error

    def _cb_outbound(self, msg: Message) -> Message:
        if "execute" in msg and isinstance(number := msg.get("id"), str):
            self.unanswered.add(number)
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        if isinstance(number := msg.get("id"), str):
            self.unanswered.discard(number)
        return msg

    async def _event_dispatch(self, msg: Message) -> None:
        stamp, data = msg.get("timestamp"), msg.get("data")
        stamp = stamp if isinstance(stamp, dict) else {}
        self._colo_on_event(
            QmpEvent(
                str(msg["event"]),
                data if isinstance(data, dict) else {},
                event_whole(stamp, "seconds") * 1_000_000 + event_whole(stamp, "microseconds"),
                time.monotonic_ns(),
            )
        )


class LoopThread:
    """The one background thread with its asyncio loop; started by the first connection of this process."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None
    _pid = 0

    @classmethod
    def get(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            if cls._loop is None or cls._pid != os.getpid():  # a fork has no thread of its own
                cls._loop, cls._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=cls._loop.run_forever, name=THREAD_NAME, daemon=True).start()
            return cls._loop
