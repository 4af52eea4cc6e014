"""Live migration, the source's side: a VM moves while it runs, to our own destination or to an unmodified QEMU.

::

    with Migration(vm, MigrationConfig("tcp:192.0.2.7:9000", insecure=True)) as migration:
        outcome = migration.run()

RAM is sent in rounds, each with what was written during the one before, until the rest fits the downtime limit; then the
VM stands still, the rest and the device state follow. Until the last word of the stream is handed out this side can always
go on with its VM. After that only the destination's answer, or the arbiter, can give it back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from colo.abc import Throttled, VirtualMachine
from colo.arbiter import Arbiter, arbiter_from_uri
from colo.epoch.migration_pages import MigrationPages
from colo.errors import AddressError, ArbitrationError, ArbitrationLost, ChannelError, ColoError, Interrupted, VmError
from colo.link.convergence import AutoConverge
from colo.link.migration_link import MigrationLink
from colo.link.migration_progress import MigrationProgress
from colo.link.migration_rounds import MigrationRounds
from colo.link.pacer import Pacer
from colo.protocol.migration import STATUSES, MigrationStatus, next_status
from colo.session.migration_config import MigrationConfig, MigrationOutcome, VmPlace
from colo.stream.writer import end_of_stream
from colo.trace import listening
from colo.transport import check_plaintext, connect_until
from colo.vm.hold import VmHold
from colo.vm.saved_state import StateForm, describe
from colo.vm.source_vm import SourceVm
from colo.vm.watch import VmWatch
from colo.wake import Wake
from colo.wire import HELLO_ARBITER

KEEP_ALIVE_S = 1.0
CONNECT_RETRY_S = 0.05
ARBITRATION_RETRY_S = 1.0
STOP_S = 30.0

_S = MigrationStatus


class Migration:
    """Moves ``vm`` to the destination in ``config``. Started once; no other session may have the VM meanwhile.

    ``on_event(kind, data)`` hears ``status`` (each new name), ``round`` (a :class:`~colo.link.convergence.Round`),
    ``throttle`` (percent) and ``notice``, from the session's thread; what it raises is ignored. Methods may be called from
    any thread. A VM that has an attribute ``running`` which is false is migrated as it stands, and is not resumed here.

    Raises AddressError (plaintext TCP beyond loopback), ValueError or Unsupported for what the configuration asks.
    """

    def __init__(
        self, vm: VirtualMachine, config: MigrationConfig, *, on_event: Callable[[str, Any], None] = lambda kind, data: None
    ) -> None:
        self.vm = vm
        self.config = config
        self._pid = os.getpid()
        self.progress = MigrationProgress()
        self.place = VmPlace.HERE
        check_plaintext(config.to, insecure=config.insecure)
        if config.auto_converge and not isinstance(vm, Throttled):
            raise ValueError("auto_converge needs a VM with a method throttle(percent): colo.abc.Throttled")
        if config.arbiter != "none" and not config.return_path:
            raise ValueError("an arbiter needs the return path: the destination says there that it has one, too")
        self.downtime_limit_ms = config.downtime_limit_ms
        self._pacer = Pacer(config.max_bandwidth_bytes_per_s)
        self._converge = AutoConverge(
            initial_percent=config.throttle_initial_percent, increment_percent=config.throttle_increment_percent,
            max_percent=config.throttle_max_percent,
        ) if config.auto_converge else None
        self._on_event = listening(on_event)
        self._pages = MigrationPages(vm.memory, tracker=config.tracker, xbzrle=config.xbzrle)
        self._form = StateForm(config.limits, sections=config.sections)
        self._arbiter: Arbiter | None = None
        self._generation = 0
        if config.arbiter != "none":
            self._arbiter = arbiter_from_uri(config.arbiter, role="primary")
            self._generation = self._arbiter.current()
        self._hold = VmHold(vm)
        self._watch = VmWatch(config.vm_s, self._free_hung)
        self._source = SourceVm(vm, self._watch.guard)
        self._status = _S.NONE
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._wake = Wake()
        self._cancelled: str | None = None
        self._handed_out = False
        """The stream's last word is (being) sent: the destination may run from now on, and nothing can be cancelled."""
        self._giving_up = False
        self._go_on = threading.Event()
        self._link: MigrationLink | None = None
        self._thread: threading.Thread | None = None
        self._result: Future[MigrationOutcome] = Future()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- requests, from any thread

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
        self._hold.take()
        self._source.note_running()
        self._thread = threading.Thread(target=self._main, name="colo-migration", daemon=True)
        self._watch.start()
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> MigrationOutcome:
        """How it ended. TimeoutError while it has not.

        Raises the error that a failed migration ended with: the VM then runs on here, unless it is an ArbitrationError.
        That one says that the destination may run the VM and nobody knows: here it stands still (:meth:`decide`).
        """
        return self._result.result(timeout_s)

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
        with self._lock:
            if not self._result.done() and not self._handed_out:
                self._cancelled = self._cancelled or reason
                self._wake.set()
        return self.wait(timeout_s)

    def continue_(self) -> None:
        """Leave status ``pre-switchover`` (QEMU: ``migrate-continue``). Raises RuntimeError when that is not the status."""
        if self._status is not _S.PRE_SWITCHOVER:
            raise RuntimeError(f"the migration's status is {self._status.value}, not pre-switchover")
        self._go_on.set()

    def decide(self, *, destination_runs: bool) -> None:
        """Say who has the VM of an undecided migration: False resumes it here.

        Whoever says so must know, not guess: has looked at the destination, or ended it. Raises RuntimeError when nothing
        is undecided.
        """
        with self._lock:
            if not self._result.done() or self.place is not VmPlace.UNDECIDED:
                raise RuntimeError("this migration is not undecided")
            self.place = VmPlace.THERE if destination_runs else VmPlace.HERE
        if destination_runs:
            self._set_status(_S.COMPLETED)
        elif self._source.was_running:
            self.vm.resume()

    def close(self) -> None:
        """:meth:`cancel` if it runs, and let go of everything. The VM stays where it is, also undecided."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        if self._thread is not None:
            self._giving_up = True
            with contextlib.suppress(ColoError, TimeoutError):
                self.cancel("closed")
            self._thread.join(1.0)
            if self._thread.is_alive():
                return  # it hangs in one of the VM's methods, and uses what would be closed here
        self._watch.close()
        self._pages.stop()
        if self._arbiter is not None:
            self._arbiter.close()
        self._wake.close()

    def status(self) -> dict[str, Any]:
        """As QEMU's ``query-migrate``: the same keys and names of statuses; beside them ``eta-ms`` and ``vm``."""
        info = self.progress.as_dict(
            self._status.value, cache=self._pages.cache_counts(), throttle_percent=self._source.throttle_percent)
        info["vm"] = self.place.value
        if self._error is not None:
            info["error-desc"] = str(self._error)
        return info

    # -- the session's thread

    def _main(self) -> None:
        self.progress.began_ns = time.monotonic_ns()
        try:
            self._migrate()
        except Interrupted:
            self._cancel()
        except BaseException as error:
            self._fail(error)

    def _let_go(self) -> None:
        """Nothing of the session touches the VM any more."""
        self._pages.stop()
        self._watch.close()
        self._hold.release()

    def _migrate(self) -> None:
        config = self.config
        self.progress.total_bytes = self._pages.total_bytes
        self.progress.expected_downtime_ms = self.downtime_limit_ms
        self._set_status(_S.SETUP)
        link = self._link = self._connect()
        self._pages.start()
        link.open(config.machine)
        if self._arbiter is not None and not link.peer_bits & HELLO_ARBITER:
            raise ArbitrationError(
                "the destination has no arbiter, so it would not ask whether it may run: give both sides the same, or none")
        self.progress.set_up_ns = time.monotonic_ns()
        self._set_status(_S.ACTIVE)
        MigrationRounds(
            link, self._source, self._pages, self.progress, converge=self._converge,
            downtime_limit_ms=lambda: self._downtime_limit_ms, tell=self._tell,
        ).run()
        devices = self._stand_still(link)
        link.send_rest(
            self.progress.rounds, devices[:-1], end_of_stream() + describe(self._form.sections_of(devices)))
        with self._lock:
            if self._cancelled is not None:
                raise Interrupted("the migration was cancelled from this side")
            self._handed_out = True
            self.place = VmPlace.UNDECIDED
        self._end(link)

    def _connect(self) -> MigrationLink:
        sock = connect_until(
            self.config.to, time.monotonic() + self.config.connect_s, pause_s=CONNECT_RETRY_S,
            ended=lambda: self._cancelled is not None, final=(AddressError,), insecure=self.config.insecure,
            allow_uids=self.config.allow_uids)
        return MigrationLink(
            sock, self._pages, self._pacer, self.progress, deadlines=self.config.deadlines,
            return_path=self.config.return_path, wake_fd=self._wake.fd)

    # -- the switchover

    def _stand_still(self, link: MigrationLink) -> bytes:
        """Pause the VM; returns its device state, and owns all pages that the destination has not."""
        self._source.pause()
        self.progress.paused_ns = self._source.paused_ns
        if self.config.pause_before_switchover:
            self._set_status(_S.PRE_SWITCHOVER)
            while not self._go_on.wait(0):
                link.keep_alive()
                until = time.monotonic() + KEEP_ALIVE_S
                while not self._go_on.is_set() and time.monotonic() < until:
                    link.wait(0.02)
        self._set_status(_S.DEVICE)
        devices = self._form.encode(self._source.save())
        # What saving the state wrote, though it should not, is among them.
        self._pages.harvest_more()
        self.progress.begin_round(self._pages.owned_pages())
        self.progress.syncs += 1
        return devices

    def _end(self, link: MigrationLink) -> None:
        """Hand out the last of the stream. From here on this side has the VM only if somebody says so."""
        try:
            link.send_last_word()
            answer = link.await_answer()
        except Exception as error:
            link.abort()
            self._resolve(error)
            return
        link.close()
        if answer:
            self._come_back(ChannelError(
                f"the destination did not take the VM over (SHUT {answer}); its own log says why"))
        else:
            confirmed = "the destination has loaded it" if answer == 0 else "everything was sent; nothing confirms it"
            self._complete(confirmed)

    def _complete(self, reason: str) -> None:
        self.place = VmPlace.THERE
        self.progress.completed = True
        self._release_throttle()
        self._finish(_S.COMPLETED, reason)

    def _resolve(self, error: Exception) -> None:
        """Everything was sent and no answer came: the destination may run. Only the arbiter knows better."""
        told = False
        while self._arbiter is not None:
            try:
                self._arbiter.claim(self._generation, reason=f"migration: {error}")
            except ArbitrationLost:
                self._complete(f"the destination has claimed the VM; its answer was lost: {error}")
                return
            except ArbitrationError as undecided:
                if not told:
                    self._tell("notice", f"who may run is undecided, trying again: {undecided}")
                    told = True
                if self._giving_up:
                    break
                time.sleep(ARBITRATION_RETRY_S)
            else:
                self._come_back(error)
                return
        doubt = ArbitrationError(
            f"everything was sent, and the destination's answer was lost ({error}): it may run the VM, so here it stands "
            "still; look at the destination, then decide(destination_runs=...)")
        doubt.__cause__ = error
        self._release_throttle()
        self._finish(_S.FAILED, doubt)

    def _come_back(self, error: BaseException) -> None:
        """The destination does not run, and will not."""
        if self._arbiter is not None:
            with contextlib.suppress(ArbitrationError):
                if (now := self._arbiter.current()) > self._generation:
                    self._arbiter.claim(now, reason="the destination gave the VM back")
        self.place = VmPlace.HERE
        self._fail(error)

    # -- the other ends

    def _cancel(self) -> None:
        self._set_status(_S.CANCELLING)
        failed = self._undo()
        if failed is not None:
            self._finish(_S.FAILED, failed)
        else:
            self._finish(_S.CANCELLED, self._cancelled or "cancelled")

    def _fail(self, error: BaseException) -> None:
        failed = self._undo()
        if failed is not None and failed is not error:
            self._tell("notice", f"after the failure: {failed}")
        self._finish(_S.FAILED, error)

    def _undo(self) -> ColoError | None:
        """The VM runs on here as before. Returns what kept it from that."""
        link = self._link
        if link is not None:
            link.abort()  # before the VM runs: what was sent can then never be completed
            link.release()
        self._pages.give_back()
        self._release_throttle()
        try:
            self._source.run_on()
        except VmError as error:
            return error
        return None

    def _release_throttle(self) -> None:
        if self._source.throttle_percent:
            try:
                self._source.throttle(0)
                self._tell("throttle", 0)
            except VmError as error:
                self._tell("notice", f"throttling could not be released: {error}")

    def _free_hung(self, doing: str, error: VmError) -> None:
        """The session's thread is stuck in the VM: what must be done for the VM is done from the watch's."""
        link = self._link
        if link is not None:
            link.abort()
        if self._source.throttle_percent and doing != "throttle":
            with contextlib.suppress(Exception):
                self.vm.throttle(0)  # type: ignore[attr-defined]
        if doing != "resume" and self._source.was_running:
            with contextlib.suppress(Exception):
                self.vm.resume()
        self._finish(_S.FAILED, error, done=False)

    def _finish(self, status: MigrationStatus, how: str | BaseException, *, done: bool = True) -> None:
        self.progress.over_ns = self.progress.over_ns or time.monotonic_ns()
        if done:
            self._let_go()
        with self._lock:
            if self._result.done():
                return
            if isinstance(how, BaseException):
                self._error = how
        self._set_status(status)
        if isinstance(how, BaseException):
            self._result.set_exception(how)
            return
        progress = self.progress
        downtime_ns = progress.over_ns - progress.paused_ns if progress.paused_ns else 0
        self._result.set_result(MigrationOutcome(
            status, self.place, how, downtime_ns / 1e6, (progress.over_ns - progress.began_ns) / 1e6))

    def _set_status(self, status: MigrationStatus) -> None:
        if self._status is status or (STATUSES[self._status].over and status is not _S.COMPLETED):
            return
        self._status = next_status(self._status, status)
        self._tell("status", status.value)

    def _tell(self, kind: str, data: Any = None) -> None:
        with contextlib.suppress(Exception):
            self._on_event(kind, data)
