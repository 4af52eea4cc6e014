"""Looks at the arbiter now and then: a generation that is over protects nobody, and who held it stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from colo.arbiter import Arbiter
from colo.errors import ArbitrationError

LOOK_S = 0.5
HOLD_LOOK_S = 0.2
"""How often a session that could run, or does, looks whether the other side does."""


class Watched(Protocol):
    """The arbiter, as far as it is watched."""

    def current(self) -> int: ...


class _Look:
    """Looks at the arbiter, on a thread of its own, while some generation is expected."""

    every_s = LOOK_S

    def __init__(self, arbiter: Watched, name: str, expected: int | None) -> None:
        self._arbiter = arbiter
        self._expected = expected
        self._over = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def expect(self, generation: int | None) -> None:
        """From now on ``generation`` should hold; None: whichever does."""
        self._expected = generation

    def close(self) -> None:
        """Look no more; a look that hangs is left to itself."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set():
            if (expected := self._expected) is not None:
                seen, unreadable = None, None
                try:
                    seen = self._arbiter.current()
                except ArbitrationError as error:
                    unreadable = error
                if not self._over.is_set() and expected == self._expected:  # else it was asked too early to tell
                    self._saw(expected, seen, unreadable)
            self._over.wait(self.every_s)

    def _saw(self, expected: int, seen: int | None, unreadable: ArbitrationError | None) -> None:
        raise NotImplementedError


class GenerationLook(_Look):
    """Notices that ``generation`` is over, as somebody else has claimed the VM: then :attr:`lost` says so, and ``wake`` is
    called, once. A claim of this side's own is made between ``expect(None)`` and ``expect`` of what it won."""

    every_s = HOLD_LOOK_S

    def __init__(self, arbiter: Watched, generation: int | None, wake: Callable[[], None]) -> None:
        self.lost = ""
        self._wake = wake
        super().__init__(arbiter, "colo-generation-look", generation)

    def _saw(self, expected: int, seen: int | None, unreadable: ArbitrationError | None) -> None:
        if seen is not None and seen > expected:  # when it cannot be told just now, the lease lasts as long as it does
            self.lost = f"the arbiter shows generation {seen}"
            self.close()
            self._wake()


class ArbiterWatch(_Look):
    """Calls ``alarm(text)``, on a thread of its own, when the arbiter shows another generation than the one followed, or
    nothing at all; with "" when it is as it should be again."""

    def __init__(self, arbiter: Watched, alarm: Callable[[str], None]) -> None:
        self._alarm = alarm
        self._said = ""
        super().__init__(arbiter, "colo-arbiter-watch", None)

    def _saw(self, expected: int, seen: int | None, unreadable: ArbitrationError | None) -> None:
        text = ""
        if unreadable is not None:
            text = f"the arbiter cannot be read, so this side could not take over as things are: {unreadable}"
        elif seen != expected:
            text = (
                f"this side follows generation {expected}, but the arbiter shows {seen}: as things are, it could not take "
                "over; see who holds it with `colo arbiter show`")
        if text != self._said:
            self._said = text
            self._alarm(text)


def why_ended(arbiter: Arbiter | None) -> str:
    """Why the VM was ended on purpose, as far as the arbiter knows; "" where it was not, or it cannot be told."""
    try:
        held = arbiter.holder() if arbiter is not None else None
    except ArbitrationError:
        return ""
    return (held.reason or "on purpose") if held is not None and held.closed else ""
