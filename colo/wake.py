"""Waits on file descriptors, and an event that ends them."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Collection

from colo.errors import Interrupted


def wait_ready(
    reading: Collection[int], timeout_s: float | None, *, writing: Collection[int] = (), wake_fd: int = -1
) -> set[int]:
    """Those of the descriptors that can be read or written, or are at their end or broken, within ``timeout_s`` (None: for
    ever); none of them: time is up. Negative ones are passed over. Raises Interrupted when ``wake_fd`` is readable."""
    poller = select.poll()
    for fds, event in ((reading, select.POLLIN), (writing, select.POLLOUT), ((wake_fd,), select.POLLIN)):
        for fd in fds:
            if fd >= 0:
                poller.register(fd, event)
    ready = {fd for fd, _ in poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)}
    if wake_fd in ready:
        raise Interrupted("the wait was ended from this side")
    return ready


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
