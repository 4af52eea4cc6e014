"""An event that ends waits on file descriptors."""

from __future__ import annotations

import contextlib
import os
import threading


class Wake:
    """``fd`` is readable from :meth:`set` to :meth:`clear`. From any thread, also after :meth:`close`."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def set(self) -> None:
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            if self.fd >= 0:
                os.eventfd_read(self.fd)

    def close(self) -> None:
        """Nobody may be waiting on ``fd`` any more. Any number of times."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
