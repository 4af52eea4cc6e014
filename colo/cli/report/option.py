"""``--report DIR`` of the commands that run a session."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from colo.cli.report import page as report
from colo.cli.report.recording import Recording
from colo.text import printable

UNWRITTEN = 8
"""Exit code of a session that ended well, and whose report could not be written."""


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """Register the option."""
    parser.add_argument("--report", metavar="DIR", help="at the end, write DIR/index.html and DIR/run.json: pauses, pages "
                        "and bytes by kind over time, where memory was written, the takeover")


@contextlib.contextmanager
def reported(
    directory: str | None, title: str, tell: Callable[[str], Any] | None = None
) -> Iterator[Recording | None]:
    """A recording of what happens within, written to ``directory`` however it ends; None without a directory.

    Raises StorageError, before anything has happened, when it cannot be written there. When it cannot be written at the end,
    that is said on standard error, and :attr:`Recording.unwritten` (see :func:`concluded`): how the session ended stays.
    """
    if directory is None:
        yield None
        return
    recording = Recording(title)
    with report.prepare(directory) as place:
        try:
            yield recording
        except BaseException as error:
            if recording.ending is None:
                recording.ending = {"text": type(error).__name__, "reason": str(error)}
            recording.note(f"it ended: {error} [{type(error).__name__}]")
            raise
        finally:
            recording.ended()
            try:
                page = report.write(place, recording)
            except Exception as error:
                recording.unwritten = True
                with contextlib.suppress(OSError, ValueError):
                    print(printable(str(error)), file=sys.stderr)
            else:
                if tell is not None:
                    tell(f"report: {page}")


def concluded(code: int, recording: Recording | None) -> int:
    """The exit code of a session that ended with ``code``: not 0 when the report that was asked for is missing."""
    return code or (UNWRITTEN if recording is not None and recording.unwritten else 0)
