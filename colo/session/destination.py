"""Live migration, the destination's side: a VM that stands still here takes a migration stream over, and runs.

The stream is QEMU's: from :class:`~colo.session.migration.Migration`, or from a real QEMU whose RAM blocks and devices the
VM here has declared. ::

    with MigrationDestination(vm, DestinationConfig("tcp:192.0.2.7:9000", insecure=True)) as destination:
        arrival = destination.run()       # returns when the VM runs here

Pages are written to the VM's memory as they come: a migration that fails leaves memory with parts of it. State is loaded,
and the VM resumed, only when everything was there and fits.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from colo.abc import Transport, VirtualMachine
from colo.arbiter import Arbiter, arbiter_from_uri, claim
from colo.errors import (
    ColoError,
    Interrupted,
    StreamError,
    VmError,
)
from colo.link.migration_in import MigrationIn
from colo.memory.guest_image import GuestImage
from colo.protocol.deadlines import Deadlines
from colo.protocol.migration import MigrationStatus
from colo.stream import Configuration, StreamLimits
from colo.trace import listening
from colo.transport import TcpOptions, listen
from colo.transport.admission import PENDING_LIMIT, admit
from colo.vm.hold import VmHold
from colo.vm.saved_state import decode_state
from colo.wake import Wake
from colo.wire import TARGET_PAGE_BYTES, ReturnPath

_S = MigrationStatus


@dataclass(frozen=True, slots=True)
class DestinationConfig:
    """Only ``listen`` has no default."""

    listen: str
    """``tcp:HOST:PORT`` or ``unix:PATH``."""
    resume: bool = True
    """Let the VM run when it has arrived."""
    machine: str | None = None
    """Take only a stream of this machine type; None: any."""
    arbiter: str = "none"
    """``file:DIR``, ``etcd:URL/PREFIX`` or ``exec:COMMAND``, the source's too: asked before the VM runs, so that a source
    that lost this side's answer can find out."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """``idle_s`` is how long the source may be silent between two sections, as one that waits for leave to switch over."""
    limits: StreamLimits = field(default_factory=StreamLimits)
    insecure: bool = False
    """Allow plaintext TCP beyond loopback."""
    allow_uids: tuple[int, ...] = ()
    """Users of this machine, besides root and this process's own, who may connect."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A migration that arrived. Times in milliseconds, sizes in bytes."""

    machine: str
    confirmed: bool
    """Whether the source was told, which it must have asked for."""
    stream_bytes: int
    device_bytes: int
    load_ms: float
    """From the stream's last byte to the VM running."""
    total_ms: float


class MigrationDestination:
    """Takes one migration into ``vm``, which stands still meanwhile; :meth:`run` again after one that failed.

    ``on_event(kind, data)`` hears ``listening`` (address), ``connected``, ``status`` and ``notice``; what it raises is
    ignored. :meth:`stop` and :meth:`status` may be called from any thread.
    """

    def __init__(
        self, vm: VirtualMachine, config: DestinationConfig, *,
        on_event: Callable[[str, Any], None] = lambda kind, data: None,
    ) -> None:
        self.vm = vm
        self.config = config
        self._pid = os.getpid()
        self._on_event = listening(on_event)
        self._status = _S.NONE
        self._error: BaseException | None = None
        self._stopping = False
        self._began_ns = self._over_ns = 0
        self._link: MigrationIn | None = None
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
        try:
            return self._run()
        except BaseException as error:
            self._error = error
            self._set_status(_S.FAILED)
            raise
        finally:
            self._over_ns = time.monotonic_ns()
            hold.release()

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

    # -- one migration

    def _run(self) -> Arrival:
        self._error = None
        self._over_ns = self._began_ns = 0
        self._link = None
        self._tell("listening", self.address)
        deadlines = self.config.deadlines
        sock = admit(
            self._listener, handshake_s=deadlines.handshake_s, wake_fd=self._wake.fd,
            refused=lambda text: self._tell("notice", text), allow_uids=self.config.allow_uids,
        )
        self._began_ns = time.monotonic_ns()
        self._status = _S.NONE
        self._set_status(_S.SETUP)
        self._tell("connected")
        try:
            return self._take(sock)
        except ColoError as error:
            # Whoever has not run the VM says so: the source need not wonder.
            if not isinstance(error, _MayRun) and self._link is not None:
                self._link.say(ReturnPath.SHUT, 1)
            raise
        finally:
            sock.close()

    def _take(self, sock: Transport) -> Arrival:
        self._call("pause", self.vm.pause)
        link = self._link = MigrationIn(
            sock, GuestImage(self.vm.memory.blocks), deadlines=self.config.deadlines, limits=self.config.limits,
            wake_fd=self._wake.fd, arbiter=self._arbiter is not None, on_opened=self._opened)
        received = link.receive()
        if self._stopping:
            raise Interrupted("the destination was asked to stop")
        self._set_status(_S.DEVICE)
        state = decode_state(received.device_state, self.config.limits)
        self._call("load_state", lambda: self.vm.load_state(state))
        if self._arbiter is not None:
            self._claim(self._arbiter)
        self._start()
        confirmed = link.say(ReturnPath.SHUT, 0)
        if link.return_path and not confirmed:
            self._tell("notice", "the VM runs here, and the source could not be told")
        self._set_status(_S.COMPLETED)
        now_ns = time.monotonic_ns()
        return Arrival(
            received.configuration.machine, confirmed, link.received_bytes, len(received.device_state),
            (now_ns - received.whole_ns) / 1e6, (now_ns - self._began_ns) / 1e6)

    def _start(self) -> None:
        if not self.config.resume:
            return
        try:
            self._call("resume", self.vm.resume)
        except VmError as error:
            try:
                self.vm.pause()
            except Exception:
                raise _MayRun(f"{error}; nor could it be paused: the source was told nothing") from error
            raise

    def _claim(self, arbiter: Arbiter) -> None:
        """Win the generation, or raise ArbitrationLost. While it cannot be decided, the VM waits."""
        self._generation = claim(
            arbiter, self._generation, reason="migration arrived", on_undecided=lambda text: self._tell("notice", text),
            stopping=lambda: self._stopping)

    def _call(self, name: str, method: Callable[[], object]) -> None:
        try:
            method()
        except Exception as error:
            raise VmError(f"the VM's {name}() raised {type(error).__name__}: {error}") from error

    # -- what the stream asks

    def _opened(self, configuration: Configuration) -> None:
        wanted = self.config.machine
        if wanted is not None and configuration.machine != wanted:
            raise StreamError(
                f"the stream is of machine type '{configuration.machine}', the VM here is '{wanted}'",
                where="CONFIGURATION", offset=configuration.offset, value=configuration.machine)
        self._set_status(_S.ACTIVE)

    def _set_status(self, status: MigrationStatus) -> None:
        if self._status is not status:
            self._status = status
            self._tell("status", status.value)

    def _tell(self, kind: str, data: Any = None) -> None:
        with contextlib.suppress(Exception):
            self._on_event(kind, data)


class _MayRun(VmError):
    """The VM may run although its methods say that it failed."""
