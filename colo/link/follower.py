"""One connection of a secondary: a primary's stream is followed, checkpoint after checkpoint.

The protocol's table says what comes next and what to do about it; here bytes are turned into its events (:data:`READERS`) and
its actions are carried out (:data:`HANDLERS`). A connection is a guest: what it has not committed ends with it, what it has
is the session's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from colo._fast.kernels.digest import StreamDigest
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import PageDecoder
from colo.abc import Transport
from colo.epoch.committed import Committed
from colo.epoch.last_committed import LastCommitted
from colo.epoch.ram_sink import RamSink
from colo.epoch.received_times import ReceivedTimes
from colo.errors import (
    ChannelLost,
    DeadlineExceeded,
    Interrupted,
    LimitExceeded,
    ProtocolError,
    StreamError,
)
from colo.figures.secondary_report import CheckpointReport
from colo.link.endings import Handlers, carry_out, end_by
from colo.link.extensions import served
from colo.link.initial_stream import InitialStream, RamSections
from colo.link.reading import read_message
from colo.protocol import (
    Action,
    Event,
    Machine,
    Mode,
    Phase,
    Role,
    State,
    command_event,
    encode_message,
    encode_return_path,
    message_event,
)
from colo.protocol.deadlines import Deadlines
from colo.stream import (
    CommandItem,
    Configuration,
    DeviceCheck,
    EndOfStream,
    LiveSection,
    RamBlockInfo,
    StreamLimits,
    StreamReader,
)
from colo.wire import ColoMessage, Command, Extension, ReturnPath, SectionType

MESSAGES = {
    Action.SEND_CHECKPOINT_READY: ColoMessage.CHECKPOINT_READY,
    Action.SEND_CHECKPOINT_REPLY: ColoMessage.CHECKPOINT_REPLY,
    Action.SEND_VMSTATE_RECEIVED: ColoMessage.VMSTATE_RECEIVED,
    Action.SEND_VMSTATE_LOADED: ColoMessage.VMSTATE_LOADED,
}


class Follower:
    """Follows the primary at the other end of ``sock``: pages are staged into ``ram``, and what is whole is committed to
    ``last``; both are the session's, and outlive this.

    ``on_announced(configuration, blocks)`` is called when machine type and RAM blocks are known (a stand-by can be
    started and checked), ``on_commit(committed, report)`` after each commit is acknowledged. ``wake_fd`` becoming
    readable ends any wait. One thread.
    """

    def __init__(
        self,
        sock: Transport,
        ram: RamSink,
        last: LastCommitted,
        *,
        deadlines: Deadlines,
        limits: StreamLimits,
        mode: Mode = Mode.EARLY,
        wake_fd: int = -1,
        on_announced: Callable[[Configuration, list[RamBlockInfo]], None] = lambda configuration, blocks: None,
        on_commit: Callable[[Committed, CheckpointReport], None] = lambda committed, report: None,
    ) -> None:
        self.sock = sock
        self.deadlines, self.limits = deadlines, limits
        self.machine = Machine(Role.SECONDARY, mode=mode)
        self.committed: Committed | None = None
        """The last that came over this connection."""
        self.last_byte_ns = time.monotonic_ns()
        self.endings: Handlers = {Action.DROP_EPOCH: self._drop, Action.ABORT_CHANNEL: self._abort}
        """Of a connection's end, what is done to the connection itself."""
        self._ram = ram
        self._last = last
        self._on_announced = on_announced
        self._on_commit = on_commit
        self._buffer = ReadBuffer(sock.fileno(), wake_fd=wake_fd)
        self._decoder = PageDecoder(ram.staging, immediate=True)
        self._sections = RamSections(
            self._buffer, self._decoder, ram.image, limits, staged=lambda: ram.staging.records)
        self._configuration: Configuration | None = None
        self._staged_blocks: list[RamBlock] = []
        self.agreed = Extension(0)
        """What was agreed on with a colo primary beyond QEMU's protocol."""
        self._digest = StreamDigest()
        self._expected_digest = 0
        self._device_state = b""
        self._device_check: DeviceCheck | None = None
        self._device_bytes = 0
        self._ping = 0
        self._out = bytearray()
        self._live_sections: Mapping[int, LiveSection] = {}
        self._times = ReceivedTimes()
        self._epoch_end_ns = 0
        self._stream_start = 0

    # -- the connection

    def run(self) -> None:
        """Follow until the connection ends. Always raises: the error says how it ended, and what the table asks for at this
        end is done, but after Interrupted: the request behind it is the session's, which says how it ends (:meth:`end`)."""
        try:
            self._feed(Event.CONNECTED)
            while True:
                self._step()
        except Interrupted:
            raise
        except BaseException as error:
            self.end(_event_of(error))
            raise
        finally:
            self.last_byte_ns = time.monotonic_ns()

    def end(self, event: Event) -> None:
        """The connection is over by ``event``. Any number of times: the first one tells."""
        if not self.machine.over:
            end_by(self.machine, event, self.endings)

    def close(self) -> None:
        """Close the connection. Any number of times."""
        self.sock.close()

    def _abort(self) -> None:
        self.sock.abort()
        self.sock.close()

    def _drop(self) -> None:
        """Forget what is staged, unless it is committed."""
        self._last.drop(self.machine.epoch)

    def _step(self) -> None:
        """Wait for what the state has come next, under its deadline, and read it."""
        facts = self.machine.facts
        seconds = self.deadlines.of(facts)
        if facts.phase is Phase.IDLE:
            self._wait_for_message(seconds)
            seconds = self.deadlines.message_s
        if facts.in_epoch and facts.phase is not Phase.MESSAGE:
            seconds = max(0.0, (self._epoch_end_ns - time.monotonic_ns()) / 1e9)
        self._buffer.set_deadline(facts.phase.name.lower(), seconds)
        progress = facts.phase in (Phase.INITIAL, Phase.RAM, Phase.DEVICE)
        self._buffer.set_idle(self.deadlines.progress_s if progress else None)
        READERS[self.machine.state](self)

    def _wait_for_message(self, seconds: float | None) -> None:
        """Between checkpoints: silence has its own deadline; the message's begins with its first byte."""
        self._buffer.set_deadline("idle", seconds)
        self._buffer.set_idle(None)
        self._buffer.at_end()

    # -- events in, actions out

    def _feed(self, event: Event) -> None:
        """Tell the machine, and do what it asks, in its order; messages leave together, before anything slow."""
        pending: Event | None = event
        while pending is not None:
            try:
                actions = self.machine.feed(pending)
            except ProtocolError:
                carry_out(self.machine.actions, self.endings)
                raise
            pending = None
            for action in actions:
                if action not in SENDS:
                    self._flush()
                pending = HANDLERS[action](self) or pending
            self._flush()

    def _flush(self) -> None:
        if not self._out:
            return
        self.sock.send(self._out, timeout_s=self.deadlines.message_s, phase="message")
        self._out.clear()

    def _say(self, message: ColoMessage) -> None:
        self._out += encode_message(message)

    def _say_extensions(self) -> None:
        self._out += encode_message(ColoMessage.EXTENSIONS, int(self.agreed))

    def _say_pong(self) -> None:
        self._out += encode_return_path(ReturnPath.PONG, self._ping)

    def _say_shut(self) -> None:
        self._out += encode_return_path(ReturnPath.SHUT, 0)

    # -- messages and device state

    def _read_message(self) -> None:
        message = read_message(self._buffer, device_limit_bytes=self.limits.device_state_bytes)
        if message.kind is ColoMessage.CHECKPOINT_DIGEST:
            self._expected_digest = message.value or 0
        elif message.kind is ColoMessage.VMSTATE_SIZE:
            self._device_bytes = message.value or 0
        elif message.kind is ColoMessage.CHECKPOINT_REQUEST:
            self._epoch_end_ns = time.monotonic_ns() + int(self.deadlines.epoch_s * 1e9)
        elif message.kind is ColoMessage.VMSTATE_SEND:
            self._times.begin()
        self._feed(message_event(message.kind))

    def _begin_device_state(self) -> None:
        self._device_state = b""  # what was there is of the checkpoint before

    def _read_device_state(self) -> None:
        self._device_state = self._buffer.read_exact(self._device_bytes)
        self._times.mark("device")
        self._feed(Event.DEVICE_RECEIVED)

    # -- the initial stream

    def _read_initial_stream(self) -> None:
        """The ordinary migration stream. Pages go straight into the image: there is no committed state to keep."""
        initial = InitialStream(
            self._buffer, self._decoder, self._ram.image, deadlines=self.deadlines, limits=self.limits,
            on_opened=self._opened, on_command=self._take_command, on_announced=self._on_announced,
        )
        device_state = initial.read()
        self._staged_blocks = initial.blocks
        self._live_sections = initial.live_sections
        self._device_state = device_state.blob
        self._device_check = DeviceCheck(device_state.sections, self.limits)
        self._feed(Event.INITIAL_STAGED)

    def _begin_first_copy(self) -> None:
        self._ram.begin_first_copy()

    def _opened(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._agree(configuration)
        self._feed(Event.STREAM_OPENED)

    def _take_command(self, item: CommandItem) -> None:
        if item.command is Command.PING:
            self._ping = item.value
        self._feed(command_event(item.command, item.payload))

    def _agree(self, configuration: Configuration) -> None:
        """Take what this side has of the extensions that a colo primary offers."""
        if configuration.extensions is None:
            return
        self.agreed = Extension(configuration.extensions & int(served()))
        self.machine.dialect.extended = True
        self.machine.dialect.digest = Extension.DIGEST in self.agreed
        if self.agreed & (Extension.LZ4 | Extension.ZSTD | Extension.MASK):
            self._decoder.set_codec(AdaptiveDecoder())

    # -- one checkpoint

    def _begin_staging(self) -> None:
        self._ram.begin()
        self._decoder.immediate = False
        self._digest.reset()
        self._decoder.set_digest(self._digest if self.machine.dialect.digest else None)
        self._sections.begin(self._ram.image.blocks)
        self._stream_start = self._buffer.position

    def _read_live_state(self) -> None:
        ended = False
        for item in StreamReader.live_state(self._buffer, self.limits, started=self._live_sections):
            if isinstance(item, CommandItem):
                self._feed(command_event(item.command, item.payload))
            elif isinstance(item, LiveSection):
                self._sections.decode(item)
                ended = ended or item.type in (SectionType.END, SectionType.PART)
            elif not isinstance(item, EndOfStream):
                raise StreamError(
                    "device sections among a checkpoint's live state", where="stream", offset=item.offset)
        if not ended:
            raise StreamError(
                "a checkpoint's live state without a whole ram section", where="ram section",
                offset=self._buffer.position,
            )
        self._staged_blocks = self._sections.blocks
        self._times.mark("ram")
        self._feed(Event.RAM_STAGED)

    def _validate(self) -> Event:
        """All that could refuse the checkpoint, before anything acknowledges it."""
        if len(self._device_state) > self.limits.device_state_bytes:
            raise LimitExceeded(
                f"{len(self._device_state)} bytes of device state", where="device state", value=len(self._device_state))
        assert self._device_check is not None
        self._device_check.verify(self._device_state)
        if self.committed is not None and self.machine.dialect.digest:
            self._digest.update(self._device_state)
            if self._digest.value != self._expected_digest:
                raise StreamError(
                    f"checkpoint {self.machine.epoch} was damaged on its way: its digest is {self._digest.value:032x}, the "
                    f"primary's {self._expected_digest:032x}", where="checkpoint", offset=self._buffer.position,
                    value=self.machine.epoch)
        assert self._configuration is not None
        self._last.prepare(Committed(
            self.machine.epoch, self._configuration, next(iter(self._live_sections)), self._device_state,
            tuple(self._staged_blocks), time.monotonic_ns()))
        return Event.VALIDATED

    def _commit(self) -> Event:
        """The point at which the checkpoint becomes the committed one. Its pages are the staged log from here on."""
        self.committed = self._last.commit()
        return Event.COMMITTED

    def _load(self) -> Event | None:
        """Replay the committed checkpoint's pages onto the image; the primary runs on meanwhile (mode early)."""
        assert self.committed is not None
        self._times.mark("acknowledged")
        self._ram.apply(first=self.committed.number == 0)
        self._on_commit(self.committed, self._times.report(self.committed, self._buffer.position - self._stream_start))
        if self.machine.mode is Mode.EARLY:
            return None
        self._ram.settle()
        return Event.APPLIED


def _event_of(error: BaseException) -> Event:
    """How the protocol's table calls an error that ended a connection."""
    if isinstance(error, DeadlineExceeded):
        return Event.DEADLINE
    return Event.CHANNEL_LOST if isinstance(error, ChannelLost) else Event.FAILED


READERS: dict[State, Callable[[Follower], None]] = {
    State.START: Follower._read_initial_stream,
    State.INITIAL_STREAM: Follower._read_initial_stream,
    State.IDLE: Follower._read_message,
    State.AWAIT_VMSTATE_SEND: Follower._read_message,
    State.RECEIVING_RAM: Follower._read_live_state,
    State.AWAIT_SIZE: Follower._read_message,
    State.RECEIVING_DEVICE: Follower._read_device_state,
}
"""What reads the next bytes, by the state that they come in. In the others nothing is read."""

SENDS: dict[Action, Callable[[Follower], Event | None]] = {
    **{action: partial(Follower._say, message=message) for action, message in MESSAGES.items()},
    Action.SEND_PONG: Follower._say_pong,
    Action.SEND_SHUT: Follower._say_shut,
    Action.SEND_EXTENSIONS: Follower._say_extensions,
}
HANDLERS: dict[Action, Callable[[Follower], Event | None]] = {
    **SENDS,
    Action.RECEIVE_INITIAL: Follower._begin_first_copy,
    Action.RECEIVE_RAM: Follower._begin_staging,
    Action.RECEIVE_DEVICE: Follower._begin_device_state,
    Action.VALIDATE: Follower._validate,
    Action.COMMIT: Follower._commit,
    Action.LOAD: Follower._load,
}
"""Who carries out what the table asks for while the connection lasts; returns the event that comes of it. Of its end:
:attr:`Follower.endings`, and the session."""
