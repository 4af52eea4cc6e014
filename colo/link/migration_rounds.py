"""Rounds over RAM while the VM runs, until little enough is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from colo import trace
from colo.epoch.migration_pages import MigrationPages, RoundCopy
from colo.link.convergence import AutoConverge
from colo.link.migration_out import MigrationOut
from colo.link.migration_progress import MigrationProgress
from colo.protocol.migration import Action, Event
from colo.vm.source_vm import SourceVm


class MigrationRounds:
    """Sends rounds through ``link``; after each it looks whether what is dirty fits ``downtime_limit_ms()``.

    How a round is made depends on the tracker. One that is atomic is harvested while the VM runs, and pages are sent from
    memory. One that is not has the VM stand still for the harvest. One that goes by content would not see a page that is
    changed and changed back while it is sent: the round is copied before the VM runs on.

    :attr:`HANDLERS` carries out what the table asks of it. They raise ChannelError (Interrupted among them), ProtocolError,
    StreamError, VmError or TrackerError.
    """

    def __init__(
        self, link: MigrationOut, vm: SourceVm, pages: MigrationPages, progress: MigrationProgress, *,
        converge: AutoConverge | None, downtime_limit_ms: Callable[[], float], tell: Callable[[trace.Event], None],
    ) -> None:
        self._link = link
        self._vm = vm
        self._pages = pages
        self._progress = progress
        self._converge = converge
        self._downtime_limit_ms = downtime_limit_ms
        self._tell = tell
        self._harvested_ns = 0

    def _take_all(self) -> None:
        self._progress.set_up_ns = time.monotonic_ns()
        self._pause_for_harvest()
        self._pages.take_all()
        self._progress.syncs += 1

    def _send_round(self) -> Event:
        pages, progress = self._pages, self._progress
        progress.begin_round(pages.owned_pages())
        number = progress.rounds
        copy = self._copy(number) if pages.needs_copy else None
        self._vm.run_on()
        self._link.send_round(number, paced=True, copy=copy)
        return Event.ROUND_SENT

    def _harvest(self) -> Event:
        """The destination has the round. Owns what is dirty; with a tracker that needs a pause, the VM stands still then."""
        pages, progress = self._pages, self._progress
        seconds = (time.monotonic_ns() - progress.round_began_ns) / 1e9
        pages.commit()
        before_ns = self._harvested_ns
        self._pause_for_harvest()
        dirty = pages.harvest()
        progress.syncs += 1
        done = progress.end_round(dirty, (before_ns, self._harvested_ns), seconds)
        self._tell(trace.Round(done))
        return Event.MUCH_LEFT if done.expected_downtime_ms > self._downtime_limit_ms() else Event.LITTLE_LEFT

    def _slow_down(self) -> None:
        done = self._progress.last
        assert done is not None
        if self._converge is not None and self._converge.after(done):
            self._vm.throttle(self._converge.percent)
            self._tell(trace.Throttle(self._converge.percent))

    HANDLERS: ClassVar[dict[Action, Callable[[MigrationRounds], Event | None]]] = {
        Action.TAKE_ALL: _take_all,
        Action.SEND_ROUND: _send_round,
        Action.HARVEST: _harvest,
        Action.SLOW_DOWN: _slow_down,
    }

    def _pause_for_harvest(self) -> None:
        if self._pages.needs_pause:
            self._vm.pause()
        self._harvested_ns = time.monotonic_ns()

    def _copy(self, number: int) -> RoundCopy:
        copy = RoundCopy()
        copy.fill_by(lambda encoder: self._link.write_round(encoder, number, lambda: None, lambda: None))
        return copy
