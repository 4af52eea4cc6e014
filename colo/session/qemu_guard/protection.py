"""What a protector and its endings share: the VM, who may run it, what keeps it, what was asked for."""

from __future__ import annotations

import time

from colo.arbiter import Arbiter, Runner
from colo.fence.held_generation import HeldGeneration
from colo.fence.keeping import Keeping
from colo.qemu.endings import EndingWatch
from colo.qemu.news import News
from colo.qemu.pauses import PauseMeter
from colo.qemu.primary import QemuPrimary
from colo.session.qemu_guard.config import Ending, QemuGuardConfig, QemuGuardReport
from colo.trace import SessionState, Trace


class Protection:
    """One VM's. :meth:`ask_to_leave` and :meth:`ask_to_end` are for any thread, all else is for the session's own."""

    def __init__(
        self, config: QemuGuardConfig, primary: QemuPrimary, ends: EndingWatch, arbiter: Arbiter, news: News,
        session_trace: Trace,
    ) -> None:
        """Raises QemuError, ArbitrationError."""
        self.config = config
        self.primary = primary
        self.ends = ends
        self.arbiter = arbiter
        self.news = news
        self.trace = session_trace
        self.tell = session_trace.tell
        self.state = SessionState.STARTING
        self.leave = ""
        """Why protection is to end in order, once that was asked for."""
        self.end = ""
        """Why the VM is to be ended on purpose, once that was asked for."""
        qemu = primary.qemu
        self.qemu = qemu
        self.meter: PauseMeter | None = None
        self.held = HeldGeneration(arbiter, Runner.of(qemu.pid) if qemu.pid is not None else None)
        self.keeping = Keeping(
            qemu, config.to, lease_ms=config.lease_ms, insecure=config.insecure, allow_uids=config.allow_uids,
            watchdog=config.watchdog, tell=self.notice, wake=news.ring)

    def notice(self, text: str) -> None:
        """What people should know."""
        self.trace.notice(text)

    def ask_to_leave(self, reason: str) -> None:
        """End protection in order. The first reason counts."""
        self.leave = self.leave or reason
        self.news.ring()

    def ask_to_end(self, reason: str) -> None:
        """End the VM, on purpose. The first reason counts."""
        self.end = self.end or reason
        self.news.ring()

    def wait(self, until: float) -> None:
        """Until there is something to look at, or to tend, at most until ``until`` (``time.monotonic()``)."""
        self.news.wait(self.qemu, min(until, self.keeping.due))

    @property
    def checkpoints(self) -> int:
        """Pauses seen so far."""
        return self.meter.count if self.meter is not None else 0

    def report(self, ending: Ending, reason: str, noticed: float | None = None) -> QemuGuardReport:
        """``noticed``: when the loss was (``time.monotonic()``), of a VM that runs alone now."""
        freed_ms = None if noticed is None else round((time.monotonic() - noticed) * 1000, 3)
        return QemuGuardReport(ending, reason, self.checkpoints, freed_ms)

    def close(self) -> None:
        """Look no more."""
        self.ends.close()
        self.keeping.close()
