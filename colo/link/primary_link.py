"""One connection of a primary: the VM's state is sent, checkpoint after checkpoint.

The protocol's table says what comes next; here its actions are carried out, and what the secondary answers is turned into
its events. What the table asks of the whole session (the arbiter, a VM that runs alone or stands still for good) the session
brings along.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from colo._fast.kernels.digest import StreamDigest
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pageencoder import PageEncoder
from colo.abc import Transport
from colo.epoch.checkpoint_times import CheckpointTimes, RecordCounts
from colo.epoch.copy_ahead import CopyAhead
from colo.epoch.participants import Participants
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import ChannelLost, DeadlineExceeded, ProtocolError, StreamError
from colo.figures.primary_report import PrimaryReport
from colo.link.link_rate import LinkRate
from colo.link.primary_settings import COMMANDS, MESSAGES, LinkSettings
from colo.link.reading import read_message, read_return_path
from colo.protocol import Action, Event, Machine, Reads, Role, State, encode_message, message_event, return_path_event
from colo.protocol.states import NOTHING_SENT_WHOLE
from colo.stream.writer import (
    configuration,
    end_of_stream,
    file_header,
    ram_start_section,
    section_end,
    section_footer,
    section_part,
)
from colo.vm.handle import VmHandle
from colo.vm.saved_state import StateForm, describe
from colo.wake import wait_ready
from colo.wire import RAM_SECTION_ID, ColoMessage, Extension

Handler = Callable[[], Event | None]
"""Carries an action out; an event that follows from it is fed when the actions beside it are done."""


class PrimaryLink:
    """Leads the secondary at the other end of ``sock``, a connection that is the link's from now on.

    ``pages`` are sent here, and are among the ``participants``, which hear of each epoch. ``committed``: the highest
    checkpoint that a secondary of this generation may hold, None: none. ``actions`` are those that the session carries out:
    ARBITRATE, RUN_ALONE, RELEASE_ALL, DROP_ALL, STOP_VM. One thread; ``wake_fd`` becoming readable ends any wait with
    Interrupted.
    """

    def __init__(
        self,
        sock: Transport,
        handle: VmHandle,
        pages: PrimaryPages,
        form: StateForm,
        settings: LinkSettings,
        *,
        participants: Participants,
        actions: Mapping[Action, Handler],
        committed: int | None = None,
        connection: int = 0,
        wake_fd: int = -1,
        due_fd: int = -1,
        on_checkpoint: Callable[[PrimaryReport], None] = lambda report: None,
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
        self._participants = participants
        self._actions: dict[Action, Handler] = {action: partial(method, self) for action, method in ACTIONS.items()}
        self._actions |= actions
        self._wake_fd = wake_fd
        self._due_fd = due_fd
        self._on_checkpoint = on_checkpoint
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
        ahead = settings.copy and settings.copy_ahead and not pages.needs_pause
        self._copy_ahead = CopyAhead() if ahead else None
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
        self._make(Event.CONNECTED)

    def checkpoint(self) -> None:
        """Make one checkpoint; returns when the secondary has loaded it. Raises as :meth:`synchronise`."""
        self._make(Event.CHECKPOINT_DUE)

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
        """``event`` ends the connection, or says how one that is over goes on: what the table asks for is carried out, and
        nothing else. Any number of times. Returns where this side stands then.

        Raises VmError when the VM cannot be resumed or paused.
        """
        self.feed(event)
        return self.machine.state

    # -- events in, actions out

    def feed(self, event: Event) -> None:
        """Tell the machine, and carry out what it asks for, in its order; so for the events that follow from that.

        Raises ProtocolError, with what the table then asks for carried out too.
        """
        pending: Event | None = event
        while pending is not None:
            try:
                self.machine.feed(pending)
            except ProtocolError:
                for action in self.machine.actions:
                    self._actions[action]()
                raise
            pending = None
            for action in self.machine.actions:
                pending = self._actions[action]() or pending

    def _make(self, event: Event) -> None:
        """The checkpoint that ``event`` begins, up to its report."""
        self._times = CheckpointTimes(begin=time.monotonic_ns(), stream_start=self._encoder.stats.sent_bytes)
        self._begin_clock()
        self.feed(event)
        while self.machine.state is not State.RUNNING:
            if self.machine.over:
                raise ChannelLost("the secondary gave up: it could not take the stream")
            self._buffer.set_deadline(self.machine.phase.name.lower(), self.settings.deadlines.of(self.machine.facts))
            self._read()
        self._report(full_copy=event is Event.CONNECTED)
        if event is Event.CONNECTED:
            self._begin_to_compress()
        elif self._codec is not None:
            self._codec.set_link(self.rate.bytes_per_s)
        if self.settings.copy:
            self._pages.stable.make_ready(self._pages.total_bytes)

    def _begin_clock(self) -> None:
        """A checkpoint has so long; the first copy has as long again for each round."""
        self._epoch_end_ns = time.monotonic_ns() + int(self.settings.deadlines.epoch_s * 1e9)

    def _read(self) -> None:
        READERS[self.machine.reads](self)

    def _read_return_path(self) -> None:
        self.feed(return_path_event(read_return_path(self._buffer)))

    def _read_message(self) -> None:
        message = read_message(self._buffer)
        if message.kind is ColoMessage.EXTENSIONS and self.machine.dialect.extended:
            self._agree(message.value or 0)
        self.feed(message_event(message.kind))

    def _agree(self, taken: int) -> None:
        """The secondary's answer to what was offered."""
        if taken & ~int(self.settings.extensions):
            raise StreamError(
                f"the secondary takes extensions {taken:#x} of the offered {int(self.settings.extensions):#x}",
                where="EXTENSIONS", offset=self._buffer.position - 8, value=taken)
        self.agreed = Extension(taken)
        self.machine.dialect.digest = Extension.DIGEST in self.agreed

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

    def _send(self, data: bytes | memoryview, *, flush: bool = False) -> None:
        self._encoder.write(data, self._epoch_end_ns, flush)

    def _send_message(self, action: Action) -> None:
        self._send(encode_message(MESSAGES[action]), flush=action is not Action.SEND_VMSTATE_SEND)

    def _send_command(self, action: Action) -> None:
        self._send(COMMANDS[action])

    # -- the initial stream

    def _send_header(self) -> None:
        offered = int(self.settings.extensions) if self.machine.dialect.extended else None
        self._send(file_header() + configuration(self.settings.machine, extensions=offered))

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
            left = self._pages.next_round()
            if left <= self.settings.initial_rest_pages or (last is not None and left > last // 2):
                break  # few, or more are written than sent: more rounds would not help
            last = left
        return Event.RAM_CONVERGED

    def _send_round(self, head: bytes) -> None:
        self._begin_clock()
        self._send(head)
        self._pages.encode(self._encoder, epoch=self.machine.epoch, deadline_ns=self._epoch_end_ns)
        self._encoder.end_section(self._epoch_end_ns, flush=False)
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
        if self._copy_ahead is not None and self.machine.state is State.STOPPING:
            self._times.ahead = time.monotonic_ns()
            self._copy_ahead.copy(self._pages, self.machine.epoch)
        if not self._handle.paused:
            self._handle.pause()
        self._times.paused = self._handle.paused_ns
        self._times.stopped = time.monotonic_ns()
        return Event.VM_STOPPED

    def _save(self) -> Event:
        """The state first: what saving it writes to memory, though it should not, or lets out, is then of this epoch too."""
        self._state = self._form.encode(self._handle.save())
        self._times.saved = time.monotonic_ns()
        self._participants.seal(self.machine.epoch)
        self._times.paused_pages = self._pages.found
        self._times.harvested = time.monotonic_ns()
        if self.settings.copy and self.machine.state is State.SAVING:
            self._pages.copy(self.machine.epoch)
        self._times.copied = time.monotonic_ns()
        return Event.STATE_SAVED

    def _resume(self) -> None:
        if self._handle.paused:
            began_ns = self._handle.paused_ns
            self._handle.resume()
            self._times.resumed = time.monotonic_ns()
            self._times.pause_ms = (self._times.resumed - began_ns) / 1e6

    def _send_ram(self) -> Event:
        """From the copy, or from memory that stands still."""
        self._times.sending = time.monotonic_ns()
        self._times.dirty_pages = self._pages.owned_pages()
        digested = self.machine.dialect.digest
        self._digest.reset()
        self._send(ram_start_section(RAM_SECTION_ID, self._pages.infos) + section_end(RAM_SECTION_ID))
        if self.settings.copy:
            if digested:
                self._pages.stable.digest(self._digest)
            with self._pages.stable.records() as records:
                self._send(records, flush=True)
        else:
            self._encoder.set_digest(self._digest if digested else None)
            self._pages.encode(self._encoder, epoch=self.machine.epoch, deadline_ns=self._epoch_end_ns)
        self._encoder.end_section(self._epoch_end_ns, flush=False)
        self._send(section_footer(RAM_SECTION_ID) + end_of_stream(), flush=not self.settings.copy)
        if not self.settings.copy:
            self._encoder.close()
        return Event.RAM_SENT

    def _send_digest(self) -> None:
        self._digest.update(self._state)
        self._send(encode_message(ColoMessage.CHECKPOINT_DIGEST, self._digest.value))

    def _send_vmstate_size(self) -> None:
        self._send(encode_message(ColoMessage.VMSTATE_SIZE, len(self._state)))

    def _send_device(self) -> Event:
        self._send(self._state, flush=True)
        self._times.sent = time.monotonic_ns()
        return Event.DEVICE_SENT

    def _release_epoch(self) -> None:
        number = self.machine.committed
        assert number is not None
        self.acknowledged = number
        self._participants.release(number)

    def _report(self, *, full_copy: bool) -> None:
        pages, record_bytes = self._records.since(
            self._pages.stable.encoders if self.settings.copy and not full_copy else [self._encoder])
        report = self._times.report(
            self.connection, self.machine.committed or 0, full_copy=full_copy,
            ahead_pages=self._copy_ahead.pages if self._copy_ahead is not None and not full_copy else 0,
            stream_bytes=self._encoder.stats.sent_bytes - self._times.stream_start, device_bytes=len(self._state),
            pages=pages, record_bytes=record_bytes)
        if not full_copy:
            self.rate.took(report.stream_bytes, report.transfer_ms)
            if self._copy_ahead is not None:
                self._copy_ahead.took(report.paused_pages, report.dirty_pages)
        self._on_checkpoint(report)

    # -- the end

    def _take_back_epoch(self) -> None:
        self._participants.take_back(self.machine.epoch)

    def _abort_channel(self) -> None:
        with contextlib.suppress(RuntimeError):  # amid a call that never returns: its memory stays exported
            self._encoder.close()
        self.sock.abort()
        self.sock.close()


READERS: dict[Reads, Callable[[PrimaryLink], None]] = {
    Reads.RETURN_PATH: PrimaryLink._read_return_path,
    Reads.MESSAGE: PrimaryLink._read_message,
}
"""What reads the secondary's next bytes. Where nothing is to be read (:attr:`StateFacts.reads`), this side is at work."""

ACTIONS: dict[Action, Callable[[PrimaryLink], Event | None]] = {
    Action.SEND_HEADER: PrimaryLink._send_header,
    **{action: partial(PrimaryLink._send_message, action=action) for action in MESSAGES},
    **{action: partial(PrimaryLink._send_command, action=action) for action in COMMANDS},
    Action.SEND_INITIAL_RAM: PrimaryLink._send_initial_ram,
    Action.SEND_INITIAL_END: PrimaryLink._send_initial_end,
    Action.SUSPEND: PrimaryLink._suspend,
    Action.SAVE: PrimaryLink._save,
    Action.RESUME: PrimaryLink._resume,
    Action.SEND_RAM: PrimaryLink._send_ram,
    Action.SEND_DIGEST: PrimaryLink._send_digest,
    Action.SEND_VMSTATE_SIZE: PrimaryLink._send_vmstate_size,
    Action.SEND_DEVICE: PrimaryLink._send_device,
    Action.RELEASE_EPOCH: PrimaryLink._release_epoch,
    Action.TAKE_BACK_EPOCH: PrimaryLink._take_back_epoch,
    Action.ABORT_CHANNEL: PrimaryLink._abort_channel,
}
"""What a connection carries out of the primary's rows."""


def event_of(error: BaseException) -> Event:
    """How the protocol's table calls an error that ended a connection."""
    if isinstance(error, DeadlineExceeded):
        return Event.DEADLINE
    return Event.CHANNEL_LOST if isinstance(error, ChannelLost | OSError) else Event.FAILED
