"""Where memory is written, over a session: pages by place and time, in a table that stays small."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Sequence
from typing import Any

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.staging import Staging

COLUMNS = 256
"""Places: equal parts of all blocks' pages, one block behind the other."""
RECENT_ROWS = 4
NAMED_BLOCKS = 64
"""A summary names the largest so many."""
ROWS = 240
"""Times: when there would be more, each two become one."""


class DirtyHeat:
    """Counts the pages of each checkpoint by place. :meth:`add` on the session's thread, all else from anywhere."""

    def __init__(self) -> None:
        self.blocks: list[tuple[str, int]] = []
        """Names and pages."""
        self.bucket_pages = 1
        self.per_row = 1
        """Checkpoints that one row stands for."""
        self._rows: list[array[int]] = []
        self._times_s: list[float] = []
        self._in_last = 0
        self._lock = threading.Lock()

    def add(self, blocks: Sequence[RamBlock], staging: Staging) -> None:
        """Take in what is staged over ``blocks``, before it is applied."""
        named = [(block.idstr, block.pages) for block in blocks]
        with self._lock:
            if named != self.blocks:  # the first time, or a block was resized: places are others now
                self.blocks = named
                total = max(1, sum(pages for _, pages in named))
                self.bucket_pages = -(-total // COLUMNS)
                self._rows.clear()
                self._times_s.clear()
                self.per_row, self._in_last = 1, 0
            if not self._rows or self._in_last == self.per_row:
                self._make_room()
                self._rows.append(array("I", bytes(4 * COLUMNS)))
                self._times_s.append(time.monotonic())
                self._in_last = 0
            staging.count_pages(self._rows[-1], self.bucket_pages)
            self._in_last += 1

    def _make_room(self) -> None:
        if len(self._rows) < ROWS:
            return
        self._rows = [
            array("I", map(sum, zip(first, second, strict=True)))
            for first, second in zip(self._rows[::2], self._rows[1::2], strict=True)
        ]
        self._times_s = self._times_s[::2]
        self.per_row *= 2

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``rows`` of counts by place, the oldest first; a place has ``bucket_pages`` pages. ``times_s``
        is when each row began (CLOCK_MONOTONIC); the last row has ``last_row_checkpoints`` so far."""
        with self._lock:
            return {
                "blocks": [{"idstr": name, "pages": pages} for name, pages in self.blocks],
                "bucket_pages": self.bucket_pages,
                "checkpoints_per_row": self.per_row,
                "last_row_checkpoints": self._in_last,
                "times_s": [round(at, 3) for at in self._times_s],
                "rows": [list(row) for row in self._rows],
            }

    def summary(self) -> dict[str, Any]:
        """For JSON, of bounded size: counts by place of the whole session (``places``) and of the last rows (``recent``);
        ``blocks`` as in :meth:`as_dict`, but of many only the largest, each with the page it begins at."""
        with self._lock:
            begins: list[dict[str, Any]] = []
            at = 0
            for name, pages in self.blocks:
                begins.append({"idstr": name, "begin": at, "pages": pages})
                at += pages
            largest = sorted(begins, key=lambda block: -block["pages"])[:NAMED_BLOCKS]
            rows = self._rows or [array("I", bytes(4 * COLUMNS))]
            return {
                "blocks": sorted(largest, key=lambda block: block["begin"]),
                "total_pages": at,
                "bucket_pages": self.bucket_pages,
                "checkpoints": max(0, len(self._rows) - 1) * self.per_row + self._in_last,
                "places": [sum(column) for column in zip(*rows, strict=True)],
                "recent": [sum(column) for column in zip(*rows[-RECENT_ROWS:], strict=True)],
            }
