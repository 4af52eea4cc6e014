"""Looks at the arbiter while a primary is followed: a generation that is not the primary's protects nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from colo.errors import ArbitrationError

LOOK_S = 0.5


class Watched(Protocol):
    """The arbiter, as far as it is watched."""

    def current(self) -> int: ...


class ArbiterWatch:
    """Calls ``alarm(text)``, on a thread of its own, when the arbiter shows another generation than the one followed, or
    nothing at all; with "" when it is as it should be again."""

    def __init__(self, arbiter: Watched, alarm: Callable[[str], None]) -> None:
        self._arbiter = arbiter
        self._alarm = alarm
        self._expected: int | None = None
        self._said = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="colo-arbiter-watch", daemon=True)
        self._thread.start()

    def expect(self, generation: int) -> None:
        """The primary that is followed from now on holds ``generation``."""
        self._expected = generation

    def close(self) -> None:
        """Look no more; a look that hangs is left to itself."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            expected = self._expected
            if expected is None:
                continue
            try:
                seen = self._arbiter.current()
                text = "" if seen == expected else (
                    f"this side follows generation {expected}, but the arbiter shows {seen}: as things are, it could not "
                    "take "
                    "over; see who holds it with `colo arbiter show`")
            except ArbitrationError as error:
                text = f"the arbiter cannot be read, so this side could not take over as things are: {error}"
            if text != self._said and not self._over.is_set() and expected == self._expected:
                self._said = text
                self._alarm(text)
