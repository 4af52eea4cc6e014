"""When the next checkpoint is due."""

from __future__ import annotations

from colo.figures.primary_report import PrimaryReport

NEW_SHARE = 0.25
ABOVE_FIXED = 1.3


class Pace:
    """The interval between the begins of two checkpoints.

    With ``target_pause_ms`` it follows the pauses: shorter, as fewer pages are then dirty, when one was longer than that,
    longer when they are well below; between ``interval_min_ms`` and ``interval_ms``. What a shorter interval does not
    make shorter (standing still, saving, finding dirty pages) raises a target that it exceeds. With
    ``link_share`` it is never so short that sending checkpoints would take more than that part of the time.
    """

    def __init__(
        self, interval_ms: float, *, target_pause_ms: float | None = None, link_share: float | None = None,
        interval_min_ms: float = 1.0,
    ) -> None:
        if interval_ms < 0 or interval_min_ms <= 0 or (target_pause_ms is not None and target_pause_ms <= 0):
            raise ValueError("an interval is at least 0 ms, a target pause and a least interval more than 0 ms")
        if link_share is not None and not 0 < link_share <= 1:
            raise ValueError(f"link_share is above 0 and at most 1, not {link_share}")
        self._most_ms = interval_ms
        self._least_ms = min(interval_min_ms, interval_ms)
        self._target_ms = target_pause_ms
        self._share = link_share
        self._paced_ms = interval_ms
        self._link_ms = 0.0
        self._began_s = 0.0

    def begin(self, now_s: float, *, asked: bool = False) -> None:
        """A checkpoint begins; ``asked``: it was asked for, and is not what is due.

        A wait ends a little late: that is not added up, so that as many come as there are intervals, unless they take
        longer than that.
        """
        due_s = self.due_s
        late_s = now_s - due_s
        self._began_s = due_s if not asked and 0 <= late_s < self.interval_ms / 1000 else now_s

    @property
    def due_s(self) -> float:
        """When the next one is due, on the clock of :meth:`begin`."""
        return self._began_s + self.interval_ms / 1000

    @property
    def interval_ms(self) -> float:
        """As it is now."""
        return max(self._paced_ms, self._link_ms)

    def took(self, report: PrimaryReport) -> None:
        """Learn from a checkpoint."""
        if self._share is not None:
            # The time that the link was in use: from the first byte sent to the acknowledgement.
            needed_ms = report.transfer_ms / self._share
            self._link_ms += (needed_ms - self._link_ms) * (NEW_SHARE if self._link_ms else 1.0)
        if self._target_ms is None:
            return
        # What no shorter interval makes shorter: a target below it is not to be had, however many checkpoints are made.
        fixed_ms = report.stop_ms + report.save_ms + report.harvest_ms
        target_ms = max(self._target_ms, ABOVE_FIXED * fixed_ms)
        if report.pause_ms > target_ms:
            factor = max(0.5, target_ms / report.pause_ms)
        else:
            factor = 1.1 if report.pause_ms < 0.8 * target_ms else 1.0
        self._paced_ms = min(self._most_ms, max(self._least_ms, self._paced_ms * factor))
