"""Looks at the arbiter while a primary is followed: a generation that is not the primary's protects nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from colo.arbiter import Arbiter
from colo.errors import ArbitrationError

LOOK_S = 0.5
HOLD_LOOK_S = 0.2
"""How often a session that holds its checkpoint looks whether the other side runs."""


class Watched(Protocol):
    """The arbiter, as far as it is watched."""

    def current(self) -> int: ...


class GenerationLook:
    """Looks, on a thread of its own, whether ``generation`` is over: then :attr:`lost` says so, and ``wake`` is called."""

    def __init__(self, arbiter: Watched, generation: int, wake: Callable[[], None]) -> None:
        self.lost = ""
        self._arbiter = arbiter
        self._generation = generation
        self._wake = wake
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="colo-generation-look", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more; a look that hangs is left to itself."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.is_set():
            try:
                seen = self._arbiter.current()
            except ArbitrationError:
                seen = self._generation  # it cannot be told just now
            if seen > self._generation:
                self.lost = f"the arbiter shows generation {seen}"
                if not self._over.is_set():
                    self._wake()
                return
            self._over.wait(HOLD_LOOK_S)


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

    def expect(self, generation: int | None) -> None:
        """The primary that is followed from now on holds ``generation``; None: none is followed."""
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


def why_ended(arbiter: Arbiter | None) -> str:
    """Why the VM was ended on purpose, as far as the arbiter knows; "" where it was not, or it cannot be told."""
    try:
        held = arbiter.holder() if arbiter is not None else None
    except ArbitrationError:
        return ""
    return (held.reason or "on purpose") if held is not None and held.closed else ""
