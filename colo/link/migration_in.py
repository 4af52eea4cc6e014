"""The connection of a migration's destination: its stream is read into a VM's memory, its questions are answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from colo._fast.kernels.digest import StreamDigest
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import PageDecoder
from colo._fast.receive.staging import Staging
from colo.abc import Transport
from colo.errors import ChannelError, ProtocolError, StreamError
from colo.link.initial_stream import InitialStream
from colo.memory import BlockImage
from colo.protocol import encode_return_path
from colo.protocol.deadlines import Deadlines
from colo.protocol.messages import capability_behind
from colo.protocol.migration import Action, Event, MigrationMachine
from colo.protocol.migration.pings import command_event, hello_answer
from colo.stream import CommandItem, Configuration, StreamLimits
from colo.wire import DIGEST_BYTES, Command, ReturnPath


@dataclass(frozen=True, slots=True)
class Received:
    """A stream that came whole. ``device_state``: FULL sections up to their EOF."""

    configuration: Configuration
    device_state: bytes
    whole_ns: int
    """CLOCK_MONOTONIC, of its last byte."""


class MigrationIn:
    """Reads one migration from ``sock`` into ``image``. One thread.

    ``migration`` is this destination's place in the table (:mod:`colo.protocol.migration`), ``hear`` takes what the stream
    says; :attr:`HANDLERS` carries out what the table asks of a connection. They raise StreamError or ProtocolError for what
    the source may not send, Heard for what the table has to answer, and the channel's errors. ``check(configuration)`` may
    refuse it by raising. ``wake_fd`` becoming readable ends any wait.
    """

    def __init__(
        self, sock: Transport, image: BlockImage, migration: MigrationMachine, hear: Callable[[Event], None], *,
        deadlines: Deadlines, limits: StreamLimits, wake_fd: int, check: Callable[[Configuration], None],
    ) -> None:
        self.received: Received | None = None
        self.confirmed = False
        """The source was told that the VM runs here."""
        self._sock = sock
        self._migration = migration
        self._hear = hear
        self._check = check
        self._deadlines = deadlines
        self._buffer = ReadBuffer(sock.fileno(), wake_fd=wake_fd)
        self._decoder = PageDecoder(Staging(), immediate=True)
        self._ping = 0
        """The number of the last PING."""
        self._digest = StreamDigest()
        """Of what a colo source sent at last."""
        self._word = 0
        """What its last word begins with."""
        self._device_state = b""
        self._stream = InitialStream(
            self._buffer, self._decoder, image, deadlines=deadlines, limits=limits, on_opened=self._opened,
            on_command=self._obey,
            between_s=deadlines.idle_s if deadlines.idle_s is not None else deadlines.epoch_s,
        )

    @property
    def blocks(self) -> list[RamBlock]:
        """As the source announced them."""
        return self._stream.blocks

    @property
    def received_bytes(self) -> int:
        """Of the stream, up to now."""
        return self._buffer.position

    def say(self, kind: ReturnPath, value: int, *, must: bool = False) -> bool:
        """Speak on the return path; returns whether it was sent. ``must``: raises ChannelLost or
        DeadlineExceeded when it cannot be."""
        if not self._migration.return_path:
            return False
        try:
            self._sock.send(encode_return_path(kind, value), timeout_s=self._deadlines.message_s, phase="return path")
        except ChannelError:
            if must:
                raise
            return False
        return True

    # -- what the stream says

    def _opened(self, configuration: Configuration) -> None:
        self._check(configuration)
        self._hear(Event.STREAM_OPENED)

    def _obey(self, item: CommandItem) -> None:
        self._ping = item.value if item.command is Command.PING else 0
        event = command_event(item.command, self._ping)
        if event is not None:
            self._hear(event)
        elif item.command is Command.ENABLE_COLO:
            raise ProtocolError("the source wants to go on with COLO: it needs a secondary, not a destination",
                                got=item.command.name)
        else:
            raise ProtocolError(
                f"command {item.command.name} is not served here: switch the capability "
                f"{capability_behind(item.command, item.payload)} off",
                got=item.command.name, expected=("OPEN_RETURN_PATH", "PING", "SWITCHOVER_START"))

    # -- what the table asks for

    def _receive(self) -> Event:
        self._buffer.set_deadline("handshake", self._deadlines.handshake_s)
        self._buffer.set_idle(self._deadlines.progress_s)
        self._device_state = self._stream.read().blob
        return Event.STREAM_WHOLE

    def _send_pong(self) -> None:
        self.say(ReturnPath.PONG, self._ping, must=True)

    def _send_hello_pong(self) -> None:
        self.say(ReturnPath.PONG, hello_answer(arbiter=self._migration.arbiter), must=True)

    def _note_word(self) -> None:
        self._word = self._ping

    def _begin_digest(self) -> None:
        """The first round, the longest, has passed without."""
        self._digest.reset()
        self._decoder.set_digest(self._digest)

    def _receive_last_word(self) -> Event:
        self._digest.update(self._device_state)
        digest = self._digest.value
        offset = self._buffer.position
        self._buffer.set_deadline("last word", self._migration.facts.seconds(self._deadlines))
        word = self._buffer.read_u32()
        if word != self._word:
            raise StreamError(
                "the stream's end is not followed by the source's last word", where="stream", offset=offset, value=word)
        sent = int.from_bytes(self._buffer.read_exact(DIGEST_BYTES), "big")
        if sent != digest:
            raise StreamError(
                f"the stream was damaged on its way: its digest is {digest:032x}, the source's {sent:032x}",
                where="stream", offset=offset + 4, value=sent)
        return Event.LAST_WORD

    def _check_pages(self) -> None:
        whole_ns = time.monotonic_ns()
        for block in self.blocks:
            if block.received_pages < block.pages:
                raise StreamError(
                    f"only {block.received_pages} of {block.pages} pages of RAM block '{block.idstr}' came",
                    where="ram section", offset=self._buffer.position, value=block.received_pages)
        assert self._stream.configuration is not None
        self.received = Received(self._stream.configuration, self._device_state, whole_ns)

    def _send_shut(self) -> None:
        self.confirmed = self.say(ReturnPath.SHUT, 0)

    def _send_shut_failed(self) -> None:
        self.say(ReturnPath.SHUT, 1)

    def close(self) -> None:
        """Any number of times."""
        self._sock.close()

    HANDLERS: ClassVar[dict[Action, Callable[[MigrationIn], Event | None]]] = {
        Action.RECEIVE: _receive,
        Action.SEND_PONG: _send_pong,
        Action.SEND_HELLO_PONG: _send_hello_pong,
        Action.NOTE_WORD: _note_word,
        Action.BEGIN_DIGEST: _begin_digest,
        Action.RECEIVE_LAST_WORD: _receive_last_word,
        Action.CHECK_PAGES: _check_pages,
        Action.SEND_SHUT: _send_shut,
        Action.SEND_SHUT_FAILED: _send_shut_failed,
        Action.HANG_UP: close,
    }
