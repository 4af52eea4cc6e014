"""Which part of the time a VM runs: what is left of it between the pauses for its checkpoints."""

from __future__ import annotations

from collections import deque

WINDOW_S = 5.0
LEAST_S = 1.0
"""Of less than this nothing is said."""
TOO_LITTLE = 0.5
ENOUGH = 0.55
"""A share that was too little has recovered only here: one that wavers about a half is told once."""


class RunningShare:
    """The share of the last seconds that a VM ran, by one clock, in seconds, that only goes forward.

    An interval between checkpoints that is hardly longer than their pauses leaves a VM so little time that it may get
    nowhere (a guest whose timer ticks every 10 ms, stopped every 5), while every checkpoint succeeds.
    """

    def __init__(self, remedy: str, window_s: float = WINDOW_S) -> None:
        self._remedy = remedy
        self._window_s = window_s
        self._pauses: deque[tuple[float, float]] = deque()
        self._paused_s = 0.0
        """Of all in the window, the oldest with its whole length."""
        self._began_s: float | None = None
        self._too_little = False

    def begin(self, now_s: float) -> None:
        """The VM is looked at from now on: called once, or by the first pause."""
        if self._began_s is None:
            self._began_s = now_s

    def pause(self, begin_s: float, end_s: float) -> None:
        """The VM stood still from then to then; roughly then, but exactly for so long."""
        if end_s <= begin_s:
            return
        self.begin(begin_s)
        self._pauses.append((begin_s, end_s))
        self._paused_s += end_s - begin_s

    def share(self, now_s: float, *, still_since_s: float | None = None) -> float | None:
        """0.0 to 1.0; ``still_since_s`` when it stands still now. None while it was not looked at for a second yet."""
        if self._began_s is None or now_s - self._began_s < LEAST_S:
            return None
        since_s = max(self._began_s, now_s - self._window_s)
        while self._pauses and self._pauses[0][1] <= since_s:
            begin_s, end_s = self._pauses.popleft()
            self._paused_s -= end_s - begin_s
        paused_s = self._paused_s
        if self._pauses:
            paused_s -= max(0.0, since_s - self._pauses[0][0])
        if still_since_s is not None:
            paused_s += max(0.0, now_s - max(since_s, still_since_s))
        return min(1.0, max(0.0, 1.0 - paused_s / (now_s - since_s)))

    def warning(self, now_s: float) -> str | None:
        """What to tell when the share has fallen below a half, once each time that it does."""
        share = self.share(now_s)
        if share is None:
            return None
        if self._too_little and share >= ENOUGH:
            self._too_little = False
        if self._too_little or share >= TOO_LITTLE:
            return None
        self._too_little = True
        return (f"the VM runs {share:.0%} of the time only, the rest it stands still for checkpoints, and may get nowhere: "
                f"{self._remedy}")
