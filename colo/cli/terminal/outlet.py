"""Standard output as a session may use it: whatever becomes of the reader, the session neither waits nor fails.

A reader that went away, a disk that is full, a terminal that closed, a pipe that nobody empties: the line is dropped. What
has to be said in any case is the exit code, and what `colo status` answers.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import queue
import signal
import sys
import threading
from typing import TextIO

WAITING_LIMIT = 1000
"""Lines (or frames of a live picture) that may wait for a slow reader; more are dropped."""
LAST_WORDS_S = 1.0
"""At the end, a slow reader gets so long to take what waits."""


class Outlet(io.TextIOBase):
    """Writes to ``stream`` from a thread of its own. :attr:`lost` says whether something could not be written."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._waiting: queue.Queue[str | None] = queue.Queue(WAITING_LIMIT)
        self.lost = False
        self._gone = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self._stream.isatty())
        return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        """Have it written, soon. Never waits, never fails."""
        if self._gone or not text:
            return len(text)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="colo-output", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self.lost = True
        return len(text)

    def flush(self) -> None:
        """Nothing to do: what was written is on its way."""

    def line(self, text: str) -> None:
        """Write a line, as one."""
        self.write(f"{text}\n")

    def finish(self) -> None:
        """Wait until what waits is written, at most :data:`LAST_WORDS_S`."""
        with self._lock:
            thread = self._thread
            self._thread = None
        if thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=LAST_WORDS_S)
                thread.join(LAST_WORDS_S)
            if thread.is_alive():
                self._gone = self.lost = True

    def _write_all(self) -> None:
        while (text := self._waiting.get()) is not None:
            if self._gone:
                continue
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError) as error:  # ValueError: it is closed
                self.lost = True
                # A full disk may have room again. Everything else is for good, and what the stream still holds with it.
                self._gone = not isinstance(error, OSError) or error.errno not in _PASSING
                drop_output(self._stream, for_good=self._gone)


_PASSING = {errno.ENOSPC, errno.EDQUOT}


def drop_output(stream: TextIO, *, for_good: bool = True) -> None:
    """Drop what a stream could not write, or the interpreter would try again, and fail, when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if stream.fileno() != 1:
            return
        kept = os.dup(1)
        try:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, 1)
            os.close(null)
            stream.flush()
        finally:
            if not for_good:
                os.dup2(kept, 1)
            os.close(kept)


def open_standard_streams() -> None:
    """Make sure that 0, 1 and 2 are open: else the next file or socket gets such a number, and what is meant for the screen
    is written into it. Reading from what was closed, and writing to it, still fails, as it should."""
    for fd, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != fd:
                os.dup2(opened, fd, inheritable=True)
                os.close(opened)
            else:
                os.set_inheritable(fd, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def outlive_terminal() -> None:
    """A terminal that closes ends no session (SIGHUP), and one that lets nobody write from behind stops none (SIGTTOU)."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, lambda *_: None)  # not SIG_IGN: what we start would inherit that
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
