"""An event that ends waits on file descriptors."""

from __future__ import annotations

import contextlib
import os
import threading


class Wake:
    """``fd`` is readable from :meth:`set` to :meth:`clear`. From any thread, also after :meth:`close`.

    A forked child has a copy of the descriptor, and nothing to say by it: there, only :meth:`close` does anything.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def set(self) -> None:
        """Wake whoever waits, now and until :meth:`clear`."""
        if self._is_copy:
            return
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Nothing is to be woken for any more."""
        if self._is_copy:
            return
        with self._lock, contextlib.suppress(BlockingIOError):
            if self.fd >= 0:
                os.eventfd_read(self.fd)

    def close(self) -> None:
        """Nobody may be waiting on ``fd`` any more. Any number of times."""
        with contextlib.nullcontext() if self._is_copy else self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    @property
    def _is_copy(self) -> bool:
        """In a forked child, where the lock may be taken for ever: by a thread that only its parent has."""
        return os.getpid() != self._pid
