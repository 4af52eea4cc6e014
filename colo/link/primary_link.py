"""One connection of a primary: the VM's state is sent, checkpoint after checkpoint.

The protocol's table says what comes next; here its actions are carried out, and what the secondary answers is turned into
its events. How a connection that failed goes on (arbitration, another connection) is the session's to decide.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from colo._fast.kernels.digest import StreamDigest
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pageencoder import PageEncoder
from colo.abc import Transport
from colo.epoch.checkpoint_times import CheckpointTimes, RecordCounts
from colo.epoch.copy_ahead import Precopy
from colo.epoch.outbox import Outbox
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import ChannelLost, ColoError, DeadlineExceeded, StreamError
from colo.figures.primary_report import PrimaryReport
from colo.link.link_rate import LinkRate
from colo.link.reading import read_message
from colo.protocol import (
    Action,
    Dialect,
    Event,
    Machine,
    Mode,
    Reads,
    Role,
    State,
    decode_return_path,
    encode_message,
    message_event,
    return_path_event,
    return_path_missing_bytes,
)
from colo.protocol.deadlines import Deadlines
from colo.protocol.states import NOTHING_SENT_WHOLE
from colo.stream.writer import (
    command,
    configuration,
    end_of_stream,
    file_header,
    ping,
    ram_start_section,
    section_end,
    section_footer,
    section_part,
)
from colo.vm.handle import VmHandle
from colo.vm.saved_state import StateForm, describe
from colo.wake import wait_ready
from colo.wire import RAM_SECTION_ID, ColoMessage, Command, Extension

MESSAGES = {
    Action.SEND_CHECKPOINT_REQUEST: ColoMessage.CHECKPOINT_REQUEST,
    Action.SEND_VMSTATE_SEND: ColoMessage.VMSTATE_SEND,
}
COMMANDS = {
    Action.SEND_OPEN_RETURN_PATH: command(Command.OPEN_RETURN_PATH),
    Action.SEND_PING: ping(1),
    Action.SEND_ENABLE_COLO: command(Command.ENABLE_COLO),
    Action.SEND_SWITCHOVER_START: command(Command.SWITCHOVER_START),
}


NO_EXTENSION = Extension(0)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How a connection is spoken."""

    machine: str
    dialect: Dialect
    mode: Mode
    copy: bool
    deadlines: Deadlines
    extensions: Extension = NO_EXTENSION
    """What is offered beyond QEMU's protocol, if the dialect has it (:attr:`Dialect.extended`)."""
    precopy: bool = True
    """With ``copy``: copy dirty pages also before the pause (:mod:`colo.epoch.copy_ahead`)."""
    initial_rounds: int = 5
    """Most rounds over RAM while the VM runs, before it is paused for the rest."""
    initial_rest_pages: int = 2000
    """So few dirty pages are sent with the VM paused."""


class PrimaryLink:
    """Leads the secondary at the other end of ``sock``, a connection that is the link's from now on.

    ``committed``: the highest checkpoint that a secondary of this generation may hold, None: none. One thread; ``wake_fd``
    becoming readable ends any wait with Interrupted.
    """

    def __init__(
        self,
        sock: Transport,
        handle: VmHandle,
        pages: PrimaryPages,
        form: StateForm,
        settings: LinkSettings,
        *,
        outbox: Outbox | None = None,
        committed: int | None = None,
        connection: int = 0,
        wake_fd: int = -1,
        due_fd: int = -1,
        on_checkpoint: Callable[[PrimaryReport], None] = lambda report: None,
        on_notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.sock = sock
        self.settings = settings
        self.connection = connection
        self.machine = Machine(
            Role.PRIMARY, mode=settings.mode, dialect=replace(settings.dialect), copy=settings.copy, committed=committed)
        self.acknowledged: int | None = None
        """The highest checkpoint of this connection known to be committed."""
        self._handle = handle
        self._pages = pages
        self._form = form
        self._outbox = outbox
        self._wake_fd = wake_fd
        self._due_fd = due_fd
        self._on_checkpoint = on_checkpoint
        self._on_notice = on_notice
        self._buffer = ReadBuffer(sock.fileno(), wake_fd=wake_fd, capacity_bytes=1 << 16)
        self._encoder = PageEncoder(sock.fileno(), wake_fd=wake_fd)
        self.agreed = Extension(0)
        """What the secondary took of the extensions offered."""
        self.rate = LinkRate()
        self._codec: AdaptiveCodec | None = None
        self._records = RecordCounts()
        self._digest = StreamDigest()
        self._state = b""
        self._times = CheckpointTimes()
        self._pause_ms = 0.0
        self._dirty_pages = self._paused_pages = 0
        ahead = settings.copy and settings.precopy and not pages.needs_pause
        self._precopy = Precopy() if ahead else None
        self._stream_start = 0
        self._copied_bytes = 0
        self._epoch_end_ns = 0

    @property
    def may_be_committed(self) -> bool:
        """Whether the secondary may hold a checkpoint of this generation."""
        return self.machine.committed is not None or self.machine.state not in NOTHING_SENT_WHOLE

    # -- what the session asks for

    def synchronise(self) -> None:
        """Send the initial stream; returns when the secondary has committed it (checkpoint 0) and the VM runs.

        Raises ChannelError, ProtocolError, StreamError, VmError or TrackerError; :meth:`end` is then to be called.
        """
        self._start_epoch()
        self._run(Event.CONNECTED)

    def checkpoint(self) -> None:
        """Make one checkpoint; returns when the secondary has loaded it. Raises as :meth:`synchronise`."""
        self._start_epoch()
        self._run(Event.CHECKPOINT_DUE)

    def wait(self, seconds: float) -> bool:
        """Between checkpoints: wait so long. True: a checkpoint was asked for before that (``due_fd``).

        Raises ChannelLost when the secondary goes, ProtocolError when it speaks, Interrupted.
        """
        ready = wait_ready((self.sock.fileno(), self._due_fd), seconds, wake_fd=self._wake_fd)
        if self.sock.fileno() in ready:
            self._buffer.set_deadline("message", self.settings.deadlines.message_s)
            self._read()
        return self._due_fd in ready

    def end(self, event: Event) -> State:
        """The connection is over by ``event``, or by the protocol error that was just raised (``Event.FAILED``).

        What was harvested is given back, the channel is gone; the VM runs on only where the table allows it.
        """
        with contextlib.suppress(ColoError):
            self.machine.feed(event)
        for action in self.machine.actions if self.machine.over else ():
            if action is Action.RESUME:
                self._handle.resume()
        self.release()
        return self.machine.state

    def release(self) -> None:
        """Give dirty bits back and drop the channel. Any number of times."""
        self._pages.give_back()
        self._pages.drop_copy()
        if self._outbox is not None:
            self._outbox.unseal()
        with contextlib.suppress(ColoError, RuntimeError):
            self._encoder.close()
        self.sock.abort()
        self.sock.close()

    # -- events in, actions out

    def _start_epoch(self) -> None:
        self._times = CheckpointTimes(begin=time.monotonic_ns())
        self._pause_ms = 0.0
        self._copied_bytes = 0
        self._stream_start = self._encoder.stats.sent_bytes
        self._epoch_end_ns = self._times.begin + int(self.settings.deadlines.epoch_s * 1e9)

    def _run(self, event: Event) -> None:
        self._feed(event)
        while self.machine.state is not State.RUNNING:
            seconds = self.settings.deadlines.of(self.machine.facts)
            self._buffer.set_deadline(self.machine.phase.name.lower(), seconds)
            self._read()
        self._report(full_copy=event is Event.CONNECTED)
        if event is Event.CONNECTED:
            self._begin_to_compress()
        elif self._codec is not None:
            self._codec.set_link(self.rate.bytes_per_s)
        if self.settings.copy:
            self._pages.stable.make_ready(self._pages.total_bytes)

    def _begin_to_compress(self) -> None:
        """With what both ends have: from the first checkpoint on, as nothing was agreed before the first copy."""
        methods = [name.lower() for name in ("LZ4", "ZSTD", "MASK") if Extension[name] in self.agreed]
        if not methods:
            return
        self._codec = AdaptiveCodec(self.rate.bytes_per_s, methods=methods)
        if self.settings.copy:
            self._pages.codec = self._codec
        else:
            self._encoder.close()
            self._encoder = PageEncoder(self.sock.fileno(), wake_fd=self._wake_fd, codec=self._codec)

    def _feed(self, event: Event) -> None:
        pending: Event | None = event
        while pending is not None:
            before = self.machine.committed
            actions = self.machine.feed(pending)
            if self.machine.committed != before:
                self.acknowledged = self.machine.committed
                self._pages.commit()
                if event is Event.CHECKPOINT_READY:
                    self._release_output()  # what checkpoint 0 covers
            pending = None
            for action in actions:
                pending = self._carry_out(action) or pending

    def _read(self) -> None:
        if self.machine.reads is Reads.RETURN_PATH:
            position = self._buffer.position
            raw = b""
            while missing := return_path_missing_bytes(raw):
                raw += self._buffer.read_exact(missing)
            self._feed(return_path_event(decode_return_path(raw, offset=position)))
            return
        message = read_message(self._buffer)
        if message.kind is ColoMessage.EXTENSIONS and self.machine.dialect.extended:
            self._agree(message.value or 0)
        self._feed(message_event(message.kind))

    def _agree(self, taken: int) -> None:
        """The secondary's answer to what was offered."""
        if taken & ~int(self.settings.extensions):
            raise StreamError(
                f"the secondary takes extensions {taken:#x} of the offered {int(self.settings.extensions):#x}",
                where="EXTENSIONS", offset=self._buffer.position - 8, value=taken)
        self.agreed = Extension(taken)
        self.machine.dialect.digest = Extension.DIGEST in self.agreed

    def _carry_out(self, action: Action) -> Event | None:
        if action in MESSAGES:
            self._send(encode_message(MESSAGES[action]), flush=action is not Action.SEND_VMSTATE_SEND)
        elif action in COMMANDS:
            self._send(COMMANDS[action])
        elif action is Action.SEND_HEADER:
            offered = int(self.settings.extensions) if self.machine.dialect.extended else None
            self._send(file_header() + configuration(self.settings.machine, extensions=offered))
        elif action is Action.SEND_INITIAL_RAM:
            return self._send_initial_ram()
        elif action is Action.SUSPEND:
            return self._suspend()
        elif action is Action.SAVE:
            return self._save()
        elif action is Action.SEND_INITIAL_END:
            return self._send_initial_end()
        elif action is Action.SEND_RAM:
            return self._send_ram()
        elif action is Action.SEND_DIGEST:
            self._digest.update(self._state)
            self._send(encode_message(ColoMessage.CHECKPOINT_DIGEST, self._digest.value))
        elif action is Action.SEND_VMSTATE_SIZE:
            self._send(encode_message(ColoMessage.VMSTATE_SIZE, len(self._state)))
        elif action is Action.SEND_DEVICE:
            self._send(self._state, flush=True)
            self._times.sent = time.monotonic_ns()
            return Event.DEVICE_SENT
        elif action is Action.RESUME:
            self._resume()
        elif action is Action.RELEASE_PACKETS:
            self._release_output()
        return None

    def _release_output(self) -> None:
        if self._outbox is None:
            return
        try:
            self._outbox.release()
        except Exception as error:  # the user's own function: what it refused waits for the next checkpoint
            self._on_notice(f"an item of the outbox was not delivered: {type(error).__name__}: {error}")

    def _send(self, data: bytes, *, flush: bool = False) -> None:
        self._encoder.write(data, self._deadline_ns(), flush)

    def _deadline_ns(self) -> int:
        """A checkpoint's own; the first copy has as long again for each round."""
        return self._epoch_end_ns

    # -- the initial stream

    def _send_initial_ram(self) -> Event:
        """Rounds over RAM while the VM runs, until few pages are left. See :attr:`PrimaryPages.needs_pause`."""
        if self._pages.needs_pause and not self._handle.paused:
            self._handle.pause()
        self._pages.take_all()
        self._send(ram_start_section(RAM_SECTION_ID, self._pages.infos))
        last = None
        for _ in range(self.settings.initial_rounds):
            self._send_round(section_part(RAM_SECTION_ID))
            if self._handle.paused:
                break
            left = self._next_round()
            if left <= self.settings.initial_rest_pages or (last is not None and left > last // 2):
                break  # few, or more are written than sent: more rounds would not help
            last = left
        return Event.RAM_CONVERGED

    def _next_round(self) -> int:
        """The pages sent are the receiver's, but not committed: nothing is forgotten, as a cut means a full copy."""
        self._pages.commit()
        return self._pages.harvest()

    def _send_round(self, head: bytes) -> None:
        self._epoch_end_ns = time.monotonic_ns() + int(self.settings.deadlines.epoch_s * 1e9)
        self._send(head)
        self._pages.encode(self._encoder, epoch=self.machine.epoch, deadline_ns=self._deadline_ns())
        self._encoder.end_section(self._deadline_ns(), flush=False)
        self._send(section_footer(RAM_SECTION_ID), flush=True)

    def _send_initial_end(self) -> Event:
        self._send_round(section_end(RAM_SECTION_ID))
        self._send(self._state)
        self._send(describe(self._form.sections_of(self._state)), flush=True)
        self._encoder.close()
        self._times.sent = time.monotonic_ns()
        return Event.INITIAL_SENT

    # -- one checkpoint

    def _suspend(self) -> Event:
        if self._precopy is not None and self.machine.state is State.STOPPING:
            self._times.ahead = time.monotonic_ns()
            self._precopy.copy(self._pages, self.machine.epoch)
        if not self._handle.paused:
            self._handle.pause()
        self._times.paused = self._handle.paused_ns
        if self._outbox is not None:
            # From the first checkpoint on there is one who could take over.
            self._outbox.bypass(False)
            self._outbox.seal()
        self._times.stopped = time.monotonic_ns()
        return Event.VM_STOPPED

    def _save(self) -> Event:
        """The state first: what saving it writes to memory, though it should not, is then harvested with the rest."""
        self._state = self._form.encode(self._handle.save())
        self._times.saved = time.monotonic_ns()
        # What is owned from before the pause and what was written since belong together.
        self._paused_pages = self._pages.harvest_more()
        self._times.harvested = time.monotonic_ns()
        if self.settings.copy and self.machine.state is State.SAVING:
            self._copied_bytes = self._pages.copy(self.machine.epoch)
        self._times.copied = time.monotonic_ns()
        return Event.STATE_SAVED

    def _resume(self) -> None:
        if self._handle.paused:
            began_ns = self._handle.paused_ns
            self._handle.resume()
            self._times.resumed = time.monotonic_ns()
            self._pause_ms = (self._times.resumed - began_ns) / 1e6

    def _send_ram(self) -> Event:
        self._times.sending = time.monotonic_ns()
        self._dirty_pages = self._pages.owned_pages()
        head = ram_start_section(RAM_SECTION_ID, self._pages.infos) + section_end(RAM_SECTION_ID)
        self._digest.reset()
        if self.settings.copy:
            if self.machine.dialect.digest:
                self._pages.stable.digest(self._digest)
            self._send(head, flush=True)
            self._pages.stable.send(self.sock, deadline_ns=self._deadline_ns(), wake_fd=self._wake_fd)
        else:
            self._send(head)
            self._encoder.set_digest(self._digest if self.machine.dialect.digest else None)
            self._pages.encode(self._encoder, epoch=self.machine.epoch, deadline_ns=self._deadline_ns())
        self._encoder.end_section(self._deadline_ns(), flush=False)
        self._send(section_footer(RAM_SECTION_ID) + end_of_stream())
        if not self.settings.copy:
            self._encoder.flush(self._deadline_ns())
            self._encoder.close()
        return Event.RAM_SENT

    def _report(self, *, full_copy: bool) -> None:
        times = self._times.parts_ms(time.monotonic_ns())
        stream_bytes = self._encoder.stats.sent_bytes - self._stream_start + self._copied_bytes
        if not full_copy:
            self.rate.took(stream_bytes, times["transfer_ms"])
            if self._precopy is not None:
                self._precopy.took(self._paused_pages, self._dirty_pages)
        pages, record_bytes = self._records.since(self._pages.stable.encoders if self._by_copy else [self._encoder])
        self._on_checkpoint(PrimaryReport(
            connection=self.connection,
            number=self.machine.committed or 0,
            full_copy=full_copy,
            pause_ms=self._pause_ms,
            dirty_pages=self._dirty_pages,
            precopied_pages=self._precopy.pages if self._precopy is not None and not full_copy else 0,
            paused_pages=self._paused_pages,
            stream_bytes=stream_bytes,
            device_bytes=len(self._state),
            pages=pages,
            record_bytes=record_bytes,
            **times,
        ))

    @property
    def _by_copy(self) -> bool:
        """Whether this checkpoint's pages are sent from a copy: the first copy's are not."""
        return self.settings.copy and self._copied_bytes > 0


def event_of(error: BaseException) -> Event:
    """How the protocol's table calls an error that ended a connection."""
    if isinstance(error, DeadlineExceeded):
        return Event.DEADLINE
    return Event.CHANNEL_LOST if isinstance(error, ChannelLost | OSError) else Event.FAILED
