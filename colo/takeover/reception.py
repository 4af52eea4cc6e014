"""Where a primary reaches a secondary: the listener, with the door and the lease behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

from colo.abc import Transport
from colo.arbiter import Arbiter
from colo.lease.promises import Promises
from colo.protocol.deadlines import Deadlines
from colo.transport import TcpOptions, listen
from colo.transport.admission import PENDING_LIMIT
from colo.transport.door import Door
from colo.wake import wait_ready


class Reception:
    """Open from the beginning to :meth:`close`. ``listen_at`` "": nobody is let in.

    ``required``: no stream is let in without a lease; ``parks``: one may come before the end of the connection before it is
    noticed; ``forgotten``, ``checkpoint``, ``wake``: see :class:`~colo.lease.promises.Promises`. Raises what
    :func:`~colo.transport.listen` does.
    """

    def __init__(
        self, listen_at: str, *, deadlines: Deadlines, insecure: bool, allow_uids: Collection[int], parks: bool,
        lease_ms: float, required: bool, forgotten: bool, arbiter: Arbiter | None, checkpoint: Callable[[], int | None],
        tell: Callable[[str], None], wake: Callable[[], None],
    ) -> None:
        self.address = ""
        self._door: Door | None = None
        with contextlib.ExitStack() as cleanup:
            if listen_at:
                listener = cleanup.enter_context(listen(
                    listen_at, insecure=insecure, backlog=PENDING_LIMIT, options=TcpOptions.within(deadlines.message_s)))
                self.address = listener.address
            self.promises = Promises(
                lease_ms, required=required, arbiter=arbiter, checkpoint=checkpoint, tell=tell, wake=wake,
                forgotten=forgotten)
            cleanup.callback(self.promises.close)
            if listen_at:
                self._door = Door(
                    listener, handshake_s=deadlines.handshake_s, refused=tell, lease=self.promises.take,
                    bars=self.promises.bars, parks=parks, allow_uids=allow_uids)
                cleanup.callback(self._door.close)
            self._cleanup = cleanup.pop_all()

    def next_connection(self, wake_fd: int) -> Transport:
        """That of the next primary. Raises Interrupted when ``wake_fd`` becomes readable."""
        if self._door is not None:
            return self._door.wait(wake_fd)
        wait_ready((), None, wake_fd=wake_fd)
        raise AssertionError("only the wake-up ends it")

    def close(self) -> None:
        """Let nobody in any more. Any number of times."""
        self._cleanup.close()
