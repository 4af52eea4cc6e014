"""The primary's side, for an unmodified QEMU: set it up, watch it, and decide for it when its secondary is lost.

QEMU itself waits for ever for a secondary that hangs, with its VM standing still. Here every pause has a deadline; when it
passes, or QEMU says that the channel broke, the arbiter is asked: the winner's VM runs on alone, the loser's stops.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

from colo.errors import ArbitrationError, ArbitrationLost, QemuError
from colo.qemu.primary import ColoSettings, PauseMeter, QemuPrimary
from colo.qemu.qmp import QmpError
from colo.session.arbiter import arbiter_from_uri
from colo.session.listening import listening
from colo.transport import check_listening, check_plaintext

WATCH_S = 0.02
GENERATION_S = 0.2
"""How often the generation is looked at; a takeover is noticed, and this VM stopped, within this time."""


@dataclass(frozen=True, slots=True)
class ProtectorConfig:
    """What ``colo protect`` needs to know."""

    qmp: str | os.PathLike[str]
    """QMP socket of the running QEMU."""
    to: str
    """Where its secondary listens: ``tcp:HOST:PORT`` or ``unix:PATH``."""
    arbiter: str
    """``file:DIR``, ``exec:COMMAND`` or ``none``."""
    settings: ColoSettings = field(default_factory=ColoSettings)
    deadline_ms: float = 5000.0
    """Most that the VM may stand still for a checkpoint, and that a checkpoint which is due may take to begin."""
    set_up_s: float = 60.0
    """Most that the first copy may take."""
    insecure: bool = False
    """Allow plaintext TCP beyond loopback."""
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may listen there."""


class Ending(Enum):
    """How protection ended."""

    ALONE = "the secondary is lost: the VM runs on alone, unprotected"
    STOPPED = "the other side runs the VM: this one was stopped"
    PRIMARY_GONE = "the primary's QEMU is gone"
    DETACHED = "detached on request: QEMU goes on as primary, unwatched"


@dataclass(frozen=True, slots=True)
class ProtectorReport:
    """What came of it; ``freed_ms`` is from the loss being noticed to the VM running alone."""

    ending: Ending
    reason: str
    checkpoints: int
    freed_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ending": self.ending.name.lower(), "text": self.ending.value, "reason": self.reason,
            "checkpoints": self.checkpoints, "freed_ms": self.freed_ms,
        }


class Protector:
    """Sets a running QEMU up as primary, and watches it. ::

        with Protector(ProtectorConfig("/run/vm1/qmp.sock", "tcp:127.0.0.1:9000", arbiter="file:/shared/vm1")) as p:
            report = p.run()

    ``on_event(kind, data)`` hears ``protecting``, ``pause`` (ms), ``notice``, ``lost`` and ``ended``.
    """

    def __init__(
        self, config: ProtectorConfig, *, on_event: Callable[[str, Any], None] = lambda kind, data: None
    ) -> None:
        self.config = config
        self._on_event = listening(on_event)
        self._stop = threading.Event()
        if not config.arbiter:
            raise ArbitrationError(
                "without an arbiter both sides may run after a loss: --arbiter file:DIR, exec:COMMAND, or none")
        check_plaintext(config.to, insecure=config.insecure)
        check_listening(config.to, config.allow_uids)
        self._arbiter = arbiter_from_uri(config.arbiter, role="primary")
        self._generation = self._arbiter.current()
        self.primary = QemuPrimary.attach(config.qmp)
        self._meter: PauseMeter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the monitor's connection; QEMU lives on."""
        self.primary.detach()
        self._arbiter.close()

    def stop(self) -> None:
        """End :meth:`run`; QEMU goes on as it is."""
        self._stop.set()

    @property
    def checkpoints(self) -> int:
        """Pauses seen so far."""
        return self._meter.count if self._meter else 0

    def run(self) -> ProtectorReport:
        """Protect until it ends; the report says how. Raises QemuError or QemuUnsupported if it cannot begin."""
        for disk in self.primary.unreplicated_disks():
            self._on_event("notice", f"disk {disk} is not replicated: it must be on storage that both sides share")
        self._meter = self.primary.measure_pauses(lambda pause_ms: self._on_event("pause", pause_ms))
        began = self.primary.streams_begun
        try:
            self.primary.set_up(self.config.to, self.config.settings, timeout_s=self.config.set_up_s)
        except QemuError as error:
            if self.primary.streams_begun == began:
                raise
            # The secondary may have had all of it, and be about to take over: only the arbiter can tell.
            report = self._settle(f"protection did not begin: {error}")
            if report.ending is Ending.ALONE:
                raise
        else:
            self._on_event("protecting", self.config.to)
            report = self._watch()
        self._on_event("ended", report)
        return report

    def _watch(self) -> ProtectorReport:
        assert self._meter is not None
        seen: tuple[int, int | None] = (-1, None)
        since = time.monotonic()
        next_look = 0.0
        while not self._stop.wait(WATCH_S):
            now = time.monotonic()
            if not self.primary.qemu.alive():
                return self._end(Ending.PRIMARY_GONE, "its process ended")
            if now >= next_look:
                next_look = now + GENERATION_S
                if self._generation_is_gone():
                    return self._stop_vm("its generation is over: the secondary took over")
            if self.primary.colo_exited.is_set():
                return self._settle(f"QEMU left COLO ({self.primary.exit_reason or 'no reason given'})")
            progress = (self._meter.count, self._meter.stopped_at_us)
            if progress != seen:
                seen, since = progress, now
            elif hung := self._hung((now - since) * 1000, stopped=progress[1] is not None):
                if self.primary.responds():
                    return self._settle(hung)
                # It is QEMU itself that is frozen: to win now would only keep the other side from taking over.
                since = time.monotonic()
        return self._end(Ending.DETACHED, "asked to stop watching")

    def _hung(self, still_ms: float, *, stopped: bool) -> str | None:
        """Why the secondary counts as hung, ``still_ms`` after the VM last stopped or went on; None if it does not."""
        deadline_ms = self.config.deadline_ms
        if stopped:
            if still_ms >= deadline_ms:
                return f"the VM stood still for {deadline_ms:g} ms, the secondary hangs"
        elif still_ms >= deadline_ms + self.config.settings.checkpoint_delay_ms:
            # It waits for the answer to a REQUEST, with its VM running, and would do so for ever.
            return f"no checkpoint has begun {deadline_ms:g} ms after it was due, the secondary hangs"
        return None

    def _generation_is_gone(self) -> bool:
        try:
            return not self._arbiter.still_holds(self._generation)
        except ArbitrationError:
            return False  # it cannot be told just now; while the channel works, nobody takes over

    def _settle(self, reason: str) -> ProtectorReport:
        """The secondary is lost. Whoever wins the generation runs."""
        noticed = time.monotonic()
        self._on_event("lost", reason)
        told = False
        while True:
            try:
                self._arbiter.claim(self._generation, reason=reason)
                break
            except ArbitrationLost as error:
                return self._stop_vm(f"{reason}; {error}")
            except ArbitrationError as error:
                if not told:
                    self._on_event("notice", f"who may run is undecided, the VM waits: {error}")
                    told = True
                self._pause_while_undecided()
                if self._stop.wait(1.0):
                    raise
        try:
            self.primary.free_from_lost_secondary()
        except QmpError as error:
            if not self.primary.qemu.alive():
                return self._end(Ending.PRIMARY_GONE, f"{reason}; its process ended")
            raise QemuError(f"the VM may run, but QEMU could not be freed from its secondary: {error}") from error
        return self._end(Ending.ALONE, reason, (time.monotonic() - noticed) * 1000)

    def _pause_while_undecided(self) -> None:
        """While it is open who may run, this VM must not: the other side may have won."""
        try:
            self.primary.qemu.qmp.execute("stop", timeout_s=1.0)
        except QmpError as error:
            self._on_event("notice", f"QEMU did not stop its VM: {error}")

    def _stop_vm(self, reason: str) -> ProtectorReport:
        how = self.primary.stop_loser()
        return self._end(Ending.STOPPED, f"{reason} ({how})")

    def _end(self, ending: Ending, reason: str, freed_ms: float | None = None) -> ProtectorReport:
        return ProtectorReport(ending, reason, self.checkpoints, None if freed_ms is None else round(freed_ms, 3))
