"""Live migration, the source's side: a VM moves while it runs, to our own destination or to an unmodified QEMU.

::

    with MigrationSource(vm, MigrationSourceConfig("tcp:192.0.2.7:9000", insecure=True)) as migration:
        outcome = migration.run()

RAM is sent in rounds, each with what was written during the one before, until the rest fits the downtime limit; then the
VM stands still, the rest and the device state follow. Until the last word of the stream is handed out this side can always
go on with its VM. After that only the destination's answer, or the arbiter, can give it back.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from typing import Any, Self

from colo.abc import Throttled, VirtualMachine
from colo.arbiter import Arbiter, arbiter_from_uri
from colo.epoch.migration_pages import MigrationPages
from colo.errors import ColoError
from colo.link.pacer import Pacer
from colo.protocol.migration import MigrationStatus, VmPlace
from colo.session.migration.config import MigrationOutcome, MigrationSourceConfig
from colo.session.migration.running import SourceRun
from colo.trace import OnEvent, Sink, Trace
from colo.transport import check_plaintext

STOP_S = 30.0


class MigrationSource:
    """Moves ``vm`` to the destination in ``config``. Started once; no other session may have the VM meanwhile.

    ``sinks`` take the events themselves (:mod:`colo.trace`);
    ``on_event(kind, data)`` hears ``status`` (each new name), ``round`` (a :class:`~colo.link.convergence.Round`),
    ``throttle`` (percent) and ``notice``, from the session's thread; what it raises is ignored. Methods may be called from
    any thread. A VM that has an attribute ``running`` which is false is migrated as it stands, and is not resumed here.

    Raises AddressError (plaintext TCP beyond loopback), ValueError or Unsupported for what the configuration asks.
    """

    def __init__(
        self, vm: VirtualMachine, config: MigrationSourceConfig, *, on_event: OnEvent | None = None,
        sinks: Iterable[Sink] = (),
    ) -> None:
        self.vm = vm
        self.config = config
        self._pid = os.getpid()
        check_plaintext(config.to, insecure=config.insecure)
        if config.auto_converge and not isinstance(vm, Throttled):
            raise ValueError("auto_converge needs a VM with a method throttle(percent): colo.abc.Throttled")
        if config.arbiter != "none" and not config.return_path:
            raise ValueError("an arbiter needs the return path: the destination says there that it has one, too")
        self.downtime_limit_ms = config.downtime_limit_ms
        self._pacer = Pacer(config.max_bandwidth_bytes_per_s)
        self._pages = MigrationPages(vm.memory, tracker=config.tracker, xbzrle=config.xbzrle)
        self._arbiter: Arbiter | None = None
        if config.arbiter != "none":
            self._arbiter = arbiter_from_uri(config.arbiter, role="primary")
        self._run = SourceRun(
            vm, config, self._pages, self._pacer, self._arbiter, session_trace=Trace(on_event, sinks),
            downtime_limit_ms=lambda: self._downtime_limit_ms)
        self.progress = self._run.progress
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- requests, from any thread

    @property
    def place(self) -> VmPlace:
        """Who has the VM."""
        return self._run.machine.facts.place

    @property
    def downtime_limit_ms(self) -> float:
        """May be changed at any time; the end of each round looks at it."""
        return self._downtime_limit_ms

    @downtime_limit_ms.setter
    def downtime_limit_ms(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"a downtime limit of {value} ms: at least 0")
        self._downtime_limit_ms = value

    @property
    def max_bandwidth_bytes_per_s(self) -> int:
        """May be changed at any time; 0 or None: no limit."""
        return self._pacer.limit_bytes_per_s

    @max_bandwidth_bytes_per_s.setter
    def max_bandwidth_bytes_per_s(self, value: int | None) -> None:
        self._pacer.limit_bytes_per_s = value or 0

    def start(self) -> None:
        """Begin on a thread of its own. Raises RuntimeError when another session has the VM."""
        if self._thread is not None:
            raise RuntimeError("a Migration is started once")
        self._run.hold.take()
        self._run.source.note_running()
        self._thread = threading.Thread(target=self._run.main, name="colo-migration", daemon=True)
        self._run.watch.start()
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> MigrationOutcome:
        """How it ended. TimeoutError while it has not.

        Raises the error that a failed migration ended with: the VM then runs on here, unless it is an ArbitrationError.
        That one says that the destination may run the VM and nobody knows: here it stands still (:meth:`decide`).
        """
        return self._run.result.result(timeout_s)

    def run(self) -> MigrationOutcome:
        """:meth:`start` and :meth:`wait`."""
        self.start()
        return self.wait()

    def cancel(self, reason: str = "requested", timeout_s: float | None = STOP_S) -> MigrationOutcome:
        """End it; the VM runs on here as if nothing had been. Returns the outcome: COMPLETED when it was too late.

        Raises as :meth:`wait` when it failed before it could be cancelled.
        """
        if self._thread is None:
            raise RuntimeError("the migration was not started")
        self._run.cancel(reason)
        return self.wait(timeout_s)

    def continue_(self) -> None:
        """Leave status ``pre-switchover`` (QEMU: ``migrate-continue``). Raises RuntimeError when that is not the status."""
        if self._run.status is not MigrationStatus.PRE_SWITCHOVER:
            raise RuntimeError(f"the migration's status is {self._run.status.value}, not pre-switchover")
        self._run.go_on.set()

    def decide(self, *, destination_runs: bool) -> None:
        """Say who has the VM of an undecided migration: False resumes it here.

        Whoever says so must know, not guess: has looked at the destination, or ended it. Raises RuntimeError when nothing
        is undecided.
        """
        self._run.decide(destination_runs=destination_runs)

    def close(self) -> None:
        """:meth:`cancel` if it runs, and let go of everything. The VM stays where it is, also undecided."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        if self._thread is not None:
            self._run.giving_up = True
            with contextlib.suppress(ColoError, TimeoutError):
                self.cancel("closed")
            self._thread.join(1.0)
            if self._thread.is_alive():
                return  # it hangs in one of the VM's methods, and uses what would be closed here
        self._run.watch.close()
        self._pages.stop()
        if self._arbiter is not None:
            self._arbiter.close()
        self._run.wake.close()

    def status(self) -> dict[str, Any]:
        """As QEMU's ``query-migrate``: the same keys and names of statuses; beside them ``eta-ms`` and ``vm``."""
        run = self._run
        info = self.progress.as_dict(
            run.status.value, cache=self._pages.cache_counts(), throttle_percent=run.source.throttle_percent)
        info["vm"] = self.place.value
        if run.error is not None:
            info["error-desc"] = str(run.error)
        return info
