"""An unmodified QEMU as COLO primary, by QMP: set up, watched, and freed or stopped after a loss."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from colo.errors import QemuError, QemuUnsupported
from colo.qemu.capabilities import MigrationSettings, capabilities_of, capability_list, require_migratable
from colo.qemu.outgoing import Outgoing, seconds_left
from colo.qemu.pauses import PauseMeter
from colo.qemu.process import Qemu
from colo.qemu.qmp import EventSubscription, QmpCommandError, QmpError, QmpEvent, QmpLost, QmpTimeout
from colo.text import printable

UNLIMITED_BANDWIDTH = (1 << 63) - 1
"""Bytes per second; QEMU's own default (128 MiB/s) would lengthen every pause."""
ENDED = frozenset({"completed", "failed", "cancelled", "cancelling"})


@dataclass(frozen=True)
class ColoSettings:
    """How a QEMU primary is set up.

    ``checkpoint_delay_ms`` from the end of one checkpoint to the start of the next (QEMU's default is 20 s);
    ``xbzrle`` with a cache of ``xbzrle_cache_bytes`` (a power of two; None: QEMU's own, 64 MiB);
    ``compress`` sends RAM zlib-compressed (QEMU before 9.1 only).
    """

    checkpoint_delay_ms: int = 200
    xbzrle: bool = False
    xbzrle_cache_bytes: int | None = None
    compress: bool = False
    max_bandwidth_bytes: int = UNLIMITED_BANDWIDTH


class QemuPrimary(Outgoing):
    """A QEMU that is, or becomes, a COLO primary. ``on_exit`` is called on the monitor's thread when :attr:`colo_exited` is
    set: be quick."""

    def __init__(self, qemu: Qemu, on_exit: Callable[[], None] = lambda: None) -> None:
        super().__init__(qemu)
        self._on_exit = on_exit
        self.colo_exited = threading.Event()
        """Set when QEMU says COLO_EXIT: its VM goes on alone, or waits to be told."""
        self.exit_reason = ""
        self.streams_begun = 0
        """How often a migration stream got as far as a connection: from there on the other side may have the VM."""
        self.notices: tuple[str, ...] = ()
        """What :meth:`set_up` changed of others' migration settings, for the user; put back when protection ends."""
        self._settings: MigrationSettings | None = None
        self._end_exit = qemu.qmp.on_event(self._exited, "COLO_EXIT")

    @classmethod
    def attach(
        cls, path: str | os.PathLike[str], timeout_s: float = 5.0, *, on_exit: Callable[[], None] = lambda: None
    ) -> Self:
        """Connect to the QMP socket of a running QEMU. Raises QmpError as :meth:`Qemu.attach`."""
        return cls(Qemu.attach(path, timeout_s), on_exit)

    def _exited(self, event: QmpEvent) -> None:
        self.exit_reason = printable(str(event.data.get("reason", "")))
        self.colo_exited.set()
        self._on_exit()

    # Setting up

    def require(self) -> None:
        """Refuse a QEMU that cannot be a COLO primary.

        Raises QemuUnsupported for its version, its build, its accelerator or its devices, with what to do.
        """
        qemu = self.qemu
        qemu.quirks.require_colo(qemu.accelerator)
        capabilities = capabilities_of(qemu)
        if "x-colo" not in capabilities:
            raise QemuUnsupported(
                f"this build of QEMU {qemu.version} has no x-colo (it was configured without replication): "
                "use a build with COLO, such as Debian's"
            )
        if qemu.quirks.needs_return_path and "return-path" not in capabilities:
            raise QemuUnsupported(
                f"QEMU {qemu.version} has no capability return-path, which its x-colo needs"
            )
        require_migratable(qemu)

    @property
    def uuid(self) -> str:
        """The VM's UUID, or "" where it has none."""
        return self.qemu.uuid

    def unreplicated_disks(self) -> list[str]:
        """Its writable block devices: what the guest writes to them, COLO does not move.

        Such a disk is safe only where both sides see the same storage, or a replication driver is in its
        graph.
        """
        disks = []
        for entry in self.qemu.qmp.records("query-block"):
            inserted = entry.record("inserted")
            if inserted and not inserted.flag("ro", False) and inserted.string("drv", "") not in ("replication", "quorum"):
                disks.append(entry.string("device", "") or entry.string("qdev", "") or inserted.string("node-name", "?"))
        return disks

    def set_up(self, uri: str, settings: ColoSettings | None = None, *, timeout_s: float = 60.0) -> None:
        """Become the primary of the secondary at ``uri`` (``tcp:HOST:PORT``, ``unix:PATH``).

        Returns once QEMU's status is `colo`: the secondary has the whole VM.

        Raises QemuUnsupported as :meth:`require`, or a setting its version does not have.
        Raises QemuError when QEMU refused, or the secondary did not come to the first checkpoint in
            ``timeout_s`` seconds (the attempt is cancelled then: the VM runs on, unprotected).
        """
        settings = settings or ColoSettings()
        self.require()
        qmp, quirks = self.qemu.qmp, self.qemu.quirks
        if settings.compress and not quirks.has_compression:
            raise QemuUnsupported(f"QEMU {self.qemu.version} cannot compress RAM (removed in 9.1)")
        if self.migration_status() in ("setup", "active", "colo", "device", "pre-switchover"):
            raise QemuError(
                f"QEMU already has a migration in progress ({self.migration_status()}): end it first"
            )
        parameters: dict[str, Any] = {
            "x-checkpoint-delay": settings.checkpoint_delay_ms,
            "max-bandwidth": settings.max_bandwidth_bytes,
        }
        if settings.xbzrle and settings.xbzrle_cache_bytes is not None:
            parameters["xbzrle-cache-size"] = settings.xbzrle_cache_bytes
        capabilities = {
            "events": True,
            "xbzrle": settings.xbzrle,
            "compress": settings.compress,
            "return-path": quirks.needs_return_path,
        }
        self._settings = MigrationSettings.take(self.qemu, capabilities, parameters)
        self.notices = self._settings.notices
        try:
            self._enable_colo()
        except QmpError:
            self.restore_settings()
            raise
        self.colo_exited.clear()
        with qmp.subscribe("MIGRATION") as events:
            qmp.execute("migrate", {"uri": uri}, timeout_s=timeout_s)
            try:
                self._await_colo(events, time.monotonic() + timeout_s)
            except QmpTimeout as error:
                self._give_up()
                raise QemuError(
                    f"the secondary at {uri} did not come to its first checkpoint within {timeout_s:.0f} s; "
                    "the VM runs on, unprotected"
                ) from error
            except QmpError:
                raise
            except QemuError:
                self._switch_off()
                raise

    def _enable_colo(self) -> None:
        """Switch x-colo on; first return-path where this version wants it, which must be on already by
        then.
        """
        qmp = self.qemu.qmp
        colo = {"capabilities": capability_list({"x-colo": True})}
        if not self.qemu.quirks.needs_return_path:
            try:
                qmp.execute("migrate-set-capabilities", colo)
                return
            except QmpCommandError as error:
                if "return" not in str(error).lower():
                    raise
        qmp.execute("migrate-set-capabilities", {"capabilities": capability_list({"return-path": True})})
        qmp.execute("migrate-set-capabilities", colo)

    def _await_colo(self, events: EventSubscription, deadline: float) -> None:
        while True:
            status = str(events.get(deadline - time.monotonic()).data.get("status"))
            if status == "colo":
                return
            if status == "active":
                self.streams_begun += 1
            if status in ENDED:
                reason = self.qemu.qmp.record("query-migrate").string("error-desc", "")
                if status == "completed":
                    reason = (
                        "it finished as a plain migration: this QEMU's COLO is broken, or the secondary "
                        "took it for one"
                    )
                raise QemuError(f"QEMU did not become a primary ({status}): {reason or 'it gives no reason'}")

    def _give_up(self) -> None:
        """Cancel an attempt that hangs; the out-of-band yank works also when it blocks the main loop."""
        with contextlib.suppress(QmpError):
            self.yank(timeout_s=2.0)
        with contextlib.suppress(QmpError):
            self.qemu.qmp.execute("migrate_cancel", timeout_s=2.0)
        self._switch_off()

    def _switch_off(self) -> None:
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and not self.restore_settings():
            time.sleep(0.05)

    def restore_settings(self) -> bool:
        """Put back the migration settings that :meth:`set_up` changed, x-colo off; False if QEMU does not let us now.

        :meth:`free_from_lost_secondary` has tried it already. Idempotent.
        """
        return self._settings is None or self._settings.restore()

    # Watching

    def measure_pauses(
        self, on_pause: Callable[[float], None] | None = None, on_notice: Callable[[str], None] | None = None
    ) -> PauseMeter:
        """Measure every pause from now on; ``on_pause`` gets each, in ms, on the monitor's thread, and ``on_notice``, in
        words, that they leave the VM too little time."""
        meter = PauseMeter(on_pause, on_notice)
        self.qemu.qmp.on_event(meter.event, "STOP", "RESUME")
        return meter

    # After a loss

    def lost_heartbeat(self, *, timeout_s: float = 2.0) -> None:
        """Tell QEMU that its secondary is lost: it leaves COLO and runs on. Win the arbitration first."""
        self.qemu.qmp.execute("x-colo-lost-heartbeat", timeout_s=timeout_s)

    def free_from_lost_secondary(self, timeout_s: float = 5.0) -> float:
        """Yank, say that the secondary is lost, and see the VM run alone; returns how long that took, in ms.

        For the winner of the arbitration only.

        Raises QemuError when the VM was not running within ``timeout_s`` seconds.
        """
        began = time.monotonic()
        deadline = began + timeout_s
        self.yank(timeout_s=seconds_left(deadline))
        try:
            self.lost_heartbeat(timeout_s=seconds_left(deadline))
        except QmpCommandError:
            # Not in COLO any more, or not yet: then what counts is whether it runs.
            if self.migration_status(seconds_left(deadline)) == "colo":
                raise
        while True:
            status, migration = self.qemu.status(seconds_left(deadline)), self.migration_status(seconds_left(deadline))
            if status == "running" and migration not in ("colo", "active", "cancelling"):
                freed_ms = (time.monotonic() - began) * 1e3
                self.restore_settings()
                return freed_ms
            if time.monotonic() >= deadline:
                raise QemuError(
                    f"QEMU was told that its secondary is lost, but after {timeout_s:.1f} s it is "
                    f"{status!r}, its migration {migration!r}"
                )
            time.sleep(0.002)

    def stop_loser(self, timeout_s: float = 2.0, *, kill: bool = False) -> str:
        """Make sure that the VM does not run: this side lost the arbitration.

        Returns ``stopped`` or ``killed``.

        Stops it by QMP. A checkpoint may be in the air whose last acknowledgement, already in the socket,
        would make QEMU start its VM again: so the channel is yanked first and COLO's end is awaited. When
        QEMU does not answer in time, or ``kill`` is set, it is killed.

        Raises QemuError when it neither answers nor can be killed from here.
        """
        deadline = time.monotonic() + timeout_s
        if not kill:
            with contextlib.suppress(QmpError):
                self._stop_for_good(deadline)
                return "stopped"
        if not self.qemu.alive():
            return "killed"
        try:
            self.qemu.send_signal(signal.SIGKILL)
        except QemuError as error:
            raise QemuError(f"the losing QEMU does not stop: {error}") from error
        if not self.qemu.wait_ended(deadline + 5.0 - time.monotonic()):
            raise QemuError(f"the losing QEMU (pid {self.qemu.pid}) is not gone after SIGKILL")
        return "killed"

    def end_loser(self, timeout_s: float = 5.0) -> str:
        """End this QEMU: the other side runs its VM. Returns ``killed``, or ``ended`` if it was gone or had to be asked.

        After this it holds no image lock, port or tap device, and nobody can start its VM again. It is killed, not asked
        to quit: an orderly end writes what it still has in its caches to disks that the winner may be using already.
        Only one whose process is not known here (its monitor was made by another) is asked, by `stop` and `quit`.

        Raises QemuError when it is not gone in ``timeout_s`` seconds, or may not be killed.
        """
        if not self.qemu.alive():
            return "ended"
        if self.qemu.signallable:
            self.qemu.kill(timeout_s)
            return "killed"
        deadline = time.monotonic() + timeout_s
        try:
            self._stop_for_good(deadline)
            with contextlib.suppress(QmpLost):
                self.qemu.qmp.execute("quit", timeout_s=seconds_left(deadline))
        except QmpError as error:
            if self.qemu.alive():
                raise QemuError(f"the losing QEMU does not end, and its process is not known here: {error}") from error
        if not self.qemu.wait_ended(deadline - time.monotonic()):
            raise QemuError(f"the losing QEMU was told to quit, but is still there after {timeout_s:g} s")
        return "ended"

    def _stop_for_good(self, deadline: float) -> None:
        self.qemu.qmp.execute("stop", timeout_s=seconds_left(deadline))
        if self.migration_status(seconds_left(deadline)) == "colo":
            self.yank(timeout_s=seconds_left(deadline))
            if not self.colo_exited.wait(seconds_left(deadline)):
                raise QmpTimeout("COLO did not end")
            self.qemu.qmp.execute("stop", timeout_s=seconds_left(deadline))
        if self.qemu.status(seconds_left(deadline)) == "running":
            raise QmpTimeout("the VM still runs")

    def quit_gently(self, timeout_s: float) -> None:
        """Let QEMU write out what its disks have in flight, and quit; it may still be there afterwards."""
        with contextlib.suppress(QmpError):
            self.qemu.qmp.execute("stop", timeout_s=timeout_s)
            self.qemu.qmp.execute("quit", timeout_s=timeout_s)
            self.qemu.qmp.wait_lost(timeout_s)

    def detach(self) -> None:
        """Close our QMP connection; QEMU lives on."""
        self._end_exit()
        self.qemu.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()

