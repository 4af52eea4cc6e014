"""A secondary's door: open as long as its session lives, for lease connections; for migration streams, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from colo.abc import Listener, Transport
from colo.errors import Interrupted
from colo.transport.admission import admit
from colo.wake import Wake, wait_ready


class Door:
    """Takes connections on ``listener``, on a thread of its own, and gives :meth:`wait` the next that opens a migration
    stream.

    A stream that comes while one is served is refused, or with ``parks`` (one of them) kept until somebody does.
    ``bars()`` says why a stream may not be let in just now, or "". ``lease`` gets the lease connections. ``allow_uids``:
    see :func:`~colo.transport.admission.admit`. Raises AddressError when nobody can be waited for on ``listener``.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        handshake_s: float,
        refused: Callable[[str], None],
        lease: Callable[[Transport], None] | None = None,
        bars: Callable[[], str] = lambda: "",
        parks: bool = False,
        allow_uids: Collection[int] = (),
    ) -> None:
        listener.fileno()
        self._listener = listener
        self._handshake_s = handshake_s
        self._refused = refused
        self._lease = lease
        self._bars = bars
        self._parks = parks
        self._allow_uids = allow_uids
        self._lock = threading.Lock()
        self._open = True
        """From the beginning, and from each :meth:`wait` on, until one is let in."""
        self._parked: Transport | None = None
        self._here, self._stop = Wake(), Wake()
        self._thread = threading.Thread(target=self._serve, name="colo-door", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                came = admit(
                    self._listener, handshake_s=self._handshake_s, wake_fd=self._stop.fd, refused=self._refused,
                    lease=self._lease, allow_uids=self._allow_uids)
            except (Interrupted, OSError, ValueError):
                return  # closed
            self._let_in(came)

    def _let_in(self, came: Transport) -> None:
        barred = self._bars()
        with self._lock:
            if not barred and self._parked is None and (self._open or self._parks):
                self._parked, self._open = came, False
                self._here.set()
                return
        self._refused(f"a migration stream was refused: {barred or 'this secondary follows a primary already'}")
        came.close()

    def wait(self, wake_fd: int) -> Transport:
        """The next stream's connection. Raises Interrupted when ``wake_fd`` becomes readable."""
        while True:
            with self._lock:
                if self._parked is not None:
                    parked, self._parked = self._parked, None
                    self._here.clear()
                    return parked
                self._open = True
            wait_ready((self._here.fd,), None, wake_fd=wake_fd)

    def close(self) -> None:
        """Let nobody in any more; the listener is closed by whoever opened it. Any number of times."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            if self._parked is not None:
                self._parked.close()
                self._parked = None
        self._here.close()
        self._stop.close()
