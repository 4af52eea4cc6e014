"""Who has asked for a checkpoint, and which one answers."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from colo.errors import Interrupted
from colo.figures.primary_report import PrimaryReport


class CheckpointRequests:
    """A request is answered by a checkpoint that begins after it was made. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Future[PrimaryReport]] = []
        self._served: list[Future[PrimaryReport]] = []
        """Get the one under way."""
        self._over = False

    def ask(self) -> Future[PrimaryReport]:
        """Raises Interrupted when the session is over."""
        future: Future[PrimaryReport] = Future()
        with self._lock:
            if self._over:
                raise Interrupted("the session is over: no checkpoint can be made")
            self._waiting.append(future)
        return future

    def begin(self) -> None:
        """A checkpoint begins: it answers those who have asked so far."""
        with self._lock:
            self._served, self._waiting = self._waiting, []

    def answer(self, report: PrimaryReport) -> None:
        """It is committed."""
        for future in self._take_served():
            future.set_result(report)

    def refuse(self, error: BaseException) -> None:
        """It did not come to be."""
        for future in self._take_served():
            future.set_exception(error)

    def end(self, error: BaseException) -> None:
        """No checkpoint will be made any more."""
        with self._lock:
            self._over = True
            waiting, self._waiting = self._waiting, []
        for future in (*self._take_served(), *waiting):
            future.set_exception(error)

    def _take_served(self) -> list[Future[PrimaryReport]]:
        with self._lock:
            served, self._served = self._served, []
        return served
