"""``--report DIR`` of the commands that run a session."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from colo.cli import report
from colo.cli.recording import Recording


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """Register the option."""
    parser.add_argument("--report", metavar="DIR", help="at the end, write DIR/index.html and DIR/run.json: pauses, pages "
                        "and bytes by kind over time, where memory was written, the takeover")


@contextlib.contextmanager
def reported(
    directory: str | None, title: str, tell: Callable[[str], Any] | None = None
) -> Iterator[Recording | None]:
    """A recording of what happens within, written to ``directory`` however it ends; None without a directory.

    Raises StorageError, before anything has happened, when it cannot be written there.
    """
    if directory is None:
        yield None
        return
    path = report.prepare(directory)
    recording = Recording(title)
    try:
        yield recording
    except BaseException as error:
        if recording.ending is None:
            recording.ending = {"text": type(error).__name__, "reason": str(error)}
        recording.note(f"it ended: {error} [{type(error).__name__}]")
        raise
    finally:
        recording.ended()
        page = report.write(path, recording)
        if tell is not None:
            tell(f"report: {page}")
