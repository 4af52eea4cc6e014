"""The primary: any :class:`~colo.abc.VirtualMachine` is protected by a secondary, ours or an unmodified QEMU."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from socket import socket as Socket
from typing import Any, Self

from colo.abc import VirtualMachine
from colo.errors import (
    ArbitrationError,
    ArbitrationLost,
    ChannelError,
    ColoError,
    Interrupted,
    LimitExceeded,
    ProtocolError,
    StreamError,
    TrackerError,
    VmError,
)
from colo.protocol import Event, State
from colo.session.arbiter import arbiter_from_uri
from colo.session.outbox import Outbox
from colo.session.pace import Pace
from colo.session.primary_config import PrimaryConfig, PrimaryEnding, PrimaryOutcome
from colo.session.primary_link import LinkSettings, PrimaryLink, VmHandle, event_of
from colo.session.primary_pages import PrimaryPages
from colo.session.primary_report import PrimaryReport, PrimaryStatistics
from colo.session.vm_state import StateForm
from colo.transport import abort, check_plaintext, connect

WATCH_S = 0.05
GENERATION_S = 0.2
"""How often the generation is looked at; a takeover is noticed, and this VM stopped, within this time."""
CONNECT_RETRY_S = 0.05
RECONNECT_RETRY_S = 0.5
ARBITRATION_RETRY_S = 1.0

__all__ = ["Primary", "PrimaryConfig", "PrimaryEnding", "PrimaryOutcome"]

_protected: set[int] = set()
_protected_lock = threading.Lock()


class _OtherSideRuns(Exception):
    """No error: how a session may end."""


class _Ended(Exception):
    """No error: how a session may end."""

    def __init__(self, outcome: PrimaryOutcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Primary:
    """A primary session. ::

        with Primary(vm, PrimaryConfig("tcp:192.0.2.7:9000", "file:/shared/vm1")) as primary:
            primary.start()
            ...
            primary.checkpoint()       # now; returns when it is committed
            outcome = primary.wait()   # when protection ends

    The session pauses and resumes ``vm``, and is the only one to do so while it runs; a second session on the same VM is
    refused. ``outbox`` holds the VM's output back as far as it must. ``on_event(kind, data)`` is called, from the session's
    threads, with ``connected``, ``protecting``, ``checkpoint``, ``lost``, ``resyncing``, ``alone``, ``stopped`` and
    ``notice``. All methods may be called from any thread.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        config: PrimaryConfig,
        *,
        outbox: Outbox | None = None,
        on_event: Callable[[str, Any], None] = lambda kind, data: None,
    ) -> None:
        self.vm = vm
        self.config = config
        self.outbox = outbox
        self.state = "new"
        self.statistics = PrimaryStatistics()
        check_plaintext(config.to, insecure=config.insecure)
        self._pace = Pace(
            config.interval_ms, target_pause_ms=config.target_pause_ms, link_share=config.link_share)
        self._on_event = on_event
        self._arbiter = arbiter_from_uri(config.arbiter, role="primary", create=True)
        self.generation = self._arbiter.current()
        self._settings = LinkSettings(
            config.machine, config.spoken, config.mode, config.sending == "copy", config.deadlines, config.extensions)
        self._pages = PrimaryPages(vm.memory, tracker=config.tracker, xbzrle=config.xbzrle)
        self._form = StateForm(config.limits, sections=config.sections)
        self._handle = VmHandle(vm, guard=self._guard)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._due_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._result: Future[PrimaryOutcome] = Future()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._waiting: list[Future[PrimaryReport]] = []
        """Want a checkpoint that begins from now on."""
        self._served: list[Future[PrimaryReport]] = []
        """Get the one under way."""
        self._stopping: str | None = None
        self._fenced = False
        self._doing: tuple[str, float] | None = None
        self._hung: VmError | None = None
        self._link: PrimaryLink | None = None
        self._links = 0
        self._over = threading.Event()
        self._began_s = 0.0
        if outbox is not None:
            outbox.on_pressure = self._due

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- requests, from any thread

    def start(self) -> None:
        """Begin on a thread of its own. Raises RuntimeError when the VM is protected already."""
        with _protected_lock:
            if self._thread is not None:
                raise RuntimeError("a Primary is started once")
            if id(self.vm) in _protected:
                raise RuntimeError("this VM is protected by another session; end that one first")
            _protected.add(id(self.vm))
        self._thread = threading.Thread(target=self._main, name="colo-primary", daemon=True)
        threading.Thread(target=self._watch, name="colo-primary-watch", daemon=True).start()
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> PrimaryOutcome:
        """How the session ended. TimeoutError while it has not; ChannelError (never connected), VmError, TrackerError or
        ArbitrationError when it ended with one: the VM then runs, unless the message says otherwise."""
        return self._result.result(timeout_s)

    def run(self) -> PrimaryOutcome:
        """:meth:`start` and :meth:`wait`."""
        self.start()
        return self.wait()

    def checkpoint(self, timeout_s: float | None = None) -> PrimaryReport:
        """Make a checkpoint now; returns when it is committed. Raises the error that it, or the session, ended with."""
        future: Future[PrimaryReport] = Future()
        with self._lock:
            if self._result.done():
                raise Interrupted("the session is over: no checkpoint can be made")
            self._waiting.append(future)
        self._due()
        return future.result(timeout_s)

    def stop(self, reason: str = "requested", timeout_s: float | None = 30.0) -> PrimaryOutcome:
        """End protection: this side claims the VM first, so that the secondary does not take over; the VM runs on."""
        self._stopping = self._stopping or reason
        os.eventfd_write(self._wake_fd, 1)
        return self.wait(timeout_s)

    def close(self) -> None:
        """:meth:`stop` if it runs, and let go of everything."""
        if self._thread is not None:
            with contextlib.suppress(ColoError, TimeoutError):
                self.stop()
            self._thread.join(1.0)
            if self._thread.is_alive():
                return  # it hangs in one of the VM's methods, and uses what would be closed here
        self._over.set()
        self._pages.stop()
        self._arbiter.close()
        with self._lock:
            for name in ("_wake_fd", "_due_fd"):
                if getattr(self, name) >= 0:
                    os.close(getattr(self, name))
                    setattr(self, name, -1)

    def status(self) -> dict[str, Any]:
        """Keys are stable."""
        link = self._link
        return {
            "state": self.state,
            "protocol_state": link.machine.state.value if link else None,
            "checkpoint": link.acknowledged if link else None,
            "extensions": [extension.name for extension in link.agreed] if link else None,
            "generation": self.generation,
            "interval_ms": round(self._pace.interval_ms, 3),
            "link_bytes_per_s": round(link.rate.bytes_per_s) if link else None,
            "tracker": self._pages.tracker.name,
            "outbox_held": self.outbox.held if self.outbox else None,
            "statistics": self.statistics.as_dict(),
        }

    # -- the session's thread

    def _main(self) -> None:
        try:
            outcome = self._run()
        except BaseException as error:
            self._finish(error)
        else:
            self._finish(outcome)
        finally:
            with _protected_lock:
                _protected.discard(id(self.vm))

    def _finish(self, how: PrimaryOutcome | BaseException) -> None:
        with self._lock:
            waiting, self._waiting, self._served = self._served + self._waiting, [], []
            first = not self._result.done()
            if first and isinstance(how, PrimaryOutcome):
                self._result.set_result(how)
            elif first and isinstance(how, BaseException):
                self._result.set_exception(how)
        error = how if isinstance(how, BaseException) else Interrupted(f"the session ended: {how.ending.value}")
        for future in waiting:
            future.set_exception(error)
        self._over.set()
        if first:
            self.state = how.ending.name.lower() if isinstance(how, PrimaryOutcome) else "failed"

    def _run(self) -> PrimaryOutcome:
        if self.outbox is not None:
            self.outbox.bypass(True)
        self._pages.start()
        may_hold: int | None = None
        until: float | None = time.monotonic() + self.config.connect_s
        link: PrimaryLink | None = None
        try:
            while True:
                try:
                    sock = self._connect(until)
                except Interrupted:
                    return self._leave(link)
                except ChannelError as error:
                    if link is None or may_hold is None:
                        raise
                    may_hold, until = self._alone(link, f"the secondary did not come back: {error}")
                    continue
                link = self._link = self._new_link(sock, may_hold)
                try:
                    self._lead(link)
                except Interrupted:
                    return self._leave(link)
                except (VmError, TrackerError, LimitExceeded) as error:
                    self._blame_own(link, error)
                except (ColoError, OSError) as error:
                    may_hold, until = self._lost(link, error, until if may_hold is not None else None)
        except _OtherSideRuns as stopped:
            return self._outcome(PrimaryEnding.STOPPED, str(stopped))
        except _Ended as ended:
            return ended.outcome
        except BaseException:
            if link is not None:
                link.release()
            raise
        finally:
            self._pages.stop()

    def _new_link(self, sock: Socket, may_hold: int | None) -> PrimaryLink:
        link = PrimaryLink(
            sock, self._handle, self._pages, self._form, self._settings, outbox=self.outbox, committed=may_hold,
            connection=self._links, wake_fd=self._wake_fd, due_fd=self._due_fd, on_checkpoint=self._committed,
            on_notice=lambda text: self._tell("notice", text),
        )
        self._links += 1
        self._tell("connected", self.config.to)
        return link

    def _connect(self, until: float | None) -> Socket:
        """A connection to the secondary, tried until then. Raises Interrupted, ChannelError."""
        self.state = "connecting" if self.state != "alone" else self.state
        while True:
            left = 1.0 if until is None else max(0.05, min(1.0, until - time.monotonic()))
            try:
                return connect(self.config.to, left, insecure=self.config.insecure)
            except ChannelError:
                if until is not None and time.monotonic() >= until:
                    raise
            if self._wait_woken(RECONNECT_RETRY_S if until is None else CONNECT_RETRY_S):
                raise Interrupted("the wait for a secondary was ended from this side")

    def _wait_woken(self, seconds: float) -> bool:
        """Wait so long, or until stopped or fenced: True."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self._stopping is None and not self._fenced:
            time.sleep(min(left, 0.02))
        return self._stopping is not None or self._fenced

    def _lead(self, link: PrimaryLink) -> None:
        """Never returns: raises what ended the connection."""
        self.state = "synchronising"
        link.synchronise()
        self._began_s = time.monotonic()
        self.state = "protecting"
        self._tell("protecting", self.generation)
        while True:
            due_s = self._began_s + self._pace.interval_ms / 1000
            link.wait(due_s - time.monotonic())
            with contextlib.suppress(BlockingIOError):  # who asks joins the waiting first, so nobody is forgotten
                os.eventfd_read(self._due_fd)
            with self._lock:
                self._served, self._waiting = self._waiting, []
            self._began_s = time.monotonic()
            try:
                link.checkpoint()
            except BaseException as error:
                self._refuse(error)
                raise
            report = self.statistics.last
            assert report is not None
            self._pace.took(report)
            with self._lock:
                served, self._served = self._served, []
            for future in served:
                future.set_result(report)

    def _refuse(self, error: BaseException) -> None:
        """Those who wait for the checkpoint under way will not get it."""
        with self._lock:
            served, self._served = self._served, []
        for future in served:
            future.set_exception(error)

    def _committed(self, report: PrimaryReport) -> None:
        self.statistics.add(report)
        self._tell("checkpoint", report)

    # -- the end of a connection

    def _lost(self, link: PrimaryLink, error: Exception, until: float | None) -> tuple[int | None, float | None]:
        """The connection ended by itself. Returns what the secondary may hold, and until when it is tried again."""
        if self._hung is not None:
            raise self._hung
        self.statistics.losses += 1
        reason = f"{error} [{type(error).__name__}]"
        self._tell("lost", reason)
        state = link.end(event_of(error))
        if state is State.LOST and self.config.resync_s > 0 and not isinstance(error, ProtocolError | StreamError):
            if until is None or link.acknowledged is not None:
                until = time.monotonic() + self.config.resync_s
            if time.monotonic() < until:
                self.state = "resyncing"
                self._tell("resyncing", reason)
                known = link.machine.committed
                self._wait_woken(CONNECT_RETRY_S)
                return known if known is not None else 0, until
        return self._alone(link, reason)

    def _alone(self, link: PrimaryLink, reason: str) -> tuple[None, None]:
        """This side runs the VM, or nobody here does. Returns where to go on, if it is to be protected again."""
        self._claim_for(link, reason)
        if not self.config.reconnect:
            raise _Ended(self._outcome(PrimaryEnding.ALONE, reason))
        return None, None

    def _leave(self, link: PrimaryLink | None) -> PrimaryOutcome:
        """Asked to stop, or the generation was found to be over."""
        if self._hung is not None:
            raise self._hung
        if self._fenced:
            reason = "the generation is over: the other side took over"
            if link is not None:
                with contextlib.suppress(ProtocolError):
                    link.machine.feed(Event.TAKEOVER_LOST)
                link.release()
            self._stand_still(reason)
        reason = self._stopping or "stopped"
        if link is None or link.machine.state is State.ALONE:
            return self._outcome(PrimaryEnding.ALONE, reason)
        self._claim_for(link, reason)
        return self._outcome(PrimaryEnding.ALONE, reason)

    def _blame_own(self, link: PrimaryLink, error: ColoError) -> None:
        """This side cannot go on: it claims the VM while the secondary still waits, resumes it, and says why."""
        if self._hung is None:
            self._claim_for(link, f"{error}")
        link.release()
        raise self._hung or error

    def _claim_for(self, link: PrimaryLink, reason: str) -> None:
        """Make sure that this side may run, then run. Raises _OtherSideRuns; while it is undecided, waits."""
        machine = link.machine
        with contextlib.suppress(ProtocolError):
            machine.feed(Event.FAILOVER_REQUESTED)
        if machine.state is State.ARBITRATING:
            try:
                self._claim(reason)
            except ArbitrationLost as error:
                machine.feed(Event.TAKEOVER_LOST)
                link.release()
                self._stand_still(str(error))
            except ArbitrationError:
                machine.feed(Event.TAKEOVER_UNDECIDED)
                link.release()
                raise
            machine.feed(Event.TAKEOVER_WON)
        link.release()
        self.state = "alone"
        self._handle.resume()
        if self.outbox is not None:
            self.outbox.bypass(True)
        self._tell("alone", reason)

    def _claim(self, reason: str) -> None:
        told = False
        while True:
            try:
                self._arbiter.claim(self.generation, reason=reason)
                self.generation += 1
                return
            except ArbitrationLost:
                raise
            except ArbitrationError as error:
                if not told:
                    self._tell("notice", f"who may run is undecided, trying again: {error}")
                    told = True
                if self._wait_woken(ARBITRATION_RETRY_S):
                    raise

    def _stand_still(self, reason: str) -> None:
        if self.outbox is not None:
            self.outbox.drop_all()
        self._handle.pause()
        self.state = "stopped"
        self._tell("stopped", reason)
        raise _OtherSideRuns(reason)

    def _outcome(self, ending: PrimaryEnding, reason: str) -> PrimaryOutcome:
        return PrimaryOutcome(ending, reason, self.generation)

    # -- the watch

    def _guard(self, doing: str | None) -> None:
        """One of the VM's methods begins, or ended. Raises VmError when it was given up meanwhile."""
        with self._lock:
            self._doing = None if doing is None else (doing, time.monotonic() + self.config.vm_s)
            if self._hung is not None:
                raise self._hung

    def _watch(self) -> None:
        looked_s = time.monotonic()
        while not self._over.wait(WATCH_S):
            now = time.monotonic()
            with self._lock:
                doing = self._doing
                if doing is not None and now > doing[1]:
                    self._hung = VmError(
                        f"the VM's {doing[0]}() did not return within {self.config.vm_s:g} s: protection ended; "
                        "no checkpoint can be made until it does"
                    )
            if self._hung is not None:
                self._free_hung(doing[0] if doing else "", self._hung)
                return
            if now - looked_s >= GENERATION_S and self.config.arbiter != "none":
                looked_s = now
                with contextlib.suppress(ArbitrationError):
                    if self._link is not None and self._arbiter.current() > self.generation and not self._claiming():
                        self._fenced = True
                        self._due()
                        with self._lock:
                            if self._wake_fd >= 0:
                                os.eventfd_write(self._wake_fd, 1)
                        return

    def _claiming(self) -> bool:
        """Whether the newer generation may be this side's own, not noted yet."""
        return self._link is not None and self._link.machine.state is State.ARBITRATING

    def _free_hung(self, doing: str, error: VmError) -> None:
        """The session's thread is stuck in the VM: what must be done for the VM is done from here."""
        link = self._link
        try:
            if link is not None and link.may_be_committed:
                self._claim(str(error))
        except ArbitrationError as lost:
            if self.outbox is not None:
                self.outbox.drop_all()
            if link is not None:
                abort(link.sock)
            self._finish(_because(VmError(f"{error}; the VM was not resumed: {lost}"), lost))
            return
        if link is not None:
            abort(link.sock)
        if doing != "resume":
            with contextlib.suppress(Exception):
                self.vm.resume()
        if self.outbox is not None:
            with contextlib.suppress(Exception):
                self.outbox.bypass(True)
        self._tell("alone", str(error))
        self._finish(error)

    def _due(self) -> None:
        with self._lock:
            if self._due_fd >= 0:
                os.eventfd_write(self._due_fd, 1)

    def _tell(self, kind: str, data: Any = None) -> None:
        self._on_event(kind, data)


def _because(error: VmError, cause: BaseException) -> VmError:
    error.__cause__ = cause
    return error
