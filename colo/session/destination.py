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
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from colo._fast.buffers import ReadBuffer
from colo._fast.digest import StreamDigest
from colo._fast.pagedecoder import PageDecoder
from colo._fast.staging import Staging
from colo.abc import VirtualMachine
from colo.arbiter import Arbiter, arbiter_from_uri, claim
from colo.errors import (
    ChannelLost,
    ColoError,
    Interrupted,
    ProtocolError,
    StreamError,
    VmError,
)
from colo.protocol import encode_return_path
from colo.protocol.messages import capability_behind
from colo.protocol.migration import MigrationStatus
from colo.session.admission import PENDING_LIMIT, admit
from colo.session.deadlines import Deadlines
from colo.session.in_process import GuestImage
from colo.session.initial_stream import InitialStream
from colo.session.listening import listening
from colo.session.migration_link import DIGEST_BYTES, HELLO, HELLO_ARBITER, HELLO_COLO
from colo.session.vm_hold import VmHold
from colo.session.vm_state import decode_state
from colo.stream import CommandItem, Configuration, StreamLimits
from colo.transport import listen, tune
from colo.wake import Wake
from colo.wire import TARGET_PAGE_BYTES, Command, ReturnPath

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
        self._buffer: ReadBuffer | None = None
        self._stream: InitialStream | None = None
        self._sock: socket.socket | None = None
        self._return_path = False
        self._decoder: PageDecoder | None = None
        self._digest: StreamDigest | None = None
        """The source is a colo one: it says a last word, told beforehand, and the digest of what it sent at last."""
        self._last_word: int | None = None
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
                listen(config.listen, insecure=config.insecure, backlog=PENDING_LIMIT))
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
        if self._stream is not None and self._buffer is not None:
            blocks = self._stream.blocks
            counts = [block.counts for block in blocks]
            normal = sum(each["normal_pages"] for each in counts)
            info["ram"] = {
                "total": sum(block.used_length for block in blocks),
                "remaining": sum(block.pages - block.received_pages for block in blocks) * TARGET_PAGE_BYTES,
                "transferred": self._buffer.position,
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
        self._return_path = False
        self._digest = self._last_word = None
        self._tell("listening", self.address)
        deadlines = self.config.deadlines
        sock = self._sock = admit(
            self._listener.socket, handshake_s=deadlines.handshake_s, wake_fd=self._wake.fd,
            prepare=lambda s: tune(s, deadlines.message_s), refused=lambda text: self._tell("notice", text),
            allow_uids=self.config.allow_uids,
        )
        self._began_ns = time.monotonic_ns()
        self._status = _S.NONE
        self._set_status(_S.SETUP)
        self._tell("connected")
        try:
            sock.settimeout(deadlines.message_s)
            return self._take(sock)
        except ColoError as error:
            # Whoever has not run the VM says so: the source need not wonder.
            if not isinstance(error, _MayRun):
                self._say(ReturnPath.SHUT, 1)
            raise
        finally:
            sock.close()
            self._sock = None

    def _take(self, sock: socket.socket) -> Arrival:
        self._call("pause", self.vm.pause)
        deadlines = self.config.deadlines
        buffer = self._buffer = ReadBuffer(sock.fileno(), wake_fd=self._wake.fd)
        buffer.set_deadline("handshake", deadlines.handshake_s)
        buffer.set_idle(deadlines.progress_s)
        image = GuestImage(self.vm.memory.blocks)
        self._decoder = PageDecoder(Staging(), immediate=True)
        stream = self._stream = InitialStream(
            buffer, self._decoder, image, deadlines=deadlines,
            limits=self.config.limits, on_opened=self._opened, on_command=self._obey,
            between_s=deadlines.idle_s if deadlines.idle_s is not None else deadlines.epoch_s,
        )
        device_state = stream.read()
        if self._digest is not None:
            self._digest.update(device_state.blob)
            self._expect_last_word(buffer, self._digest.value)
        whole_ns = time.monotonic_ns()
        for block in stream.blocks:
            if block.received_pages < block.pages:
                raise StreamError(
                    f"only {block.received_pages} of {block.pages} pages of RAM block '{block.idstr}' came",
                    where="ram section", offset=buffer.position, value=block.received_pages)
        if self._stopping:
            raise Interrupted("the destination was asked to stop")
        self._set_status(_S.DEVICE)
        state = decode_state(device_state.blob, self.config.limits)
        self._call("load_state", lambda: self.vm.load_state(state))
        if self._arbiter is not None:
            self._claim(self._arbiter)
        self._start()
        confirmed = self._say(ReturnPath.SHUT, 0)
        if self._return_path and not confirmed:
            self._tell("notice", "the VM runs here, and the source could not be told")
        self._set_status(_S.COMPLETED)
        assert stream.configuration is not None
        now_ns = time.monotonic_ns()
        return Arrival(
            stream.configuration.machine, confirmed, buffer.position, len(device_state.blob), (now_ns - whole_ns) / 1e6,
            (now_ns - self._began_ns) / 1e6)

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

    def _obey(self, item: CommandItem) -> None:
        if item.command is Command.OPEN_RETURN_PATH:
            self._return_path = True
        elif item.command is Command.PING:
            if not self._return_path:
                raise ProtocolError("PING before OPEN_RETURN_PATH: there is no way to answer", got="PING")
            self._note_ping(item.value)
            bits = HELLO_COLO | (HELLO_ARBITER if self._arbiter is not None else 0)
            self._say(ReturnPath.PONG, HELLO | bits if item.value == HELLO else item.value, must=True)
        elif item.command is Command.ENABLE_COLO:
            raise ProtocolError("the source wants to go on with COLO: it needs a secondary, not a destination",
                                got=item.command.name)
        elif item.command is not Command.SWITCHOVER_START:
            raise ProtocolError(
                f"command {item.command.name} is not served here: switch the capability "
                f"{capability_behind(item.command, item.payload)} off",
                got=item.command.name, expected=("OPEN_RETURN_PATH", "PING", "SWITCHOVER_START"))

    def _note_ping(self, number: int) -> None:
        """HELLO, then what the last word begins with, then one at the end of each round."""
        if self._digest is None:
            self._digest = StreamDigest() if number == HELLO else None
        elif self._last_word is None:
            self._last_word = number
        else:
            # The digest is of what follows the last round. The first one, the longest, has passed without.
            assert self._decoder is not None
            self._digest.reset()
            self._decoder.set_digest(self._digest)

    def _expect_last_word(self, buffer: ReadBuffer, digest: int) -> None:
        """A colo source can take its VM back until it has sent this; what only looks like the stream's end is not it."""
        offset = buffer.position
        buffer.set_deadline("last word", self.config.deadlines.epoch_s)
        word = buffer.read_u32()
        if word != self._last_word:
            raise StreamError(
                "the stream's end is not followed by the source's last word", where="stream", offset=offset, value=word)
        sent = int.from_bytes(buffer.read_exact(DIGEST_BYTES), "big")
        if sent != digest:
            raise StreamError(
                f"the stream was damaged on its way: its digest is {digest:032x}, the source's {sent:032x}",
                where="stream", offset=offset + 4, value=sent)

    def _say(self, kind: ReturnPath, value: int, *, must: bool = False) -> bool:
        """Speak on the return path; returns whether it was sent."""
        if not self._return_path or self._sock is None:
            return False
        try:
            self._sock.sendall(encode_return_path(kind, value))
        except OSError as error:
            if must:
                raise ChannelLost(f"{error.strerror or error} while answering on the return path") from error
            return False
        return True

    def _set_status(self, status: MigrationStatus) -> None:
        if self._status is not status:
            self._status = status
            self._tell("status", status.value)

    def _tell(self, kind: str, data: Any = None) -> None:
        with contextlib.suppress(Exception):
            self._on_event(kind, data)


class _MayRun(VmError):
    """The VM may run although its methods say that it failed."""
