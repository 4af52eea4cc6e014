"""The primary: any :class:`~colo.abc.VirtualMachine` is protected by a secondary, ours or an unmodified QEMU."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Self

from colo import trace
from colo.abc import Transport, VirtualMachine
from colo.arbiter import arbiter_from_uri
from colo.epoch.outbox import Outbox
from colo.epoch.participants import EpochSource, Participants
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import (
    ChannelError,
    ChannelLost,
    ColoError,
    Interrupted,
    LimitExceeded,
    ProtocolError,
    StreamError,
    TrackerError,
    VmError,
)
from colo.figures.primary_report import PrimaryReport, PrimaryStatistics
from colo.link.primary_link import PrimaryLink, event_of
from colo.link.primary_settings import LinkSettings
from colo.protocol import Event, State
from colo.session.checkpoint_requests import CheckpointRequests
from colo.session.pace import Pace
from colo.session.primary_config import PrimaryConfig, PrimaryEnded, PrimaryEnding, PrimaryOutcome
from colo.session.primary_control import serve
from colo.session.primary_deciding import Deciding, PrimaryLease
from colo.session.primary_waiting import CONNECT_RETRY_S, Waiting
from colo.trace import OnEvent, SessionState, Sink, Trace
from colo.transport import check_plaintext
from colo.vm.handle import VmHandle
from colo.vm.hold import VmHold
from colo.vm.saved_state import StateForm
from colo.vm.watch import VmWatch

__all__ = ["Primary", "PrimaryConfig", "PrimaryEnding", "PrimaryOutcome"]


class Primary:
    """A primary session. ::

        with Primary(vm, PrimaryConfig("tcp:192.0.2.7:9000", "file:/shared/vm1")) as primary:
            primary.start()
            ...
            primary.checkpoint()       # now; returns when it is committed
            outcome = primary.wait()   # when protection ends

    The session pauses and resumes ``vm``, and is the only one to do so while it runs; a second session on the same VM is
    refused. ``outbox`` holds the VM's output back as far as it must. ``participants`` are further parts of each checkpoint
    (:class:`~colo.epoch.participants.EpochSource`), told of its boundaries after the memory and the outbox.
    ``sinks`` take the events themselves (:mod:`colo.trace`);
    ``on_event(kind, data)`` is called, from the session's threads, with ``connected``, ``protecting``, ``checkpoint``,
    ``lost``, ``resyncing``, ``alone``, ``stopped`` and ``notice``. All methods may be called from any thread.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        config: PrimaryConfig,
        *,
        outbox: Outbox | None = None,
        participants: Sequence[EpochSource] = (),
        on_event: OnEvent | None = None,
        sinks: Iterable[Sink] = (),
    ) -> None:
        self.vm = vm
        self.config = config
        self._pid = os.getpid()
        self.outbox = outbox
        self.state = SessionState.NEW
        self.statistics = PrimaryStatistics()
        check_plaintext(config.to, insecure=config.insecure)
        self._pace = Pace(
            config.interval_ms, target_pause_ms=config.target_pause_ms, link_share=config.link_share)
        self._trace = Trace(on_event, sinks)
        self._settings = LinkSettings(
            config.machine, config.spoken, config.mode, config.sending == "copy", config.deadlines, config.extensions,
            config.copy_ahead)
        self._pages = PrimaryPages(vm.memory, tracker=config.tracker, xbzrle=config.xbzrle)
        notice = self._trace.notice
        self._participants = Participants([self._pages, *([outbox] if outbox is not None else ()), *participants], notice)
        self._form = StateForm(config.limits, sections=config.sections)
        self._hold = VmHold(vm)
        self._watch = VmWatch(config.vm_s, self._free_hung)
        self._handle = VmHandle(vm, guard=self._watch.guard)
        self._arbiter = arbiter_from_uri(config.arbiter, role="primary", vm=config.vm)
        self._waiting = Waiting()
        self._lease = PrimaryLease(config, self._handle, self._waiting, notice)
        self._deciding = Deciding(self._arbiter, self._handle, self._lease, self._participants, self._waiting, notice)
        self._result: Future[PrimaryOutcome] = Future()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._requests = CheckpointRequests()
        self._link: PrimaryLink | None = None
        self._links = 0
        if outbox is not None:
            outbox.on_pressure = self._waiting.due.set
        self._control = serve(self, config.control) if config.control is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- requests, from any thread

    def start(self) -> None:
        """Begin on a thread of its own. Raises RuntimeError when the VM is protected already."""
        if self._thread is not None:
            raise RuntimeError("a Primary is started once")
        self._hold.take()
        self._thread = threading.Thread(target=self._main, name="colo-primary", daemon=True)
        self._watch.start()
        if self.config.arbiter != "none":
            self._deciding.watch()
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
        future = self._requests.ask()
        self._waiting.due.set()
        return future.result(timeout_s)

    def stop(self, reason: str = "requested", timeout_s: float | None = 30.0) -> PrimaryOutcome:
        """End protection: this side claims the VM first, so that the secondary does not take over; the VM runs on."""
        self._waiting.stop(reason)
        return self.wait(timeout_s)

    def close(self) -> None:
        """:meth:`stop` if it runs, and let go of everything."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        if self._thread is not None:
            with contextlib.suppress(ColoError, TimeoutError):
                self.stop()
            self._thread.join(1.0)
            if self._thread.is_alive():
                return  # it hangs in one of the VM's methods, and uses what would be closed here
        self._deciding.close()
        if self._control is not None:
            self._control.close()
        self._pages.stop()
        self._lease.drop()
        self._arbiter.close()
        self._waiting.close()

    @property
    def generation(self) -> int:
        """Of the VM, as this side knows it."""
        return self._deciding.generation

    def status(self) -> dict[str, Any]:
        """Keys are stable."""
        link = self._link
        return {
            "state": self.state,
            "over": self._result.done(),
            "protocol_state": link.machine.state.value if link else None,
            "checkpoint": link.acknowledged if link else None,
            "extensions": [extension.name for extension in link.agreed] if link else None,
            "generation": self.generation,
            "lease": self._lease.status(),
            "secondary_notice": self._lease.notice,
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
            self._watch.close()
            self._hold.release()

    def _finish(self, how: PrimaryOutcome | BaseException) -> None:
        if isinstance(how, PrimaryOutcome):
            self._lease.release_witness()  # after an error, this process's end may be what the secondary waits for
        with self._lock:
            first = not self._result.done()
            if first and isinstance(how, PrimaryOutcome):
                self._result.set_result(how)
            elif first and isinstance(how, BaseException):
                self._result.set_exception(how)
        error = how if isinstance(how, BaseException) else Interrupted(
            f"the session ended, {how.ending.value}: {how.reason}")
        self._requests.end(error)
        self._deciding.close()
        if first:
            self.state = SessionState(how.ending.name.lower()) if isinstance(how, PrimaryOutcome) else SessionState.FAILED

    def _run(self) -> PrimaryOutcome:
        if self.outbox is not None:
            self.outbox.bypass(True)
        self._pages.start()
        may_hold: int | None = None
        until: float | None = time.monotonic() + self.config.connect_s
        link: PrimaryLink | None = None
        try:
            while True:
                self.state = SessionState.CONNECTING if self.state != SessionState.ALONE else self.state
                try:
                    connect = partial(self._waiting.connect, self.config, until)
                    if may_hold is None and self.config.leased:
                        self._deciding.begin_lease(connect)
                    sock = connect()
                except Interrupted:
                    return self._leave(link)
                except (ChannelError, ProtocolError) as error:
                    if link is None or (may_hold is not None and isinstance(error, ProtocolError)):
                        raise
                    if may_hold is not None:
                        may_hold, until = self._alone(link, f"the secondary did not come back: {error}")
                    elif self._waiting.refused(error, self._trace.notice):
                        return self._leave(link)
                    continue
                link = self._link = self._new_link(sock, may_hold)
                try:
                    self._lead(link)
                except Interrupted:
                    if not self._lease.silent or self._waiting.over:
                        return self._leave(link)
                    self._waiting.wake.clear()
                    silent = ChannelLost(self._lease.silent)
                    may_hold, until = self._lost(link, silent, until if may_hold is not None else None)
                except (VmError, TrackerError, LimitExceeded) as error:
                    self._blame_own(link, error)
                except (ColoError, OSError) as error:
                    may_hold, until = self._lost(link, error, until if may_hold is not None else None)
        except PrimaryEnded as ended:
            return ended.outcome
        except BaseException as error:
            if link is not None and not link.machine.over:
                with contextlib.suppress(ColoError):
                    link.end(Event.FAILED)
            if link is None or not link.may_be_committed:
                self._lease.alone(0, str(error))  # nobody could take it over
            raise
        finally:
            self._pages.stop()

    def _new_link(self, sock: Transport, may_hold: int | None) -> PrimaryLink:
        link = PrimaryLink(
            sock, self._handle, self._pages, self._form, self._settings, participants=self._participants,
            actions=self._deciding.actions, committed=may_hold, connection=self._links, wake_fd=self._waiting.wake.fd,
            due_fd=self._waiting.due.fd, on_checkpoint=self._committed,
        )
        self._links += 1
        self._deciding.expect_own()
        self._tell(trace.Connected(self.config.to))
        return link

    def _lead(self, link: PrimaryLink) -> None:
        """Never returns: raises what ended the connection."""
        self.state = SessionState.SYNCHRONISING
        link.synchronise()
        self._pace.begin(time.monotonic(), asked=True)
        self.state = SessionState.PROTECTING
        self._tell(trace.Protecting(self.generation))
        while True:
            asked = link.wait(self._pace.due_s - time.monotonic())
            self._waiting.due.clear()  # who asks joins the waiting first, so nobody is forgotten
            self._requests.begin()
            self._pace.begin(time.monotonic(), asked=asked)
            try:
                link.checkpoint()
            except BaseException as error:
                self._requests.refuse(error)
                raise
            report = self.statistics.last
            assert report is not None
            self._pace.took(report)
            self._requests.answer(report)

    def _committed(self, report: PrimaryReport) -> None:
        self.statistics.add(report)
        self._tell(trace.Checkpoint(report))
        if (warning := self.statistics.warning()) is not None:
            self._tell(trace.Notice(warning))

    # -- the end of a connection

    def _lost(self, link: PrimaryLink, error: Exception, until: float | None) -> tuple[int | None, float | None]:
        """The connection ended by itself. Returns what the secondary may hold, and until when it is tried again."""
        if self._watch.hung is not None:
            raise self._watch.hung
        self.statistics.losses += 1
        reason = f"{error} [{type(error).__name__}]"
        if link.acknowledged is None and isinstance(error, ChannelLost):
            reason += "; nothing was committed over this connection: what the secondary says itself tells why"
        self._tell(trace.Lost(reason))
        self._deciding.reason = reason
        state = link.end(event_of(error))
        if state is State.LOST and self.config.resync_s > 0 and not isinstance(error, ProtocolError | StreamError):
            if until is None or link.acknowledged is not None:
                until = time.monotonic() + self.config.resync_s
            if time.monotonic() < until:
                self.state = SessionState.RESYNCING
                self._tell(trace.Resyncing(reason))
                known = link.machine.committed
                self._waiting.wait(CONNECT_RETRY_S)
                return known if known is not None else 0, until
        return self._alone(link, reason)

    def _alone(self, link: PrimaryLink, reason: str) -> tuple[None, None]:
        """This side runs the VM, or nobody here does. Returns where to go on, if it is to be protected again."""
        self._settle(link, reason)
        if not self.config.reconnect:
            raise PrimaryEnded(self._outcome(PrimaryEnding.ALONE, reason))
        return None, None

    def _leave(self, link: PrimaryLink | None) -> PrimaryOutcome:
        """Asked to stop, or the generation was found to be over."""
        if self._watch.hung is not None:
            raise self._watch.hung
        if self._waiting.fenced:
            self._deciding.reason = "the generation is over: the other side took over"
            if link is None:
                self._deciding.end(State.LOST, Event.TAKEOVER_LOST)
            else:
                link.end(Event.TAKEOVER_LOST)
            self._stands_still()
        reason = self._waiting.stopping or "stopped"
        if link is not None and link.machine.state is not State.ALONE:
            self._settle(link, reason)
        return self._outcome(PrimaryEnding.ALONE, reason)

    def _blame_own(self, link: PrimaryLink, error: ColoError) -> None:
        """This side cannot go on: it claims the VM while the secondary still waits, resumes it, and says why."""
        if self._watch.hung is None:
            self._settle(link, f"{error}")
        raise self._watch.hung or error

    def _settle(self, link: PrimaryLink, reason: str) -> None:
        """Make sure that this side may run, and runs: by the table, which knows whether anybody is to be asked. Raises
        PrimaryEnded when the other side runs; while it is undecided, waits."""
        self._deciding.reason = reason
        state = link.end(Event.FAILOVER_REQUESTED)
        if state is State.STOPPED:
            self._stands_still()
        if state is not State.ALONE:
            assert self._deciding.error is not None
            raise self._deciding.error
        self.state = SessionState.ALONE
        self._tell(trace.Alone(reason))

    def _stands_still(self) -> None:
        self.state = SessionState.STOPPED
        self._tell(trace.Stopped(self._deciding.reason))
        raise PrimaryEnded(self._outcome(PrimaryEnding.STOPPED, self._deciding.reason))

    def _outcome(self, ending: PrimaryEnding, reason: str) -> PrimaryOutcome:
        return PrimaryOutcome(ending, reason, self.generation)

    def _free_hung(self, doing: str, error: VmError) -> None:
        """The session's thread is stuck in the VM: what must be done for the VM is done from the watch's."""
        link = self._link
        how = self._deciding.end_hung(doing, error, may_be_committed=link is not None and link.may_be_committed)
        if link is not None:
            link.sock.abort()
        if how is error:
            self._tell(trace.Alone(str(error)))
        self._finish(how)

    def _tell(self, event: trace.Event) -> None:
        self._trace.tell(event)
