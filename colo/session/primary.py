"""The primary: any :class:`~colo.abc.VirtualMachine` is protected by a secondary, ours or an unmodified QEMU."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self

from colo.abc import Transport, VirtualMachine
from colo.arbiter import Runner, arbiter_from_uri, claim, take_first
from colo.epoch.outbox import Outbox
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import (
    ArbitrationError,
    ArbitrationLost,
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
from colo.fence.vm_lease import VmLease
from colo.figures.primary_report import PrimaryReport, PrimaryStatistics
from colo.lease.connection import LeaseConnection
from colo.lease.meeting import Meeting
from colo.link.primary_link import LinkSettings, PrimaryLink, event_of
from colo.protocol import Event, State
from colo.session.checkpoint_requests import CheckpointRequests
from colo.session.pace import Pace
from colo.session.primary_config import PrimaryConfig, PrimaryEnding, PrimaryOutcome
from colo.session.primary_control import serve
from colo.trace import listening
from colo.transport import check_plaintext, connect_until
from colo.vm.handle import VmHandle
from colo.vm.hold import VmHold
from colo.vm.saved_state import StateForm
from colo.vm.watch import VmWatch
from colo.wake import Wake

GENERATION_S = 0.2
"""How often the generation is looked at; a takeover is noticed, and this VM stopped, within this time."""
CONNECT_RETRY_S = 0.05
RECONNECT_RETRY_S = 0.5
LEASED_S = 5.0
"""Within this the first promise must have come."""

__all__ = ["Primary", "PrimaryConfig", "PrimaryEnding", "PrimaryOutcome"]



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
        self._pid = os.getpid()
        self.outbox = outbox
        self.state = "new"
        self.statistics = PrimaryStatistics()
        check_plaintext(config.to, insecure=config.insecure)
        self._pace = Pace(
            config.interval_ms, target_pause_ms=config.target_pause_ms, link_share=config.link_share)
        self._on_event = listening(on_event)
        self._arbiter = arbiter_from_uri(config.arbiter, role="primary", vm=config.vm)
        self.generation = self._arbiter.current()
        self._lease: VmLease | None = None
        self._leased_generation = 0
        self._silent = ""
        """Why the secondary counts as lost, by the lease."""
        self._settings = LinkSettings(
            config.machine, config.spoken, config.mode, config.sending == "copy", config.deadlines, config.extensions,
            config.precopy)
        self._pages = PrimaryPages(vm.memory, tracker=config.tracker, xbzrle=config.xbzrle)
        self._form = StateForm(config.limits, sections=config.sections)
        self._hold = VmHold(vm)
        self._watch = VmWatch(config.vm_s, self._free_hung)
        self._handle = VmHandle(vm, guard=self._watch.guard)
        self._wake, self._due = Wake(), Wake()
        self._result: Future[PrimaryOutcome] = Future()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._requests = CheckpointRequests()
        self._stopping: str | None = None
        self._fenced = False
        self._link: PrimaryLink | None = None
        self._links = 0
        self._over = threading.Event()
        if outbox is not None:
            outbox.on_pressure = self._due.set
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
            threading.Thread(target=self._watch_generation, name="colo-primary-generation", daemon=True).start()
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
        self._due.set()
        return future.result(timeout_s)

    def stop(self, reason: str = "requested", timeout_s: float | None = 30.0) -> PrimaryOutcome:
        """End protection: this side claims the VM first, so that the secondary does not take over; the VM runs on."""
        self._stopping = self._stopping or reason
        self._wake.set()
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
        self._over.set()
        if self._control is not None:
            self._control.close()
        self._pages.stop()
        self._drop_lease()
        self._arbiter.close()
        self._wake.close()
        self._due.close()

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
            "lease": self._lease.status() if self._lease else None,
            "secondary_notice": self._lease.notice if self._lease else "",
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
        if self._lease is not None and isinstance(how, PrimaryOutcome):
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
                    if may_hold is None:
                        self._begin_lease(until)
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
                    if not self._silent or self._stopping is not None or self._fenced:
                        return self._leave(link)
                    self._wake.clear()
                    silent = ChannelLost(self._silent)
                    may_hold, until = self._lost(link, silent, until if may_hold is not None else None)
                except (VmError, TrackerError, LimitExceeded) as error:
                    self._blame_own(link, error)
                except (ColoError, OSError) as error:
                    may_hold, until = self._lost(link, error, until if may_hold is not None else None)
        except _OtherSideRuns as stopped:
            return self._outcome(PrimaryEnding.STOPPED, str(stopped))
        except _Ended as ended:
            return ended.outcome
        except BaseException as error:
            if link is not None:
                link.release()
            if self._lease is not None and (link is None or not link.may_be_committed):
                self._lease.alone(self._leased_generation + 1, str(error))  # nobody could take it over
            raise
        finally:
            self._pages.stop()

    # -- the lease

    def _begin_lease(self, until: float | None) -> None:
        """Meet the secondary, and hold a lease of a generation of this session's own. Raises as :meth:`_connect`,
        ProtocolError when the secondary refuses, ArbitrationLost when the VM runs elsewhere."""
        if not self.config.leased:
            return
        self._drop_lease()
        sock = self._connect(until)
        identity = self._arbiter.identity
        token = ""
        try:
            if identity is not None:
                claimed = take_first(self._arbiter, Runner.of(), reason="protect")
                self.generation, token = claimed.generation, claimed.token
            connection = LeaseConnection(sock, Meeting(
                vm=identity.vm if identity is not None else self.config.vm,
                uuid=identity.uuid if identity is not None else "",
                arbiter_id=identity.id if identity is not None else "", generation=self.generation, claim_token=token,
                lease_ms=self.config.lease_ms, who=f"{socket.gethostname()} (pid {os.getpid()})"))
        except BaseException:
            sock.close()
            raise
        peer = connection.peer
        connection.close()
        if connection.welcome.notice:
            self._tell("notice", f"the secondary could not take over as things are: {connection.welcome.notice}")
        self._leased_generation = self.generation
        self._lease = VmLease(
            peer, token=connection.welcome.token, generation=self.generation, lease_ms=connection.welcome.lease_ms,
            stop=self._handle.lease_over, go_on=self._handle.leased, changed=self._lease_changed, witness=self.config.fence,
            allow_uids=self.config.allow_uids, tell=lambda text: self._tell("notice", text))
        if not self._lease.wait_leased(LEASED_S):
            self._drop_lease()
            raise ChannelLost(f"the secondary promised nothing within {LEASED_S:g} s; see what it says itself")

    def _lease_changed(self) -> None:
        """From the lease's thread."""
        lease = self._lease
        if lease is None:
            return
        if lease.taken:
            self._fenced = True
        self._silent = lease.lost
        if self._fenced or self._silent:
            self._due.set()
            self._wake.set()

    def _drop_lease(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()
        self._silent = ""

    def _new_link(self, sock: Transport, may_hold: int | None) -> PrimaryLink:
        link = PrimaryLink(
            sock, self._handle, self._pages, self._form, self._settings, outbox=self.outbox, committed=may_hold,
            connection=self._links, wake_fd=self._wake.fd, due_fd=self._due.fd, on_checkpoint=self._committed,
            on_notice=lambda text: self._tell("notice", text),
        )
        self._links += 1
        self._tell("connected", self.config.to)
        return link

    def _connect(self, until: float | None) -> Transport:
        """A connection to the secondary, tried until then. Raises Interrupted, ChannelError."""
        self.state = "connecting" if self.state != "alone" else self.state
        return connect_until(
            self.config.to, until, pause_s=RECONNECT_RETRY_S if until is None else CONNECT_RETRY_S,
            ended=lambda: self._stopping is not None or self._fenced, insecure=self.config.insecure,
            allow_uids=self.config.allow_uids)

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
        self._pace.begin(time.monotonic(), asked=True)
        self.state = "protecting"
        self._tell("protecting", self.generation)
        while True:
            asked = link.wait(self._pace.due_s - time.monotonic())
            self._due.clear()  # who asks joins the waiting first, so nobody is forgotten
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
        self._tell("checkpoint", report)
        if (warning := self.statistics.warning()) is not None:
            self._tell("notice", warning)

    # -- the end of a connection

    def _lost(self, link: PrimaryLink, error: Exception, until: float | None) -> tuple[int | None, float | None]:
        """The connection ended by itself. Returns what the secondary may hold, and until when it is tried again."""
        if self._watch.hung is not None:
            raise self._watch.hung
        self.statistics.losses += 1
        reason = f"{error} [{type(error).__name__}]"
        if link.acknowledged is None and isinstance(error, ChannelLost):
            reason += "; nothing was committed over this connection: what the secondary says itself tells why"
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
        if self._watch.hung is not None:
            raise self._watch.hung
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
        if self._watch.hung is None:
            self._claim_for(link, f"{error}")
        link.release()
        raise self._watch.hung or error

    def _claim_for(self, link: PrimaryLink, reason: str) -> None:
        """Make sure that this side may run, then run. Raises _OtherSideRuns; while it is undecided, waits."""
        machine = link.machine
        if self._lease is not None:
            self._lease.answering()
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
        if self._lease is not None:
            # Where no claim was needed, nothing that the other side could run has come to be.
            self._lease.alone(max(self.generation, self._leased_generation + 1), reason)
        self._handle.resume()
        if self.outbox is not None:
            self.outbox.bypass(True)
        self._tell("alone", reason)

    def _claim(self, reason: str) -> None:
        self.generation = claim(
            self._arbiter, self.generation, reason=reason, runner=Runner.of(),
            on_undecided=lambda text: self._tell("notice", text), wait=self._wait_woken)

    def _stand_still(self, reason: str) -> None:
        if self.outbox is not None:
            self.outbox.drop_all()
        self._handle.pause()
        if self._lease is not None:
            self._lease.prove(reason)
        self.state = "stopped"
        self._tell("stopped", reason)
        raise _OtherSideRuns(reason)

    def _outcome(self, ending: PrimaryEnding, reason: str) -> PrimaryOutcome:
        return PrimaryOutcome(ending, reason, self.generation)

    # -- the watch

    def _watch_generation(self) -> None:
        """Stop when another side has claimed the VM."""
        while not self._over.wait(GENERATION_S):
            with contextlib.suppress(ArbitrationError):
                if self._link is not None and self._arbiter.current() > self.generation and not self._claiming():
                    self._fenced = True
                    self._due.set()
                    self._wake.set()
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
                link.sock.abort()
            self._finish(_because(VmError(f"{error}; the VM was not resumed: {lost}"), lost))
            return
        if link is not None:
            link.sock.abort()
        if self._lease is not None:
            self._lease.alone(max(self.generation, self._leased_generation + 1), str(error))
        if doing != "resume":
            with contextlib.suppress(Exception):
                self.vm.resume()
        if self.outbox is not None:
            with contextlib.suppress(Exception):
                self.outbox.bypass(True)
        self._tell("alone", str(error))
        self._finish(error)

    def _tell(self, kind: str, data: Any = None) -> None:
        self._on_event(kind, data)


def _because(error: VmError, cause: BaseException) -> VmError:
    error.__cause__ = cause
    return error
