"""A child process that ends with this one, and whose last words are kept.

A QEMU that we start dies with us, whatever way we die: a small watcher process holds the reading end of a
pipe, and kills when the pipe closes before it was told to let go. (The kernel's parent-death signal would
fire when the *thread* that started QEMU ends, and could not be called off when the VM is handed to the
user.)
"""

from __future__ import annotations

import collections
import contextlib
import io
import signal
import subprocess
import threading
from typing import IO, cast

from colo.forked import keep_from_children
from colo.text import printable

OUTPUT_KEPT_LINES = 200
OUTPUT_LINE_MAX_BYTES = 1000

_WATCHER = 'read -r word; [ "$word" = release ] || kill -KILL "$1" 2>/dev/null'


class Watcher:
    """Kills a process when we are gone without having dismissed it."""

    def __init__(self, pid: int) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "colo-watcher", str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        keep_from_children(cast(io.IOBase, self._process.stdin))  # or a child of ours would hold the pipe when we are dead
        self.watching = True

    def dismiss(self) -> None:
        """End the watch without a kill. Idempotent."""
        if not self.watching:
            return
        self.watching = False
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"release\n")
            self._process.stdin.close()
        self._process.wait()


class Output:
    """Reads a process's output so that it never blocks on it, and keeps the last lines."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=OUTPUT_KEPT_LINES)
        self._thread = threading.Thread(
            target=self._read, args=(stream,), name="colo-qemu-output", daemon=True
        )
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(OUTPUT_LINE_MAX_BYTES):
                self._lines.append(printable(line.decode(errors="replace").rstrip()))

    def lines(self) -> list[str]:
        """The last of them."""
        return list(self._lines)

    def quoted(self) -> str:
        """``; it said: …`` with the last lines, or nothing."""
        self._thread.join(0.1)  # what a dying QEMU wrote last may still be in the pipe
        said = [line for line in self.lines() if line and "warning: " not in line]
        return "; it said: " + " | ".join(said[-5:]) if said else ""


def ending_words(returncode: int | None) -> str:
    """How it ended, by its exit status as :mod:`subprocess` has it; None: it has only closed its monitor."""
    if returncode is None:
        return "closed its monitor"
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"
