"""One connection of a secondary: a primary's stream is followed, checkpoint after checkpoint.

The protocol's table says what comes next and what to do about it; here bytes are turned into its events and its
actions are carried out. What a connection has not committed ends with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from colo._fast.kernels.digest import StreamDigest
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo.abc import Transport
from colo.epoch.committed import Committed
from colo.errors import (
    ChannelLost,
    DeadlineExceeded,
    Interrupted,
    LimitExceeded,
    ProtocolError,
    StreamError,
)
from colo.figures.dirty_heat import DirtyHeat
from colo.figures.secondary_report import CheckpointReport
from colo.link.extensions import served
from colo.link.initial_stream import InitialStream
from colo.link.reading import read_message
from colo.memory import BlockImage
from colo.protocol import (
    Action,
    Event,
    Machine,
    Mode,
    Phase,
    Reads,
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
    parse_mem_size,
)
from colo.wire import TARGET_PAGE_BYTES, ColoMessage, Command, Extension, ReturnPath, SectionType

MESSAGES = {
    Action.SEND_CHECKPOINT_READY: ColoMessage.CHECKPOINT_READY,
    Action.SEND_CHECKPOINT_REPLY: ColoMessage.CHECKPOINT_REPLY,
    Action.SEND_VMSTATE_RECEIVED: ColoMessage.VMSTATE_RECEIVED,
    Action.SEND_VMSTATE_LOADED: ColoMessage.VMSTATE_LOADED,
}
PREPARED_BYTES = 64 << 20
"""So much memory is kept ready for the first checkpoint's pages, or a quarter of RAM if that is less."""
COUNTS = ("zero_pages", "normal_pages", "xbzrle_pages", "xbzrle_bytes", "compressed_pages", "compressed_bytes")


class Follower:
    """Follows the primary at the other end of ``sock`` into ``image``.

    ``on_announced(configuration, blocks)`` is called when machine type and RAM blocks are known (a stand-by can be
    started and checked), ``on_commit(committed, report)`` after each commit is acknowledged. ``wake_fd`` becoming
    readable ends any wait. Threads: :meth:`run` in one, :meth:`settle` from anywhere after it returned.
    """

    def __init__(
        self,
        sock: Transport,
        image: BlockImage,
        *,
        deadlines: Deadlines,
        limits: StreamLimits,
        mode: Mode = Mode.EARLY,
        wake_fd: int = -1,
        on_announced: Callable[[Configuration, list[RamBlockInfo]], None] = lambda configuration, blocks: None,
        on_commit: Callable[[Committed, CheckpointReport], None] = lambda committed, report: None,
    ) -> None:
        self.sock = sock
        self.image = image
        self.deadlines = deadlines
        self.limits = limits
        self.machine = Machine(Role.SECONDARY, mode=mode)
        self.committed: Committed | None = None
        self.last_byte_ns = time.monotonic_ns()
        self.heat: DirtyHeat | None = None
        """Set to have the pages of each checkpoint counted by place."""
        self._on_announced = on_announced
        self._on_commit = on_commit
        self._buffer = ReadBuffer(sock.fileno(), wake_fd=wake_fd)
        self._staging = Staging(image.log_files())
        self._decoder = PageDecoder(self._staging, immediate=True)
        self._applier = ThreadPoolExecutor(1, thread_name_prefix="colo-apply")
        self._applying: Future[None] | None = None
        self._log_is_committed = False
        self._configuration: Configuration | None = None
        self._staged_blocks = image.blocks
        self._announced = False
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
        self._times: dict[str, int] = {}
        self._epoch_end_ns = 0
        self._stream_start = 0
        self._last_commit_ns = 0

    @property
    def staged_high_water_bytes(self) -> int:
        """The most stream bytes one checkpoint has held."""
        return self._staging.high_water_bytes

    # -- the connection

    def run(self) -> None:
        """Follow until the connection ends. Always raises: the error says how it ended."""
        try:
            self._feed(Event.CONNECTED)
            while True:
                self._step()
        except Interrupted:
            raise  # the request behind it is the session's: it tells the machine
        except DeadlineExceeded:
            self._end(Event.DEADLINE)
            raise
        except ChannelLost:
            self._end(Event.CHANNEL_LOST)
            raise
        except BaseException as error:
            if not isinstance(error, ProtocolError):  # that one the machine has raised itself, and moved on
                self._end(Event.FAILED)
            self._drop()
            raise
        finally:
            self.last_byte_ns = time.monotonic_ns()

    def abandon(self) -> None:
        """The connection is not to be used any more (a takeover is under way): drop what is not committed."""
        if not self.machine.over:
            self._end(Event.CHANNEL_LOST)
        self._drop()

    def settle(self) -> Committed | None:
        """Wait until the committed checkpoint is wholly in the image, and return it."""
        if self._applying is not None:
            self._applying.result()
            self._applying = None
        elif self._log_is_committed:
            self._staging.apply()  # cut after the commit, before anything else could be done
            self.image.replayed()
        self._log_is_committed = False
        return self.committed

    def close(self) -> None:
        """Close the connection and end the applying thread."""
        self.sock.close()
        self._applier.shutdown(wait=True)

    def _end(self, event: Event) -> None:
        """Tell the machine how the connection ended."""
        with contextlib.suppress(ProtocolError):
            self.machine.feed(event)
        self._drop()

    def _drop(self) -> None:
        """Forget what is staged, unless it is committed."""
        if not self._log_is_committed:
            self._staging.drop()

    def _step(self) -> None:
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
        reads = self.machine.reads
        if reads is Reads.MESSAGE:
            self._read_message()
        elif reads is Reads.DEVICE:
            self._device_state = self._buffer.read_exact(self._device_bytes)
            self._mark("device")
            self._feed(Event.DEVICE_RECEIVED)
        elif self.machine.state is State.RECEIVING_RAM:
            self._read_live_state()
        else:
            self._read_initial_stream()

    def _wait_for_message(self, seconds: float | None) -> None:
        """Between checkpoints: silence has its own deadline; the message's begins with its first byte."""
        self._buffer.set_deadline("idle", seconds)
        self._buffer.set_idle(None)
        self._buffer.at_end()

    def _read_message(self) -> None:
        message = read_message(self._buffer, device_limit_bytes=self.limits.device_state_bytes)
        if message.kind is ColoMessage.CHECKPOINT_DIGEST:
            self._expected_digest = message.value or 0
        elif message.kind is ColoMessage.VMSTATE_SIZE:
            self._device_bytes = message.value or 0
        elif message.kind is ColoMessage.CHECKPOINT_REQUEST:
            self._epoch_end_ns = time.monotonic_ns() + int(self.deadlines.epoch_s * 1e9)
        elif message.kind is ColoMessage.VMSTATE_SEND:
            self._times = {"begin": time.monotonic_ns()}
        self._feed(message_event(message.kind))

    # -- events in, actions out

    def _feed(self, event: Event) -> None:
        """Tell the machine, and do what it asks, in its order; messages leave together, before anything slow."""
        pending: Event | None = event
        while pending is not None:
            actions = self.machine.feed(pending)
            pending = None
            for action in actions:
                if action in MESSAGES:
                    self._out += encode_message(MESSAGES[action])
                elif action is Action.SEND_PONG:
                    self._out += encode_return_path(ReturnPath.PONG, self._ping)
                elif action is Action.SEND_EXTENSIONS:
                    self._out += encode_message(ColoMessage.EXTENSIONS, int(self.agreed))
                elif action is Action.SEND_SHUT:
                    self._out += encode_return_path(ReturnPath.SHUT, 0)
                else:
                    self._flush()
                    pending = self._carry_out(action) or pending
            self._flush()

    def _carry_out(self, action: Action) -> Event | None:
        if action is Action.VALIDATE:
            return self._validate()
        if action is Action.COMMIT:
            return self._commit()
        if action is Action.LOAD:
            return self._load()
        if action is Action.RECEIVE_RAM:
            self._begin_staging()
        return None  # RECEIVE_*: the next step reads

    def _flush(self) -> None:
        if not self._out:
            return
        self.sock.send(self._out, timeout_s=self.deadlines.message_s, phase="message")
        self._out.clear()

    # -- the initial stream

    def _read_initial_stream(self) -> None:
        """The ordinary migration stream. Pages go straight into the image: there is no committed state to keep."""
        initial = InitialStream(
            self._buffer, self._decoder, self.image, deadlines=self.deadlines, limits=self.limits,
            on_opened=self._opened, on_command=self._take_command, on_announced=self._on_announced,
        )
        device_state = initial.read()
        self._staged_blocks = initial.blocks
        self._live_sections = initial.live_sections
        self._device_state = device_state.blob
        self._device_check = DeviceCheck(device_state.sections, self.limits)
        self._feed(Event.INITIAL_STAGED)

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

    def _decode(self, section: LiveSection) -> None:
        while (total := self._decoder.decode(self._buffer)) != EOS:
            if section.type is not SectionType.START or self._announced:
                raise StreamError(
                    "a second MEM_SIZE, or one outside the section's START", where="ram section",
                    offset=self._buffer.position - 8, value=total,
                )
            if self._staging.records:
                raise StreamError(
                    "MEM_SIZE behind pages of the same checkpoint", where="ram section",
                    offset=self._buffer.position - 8, value=total,
                )
            infos = parse_mem_size(self._buffer, total, limits=self.limits)
            self._staged_blocks = self.image.announce((info.idstr, info.used_length) for info in infos)
            self._decoder.set_blocks(self._staged_blocks)
            self._announced = True
        if not self._announced and section.type is SectionType.START:
            raise StreamError("pages without MEM_SIZE before them", where="ram section", offset=section.offset)

    # -- one checkpoint

    def _begin_staging(self) -> None:
        # The log of the checkpoint before must be in the image before its arena is used again.
        self.settle()
        self._decoder.immediate = False
        self._digest.reset()
        self._decoder.set_digest(self._digest if self.machine.dialect.digest else None)
        self._announced = False
        self._decoder.set_blocks(self.image.blocks)
        self._stream_start = self._buffer.position
        for block in self.image.blocks:
            block.clear_counts()

    def _read_live_state(self) -> None:
        ended = False
        for item in StreamReader.live_state(self._buffer, self.limits, started=self._live_sections):
            if isinstance(item, CommandItem):
                self._feed(command_event(item.command, item.payload))
            elif isinstance(item, LiveSection):
                self._decode(item)
                ended = ended or item.type in (SectionType.END, SectionType.PART)
            elif not isinstance(item, EndOfStream):
                raise StreamError(
                    "device sections among a checkpoint's live state", where="stream", offset=item.offset)
        if not ended:
            raise StreamError(
                "a checkpoint's live state without a whole ram section", where="ram section",
                offset=self._buffer.position,
            )
        self._mark("ram")
        self._feed(Event.RAM_STAGED)

    def _mark(self, name: str) -> None:
        self._times[name] = time.monotonic_ns()

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
        self._staging.reserve()
        assert self._configuration is not None
        self.image.prepare(
            self.machine.epoch, self._configuration.machine, next(iter(self._live_sections)), self._device_state,
            self._staged_blocks)
        return Event.VALIDATED

    def _commit(self) -> Event:
        """The point at which the checkpoint becomes the committed one. Its pages are the staged log from here on."""
        assert self._configuration is not None
        self.image.commit(self._staged_blocks, self._staging.extent)
        self._log_is_committed = True
        self.committed = Committed(
            self.machine.epoch, self._configuration, next(iter(self._live_sections)), self._device_state,
            tuple(self._staged_blocks), time.monotonic_ns(),
        )
        return Event.COMMITTED

    def _load(self) -> Event | None:
        """Replay the committed checkpoint's pages onto the image; the primary runs on meanwhile (mode early)."""
        self._mark("acknowledged")
        self._applying = self._applier.submit(self._apply, first=self.machine.epoch == 1)
        self._report()
        if self.machine.mode is Mode.EARLY:
            return None
        self.settle()
        return Event.APPLIED

    def _apply(self, *, first: bool) -> None:
        if self.heat is not None and not first:
            self.heat.add(self.image.blocks, self._staging)
        self._staging.apply()
        self.image.replayed()
        if first:
            # In the first checkpoint, too, a primary is not to wait for memory.
            self._staging.begin(self.image.blocks)
            total = sum(block.pages for block in self.image.blocks) * TARGET_PAGE_BYTES
            self._staging.prepare(min(PREPARED_BYTES, total // 4))

    def _report(self) -> None:
        assert self.committed is not None
        at, t = self.committed.at_ns, self._times
        begin = t.get("begin", at)
        ram, device = t.get("ram", begin), t.get("device", begin)
        totals = {name: sum(block.counts[name] for block in self.committed.blocks) for name in COUNTS}
        report = CheckpointReport(
            number=self.committed.number,
            interval_ms=(at - self._last_commit_ns) / 1e6 if self._last_commit_ns else 0.0,
            held_ms=(t["acknowledged"] - begin) / 1e6,
            ram_ms=(ram - begin) / 1e6,
            device_ms=(device - ram) / 1e6,
            validate_ms=(at - device) / 1e6,
            stream_bytes=self._buffer.position - self._stream_start,
            device_bytes=len(self.committed.device_state),
            **totals,
        )
        self._last_commit_ns = at
        self._on_commit(self.committed, report)
