"""Standard output for commands whose whole answer is what they print: all of it is written, or an error says so."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from colo.errors import StorageError
from colo.text import printable


@contextlib.contextmanager
def whole_output() -> Iterator[None]:
    """What is printed inside is flushed at the end. A character that the output's encoding has not becomes an escape.

    Raises StorageError where it cannot be written (disk full, closed); BrokenPipeError passes: the reader left.
    """
    if sys.stdout is None:
        raise StorageError("standard output is closed: there is nowhere to write the answer to")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard()
        raise StorageError(f"standard output: {error.strerror}: the answer is not whole") from error


def _discard() -> None:
    """What is left in the buffer must not be tried again at the exit, where it would be a traceback."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say_error(text: str) -> None:
    """A line on standard error, printable, if there is one and it can be written."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)
