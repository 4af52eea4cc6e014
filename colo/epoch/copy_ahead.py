"""Dirty pages copied before the pause, while the VM still runs: whether that is worth it, and how often.

What the VM writes to a page after its copy is found by the harvest in the pause, and copied again: of a page's several
records the last counts. The pause then holds the search for dirty pages, and the copy of those written again.
"""

from __future__ import annotations

from dataclasses import dataclass

from colo.epoch.primary_pages import PrimaryPages

FEW_PAGES = 1000
"""So few are copied in about a millisecond; another round would find about as many as it spares."""
ROUNDS_MAX = 4
SPARED_PAGES_MIN = 64
"""Below this the pause gains less than the harvest before it costs."""
SKIPPED_MAX = 15


@dataclass(slots=True)
class CopyAhead:
    """One checkpoint's rounds, and from one to the next whether to make them."""

    pages: int = 0
    """Copied while the VM ran; one that was copied twice counts twice."""
    _rounds: int = 0
    _left_out: int = 0
    _to_leave_out: int = 0

    def copy(self, pages: PrimaryPages, epoch: int) -> None:
        """Before the pause: copy what is dirty, in rounds as long as each finds at most half as many as the one before."""
        self.pages = self._rounds = 0
        if self._to_leave_out:
            self._to_leave_out -= 1
            return
        most = None
        while self._rounds < ROUNDS_MAX:
            found = pages.harvest_more()
            pages.copy(epoch)
            self._rounds += 1
            self.pages += found
            if found <= FEW_PAGES or (most is not None and found > most):
                return
            most = found // 2

    def took(self, paused_pages: int, dirty_pages: int) -> None:
        """The pause copied ``paused_pages``; ``dirty_pages`` were dirty in all, each counted once.

        A VM that writes few pages, or the same ones all the time, is asked again after some checkpoints without.
        """
        if not self._rounds:
            return
        spared = dirty_pages - paused_pages
        if spared >= SPARED_PAGES_MIN and spared >= self.pages // 2:
            self._left_out = 0
        else:
            self._left_out = min(2 * self._left_out + 1, SKIPPED_MAX)
        self._to_leave_out = self._left_out
