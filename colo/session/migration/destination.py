"""Live migration, the destination's side: a VM that stands still here takes a migration stream over, and runs.

The stream is QEMU's: from :class:`~colo.session.migration.MigrationSource`, or from a real QEMU whose RAM blocks and
devices the VM here has declared. ::

    with MigrationDestination(vm, MigrationDestinationConfig("tcp:192.0.2.7:9000", insecure=True)) as destination:
        arrival = destination.run()       # returns when the VM runs here

Pages are written to the VM's memory as they come: a migration that fails leaves memory with parts of it. State is loaded,
and the VM resumed, only when everything was there and fits.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Self

from colo import trace
from colo.abc import VirtualMachine
from colo.arbiter import Arbiter, arbiter_from_uri, claim
from colo.errors import ArbitrationLost, Interrupted, StreamError, VmError
from colo.link.migration_in import MigrationIn
from colo.memory.guest_image import GuestImage
from colo.protocol.migration import Action, Event, Exchange, MigrationMachine, MigrationStatus, Role, State
from colo.session.migration.config import Arrival, MigrationDestinationConfig
from colo.stream import Configuration
from colo.trace import OnEvent, Sink, Trace
from colo.transport import TcpOptions, listen
from colo.transport.admission import PENDING_LIMIT, admit
from colo.vm.calls import call_vm
from colo.vm.hold import VmHold
from colo.vm.saved_state import decode_state
from colo.wake import Wake
from colo.wire import TARGET_PAGE_BYTES


class MigrationDestination:
    """Takes one migration into ``vm``, which stands still meanwhile; :meth:`run` again after one that failed.

    ``sinks`` take the events themselves (:mod:`colo.trace`);
    ``on_event(kind, data)`` hears ``listening`` (address), ``connected``, ``status`` and ``notice``; what it raises is
    ignored. :meth:`stop` and :meth:`status` may be called from any thread.
    """

    def __init__(
        self, vm: VirtualMachine, config: MigrationDestinationConfig, *,
        on_event: OnEvent | None = None, sinks: Iterable[Sink] = (),
    ) -> None:
        self.vm = vm
        self.config = config
        self._pid = os.getpid()
        self._trace = Trace(on_event, sinks)
        self._status = MigrationStatus.NONE
        self._error: BaseException | None = None
        self._stopping = False
        self._began_ns = self._runs_ns = self._over_ns = 0
        self._link: MigrationIn | None = None
        self._machine = MigrationMachine(Role.DESTINATION)
        self._arbiter: Arbiter | None = None
        self._generation = 0
        self._cleanup = contextlib.ExitStack()
        self._wake = Wake()
        self._cleanup.callback(self._wake.close)
        try:
            if config.arbiter != "none":
                self._arbiter = arbiter_from_uri(config.arbiter, role="secondary")
                self._cleanup.callback(self._arbiter.close)
                self._generation = self._arbiter.current()
            self._listener = self._cleanup.enter_context(
                listen(
                    config.listen, insecure=config.insecure, backlog=PENDING_LIMIT,
                    options=TcpOptions.within(config.deadlines.message_s)))
            self.address = self._listener.address
        except BaseException:
            self._cleanup.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def run(self) -> Arrival:
        """Wait for a source, take the VM, let it run.

        Raises StreamError or ProtocolError (the stream is not what fits here), ChannelError (the source was lost),
        VmError (the VM refused the state), ArbitrationLost (the source has the VM) or Interrupted (:meth:`stop`). The VM
        then stands still, and the source was told if it can be.
        """
        hold = VmHold(self.vm)
        hold.take()
        self._error = None
        self._over_ns = self._began_ns = 0
        self._link = None
        self._status = MigrationStatus.NONE
        self._machine = MigrationMachine(Role.DESTINATION, arbiter=self._arbiter is not None)
        self._handlers = {action: partial(method, self) for action, method in self.HANDLERS.items()}
        self._exchange = Exchange(
            self._machine, self._handlers, self._await_event, on_error=self._went_wrong, on_state=self._publish)
        try:
            self._exchange.run(Event.STARTED)
        except BaseException as error:  # Ctrl-C between two steps
            self._error = error
            self._set_status(MigrationStatus.FAILED)
            raise
        finally:
            self._over_ns = time.monotonic_ns()
            if self._link is not None:
                self._link.close()
            hold.release()
        return self._arrival()

    def stop(self) -> None:
        """End :meth:`run` with Interrupted, unless the VM was taken over already."""
        self._stopping = True
        self._wake.set()

    def close(self) -> None:
        """Let go of the socket and the arbiter; :meth:`run` must have ended."""
        if os.getpid() != self._pid:
            return  # in a forked child: all of it is its parent's
        self._cleanup.close()

    def status(self) -> dict[str, Any]:
        """As QEMU's ``query-migrate`` at a destination."""
        info: dict[str, Any] = {"status": self._status.value, "socket-address": self.address}
        if self._error is not None:
            info["error-desc"] = str(self._error)
        if self._began_ns:
            info["total-time"] = round(((self._over_ns or time.monotonic_ns()) - self._began_ns) / 1e6, 3)
        if self._link is not None:
            blocks = self._link.blocks
            counts = [block.counts for block in blocks]
            normal = sum(each["normal_pages"] for each in counts)
            info["ram"] = {
                "total": sum(block.used_length for block in blocks),
                "remaining": sum(block.pages - block.received_pages for block in blocks) * TARGET_PAGE_BYTES,
                "transferred": self._link.received_bytes,
                "duplicate": sum(each["zero_pages"] for each in counts),
                "normal": normal,
                "normal-bytes": normal * TARGET_PAGE_BYTES,
                "page-size": TARGET_PAGE_BYTES,
            }
            info["xbzrle-cache"] = {
                "pages": sum(each["xbzrle_pages"] for each in counts),
                "bytes": sum(each["xbzrle_bytes"] for each in counts),
            }
        return info

    # -- the table

    def _await_event(self) -> Event:
        """A stream is read by actions: what they do not report is not awaited."""
        raise StreamError("the stream ended before it was whole", where="stream")

    def _went_wrong(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        elif error is not self._error:
            self._tell(trace.Notice(f"at the end: {error}"))

    def _publish(self) -> None:
        if not self._machine.ended:  # an end is told when all is done
            self._set_status(self._machine.facts.status)

    def _arrival(self) -> Arrival:
        """What :meth:`run` returns, or raises."""
        state, link = self._machine.state, self._link
        if state is State.MAY_RUN:
            self._error = VmError(f"{self._error}; nor could it be paused: the source was told nothing")
        elif state is not State.COMPLETED and self._error is None:
            self._error = StreamError("the migration failed", where="stream")
        self._set_status(self._machine.facts.status)
        if self._error is not None:
            raise self._error
        assert link is not None and link.received is not None
        if self._machine.return_path and not link.confirmed:
            self._tell(trace.Notice("the VM runs here, and the source could not be told"))
        received = link.received
        return Arrival(
            received.configuration.machine, link.confirmed, link.received_bytes, len(received.device_state),
            (self._runs_ns - received.whole_ns) / 1e6, (self._runs_ns - self._began_ns) / 1e6)

    # -- what it asks for

    def _accept(self) -> Event:
        self._tell(trace.Listening(self.address))
        deadlines = self.config.deadlines
        sock = admit(
            self._listener, handshake_s=deadlines.handshake_s, wake_fd=self._wake.fd,
            refused=lambda text: self._tell(trace.Notice(text)),
            allow_uids=self.config.allow_uids,
        )
        self._began_ns = time.monotonic_ns()
        self._link = link = MigrationIn(
            sock, GuestImage(self.vm.memory.blocks), self._machine, self._exchange.hear, deadlines=deadlines,
            limits=self.config.limits, wake_fd=self._wake.fd, check=self._check)
        self._handlers.update((action, partial(method, link)) for action, method in MigrationIn.HANDLERS.items())
        self._tell(trace.Connected())
        return Event.CONNECTED

    def _stop_vm(self) -> Event:
        call_vm("pause", self.vm.pause)
        return Event.VM_STOPPED

    def _load(self) -> Event:
        if self._stopping:
            raise Interrupted("the destination was asked to stop")
        assert self._link is not None and self._link.received is not None
        state = decode_state(self._link.received.device_state, self.config.limits)
        call_vm("load_state", lambda: self.vm.load_state(state))
        return Event.STATE_LOADED

    def _win(self) -> Event:
        assert self._arbiter is not None
        try:
            self._claim(self._arbiter)
        except ArbitrationLost as error:
            self._went_wrong(error)
            return Event.CLAIM_LOST
        return Event.CLAIM_WON

    def _start_vm(self) -> Event:
        if self.config.resume:
            call_vm("resume", self.vm.resume)
        self._runs_ns = time.monotonic_ns()
        return Event.VM_RUNS

    HANDLERS: ClassVar[dict[Action, Callable[[MigrationDestination], Event | None]]] = {
        Action.ACCEPT: _accept,
        Action.STOP_VM: _stop_vm,
        Action.LOAD: _load,
        Action.CLAIM: _win,
        Action.START_VM: _start_vm,
    }
    """What the session does, beside what its connection does."""

    def _claim(self, arbiter: Arbiter) -> None:
        """Win the generation, or raise ArbitrationLost. While it cannot be decided, the VM waits."""
        self._generation = claim(
            arbiter, self._generation, reason="migration arrived", on_undecided=lambda text: self._tell(trace.Notice(text)),
            stopping=lambda: self._stopping)

    def _check(self, configuration: Configuration) -> None:
        wanted = self.config.machine
        if wanted is not None and configuration.machine != wanted:
            raise StreamError(
                f"the stream is of machine type '{configuration.machine}', the VM here is '{wanted}'",
                where="CONFIGURATION", offset=configuration.offset, value=configuration.machine)

    def _set_status(self, status: MigrationStatus) -> None:
        if self._status is not status:
            self._status = status
            self._tell(trace.Status(status.value))

    def _tell(self, event: trace.Event) -> None:
        self._trace.tell(event)
