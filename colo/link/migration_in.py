"""The connection of a migration's destination: its stream is read into a VM's memory, its questions are answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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
from colo.stream import CommandItem, Configuration, StreamLimits
from colo.wire import DIGEST_BYTES, HELLO, HELLO_ARBITER, HELLO_COLO, Command, ReturnPath


@dataclass(frozen=True, slots=True)
class Received:
    """A stream that came whole. ``device_state``: FULL sections up to their EOF."""

    configuration: Configuration
    device_state: bytes
    whole_ns: int
    """CLOCK_MONOTONIC, of its last byte."""


class MigrationIn:
    """Reads one migration from ``sock`` into ``image``. One thread.

    ``on_opened(configuration)`` is called when the machine type is known, and may refuse it by raising. ``arbiter``: whether
    this side asks one before it runs the VM, which a colo source is told. ``wake_fd`` becoming readable ends any wait.
    """

    def __init__(
        self, sock: Transport, image: BlockImage, *, deadlines: Deadlines, limits: StreamLimits, wake_fd: int,
        arbiter: bool, on_opened: Callable[[Configuration], None],
    ) -> None:
        self.return_path = False
        """Whether the source wants to be answered."""
        self._sock = sock
        self._deadlines = deadlines
        self._arbiter = arbiter
        self._buffer = ReadBuffer(sock.fileno(), wake_fd=wake_fd)
        self._decoder = PageDecoder(Staging(), immediate=True)
        self._digest: StreamDigest | None = None
        """The source is a colo one: it says a last word, told beforehand, and the digest of what it sent at last."""
        self._last_word: int | None = None
        self._stream = InitialStream(
            self._buffer, self._decoder, image, deadlines=deadlines, limits=limits, on_opened=on_opened,
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

    def receive(self) -> Received:
        """Returns when all of the stream is here and fits together; nothing of the device state is loaded.

        Raises StreamError or ProtocolError for what the source may not send, and the channel's errors.
        """
        self._buffer.set_deadline("handshake", self._deadlines.handshake_s)
        self._buffer.set_idle(self._deadlines.progress_s)
        device_state = self._stream.read().blob
        if self._digest is not None:
            self._digest.update(device_state)
            self._expect_last_word(self._digest.value)
        whole_ns = time.monotonic_ns()
        for block in self.blocks:
            if block.received_pages < block.pages:
                raise StreamError(
                    f"only {block.received_pages} of {block.pages} pages of RAM block '{block.idstr}' came",
                    where="ram section", offset=self._buffer.position, value=block.received_pages)
        assert self._stream.configuration is not None
        return Received(self._stream.configuration, device_state, whole_ns)

    def say(self, kind: ReturnPath, value: int, *, must: bool = False) -> bool:
        """Speak on the return path; returns whether it was sent. ``must``: raises ChannelLost or
        DeadlineExceeded when it cannot be."""
        if not self.return_path:
            return False
        try:
            self._sock.send(encode_return_path(kind, value), timeout_s=self._deadlines.message_s, phase="return path")
        except ChannelError:
            if must:
                raise
            return False
        return True

    # -- what the stream asks

    def _obey(self, item: CommandItem) -> None:
        if item.command is Command.OPEN_RETURN_PATH:
            self.return_path = True
        elif item.command is Command.PING:
            if not self.return_path:
                raise ProtocolError("PING before OPEN_RETURN_PATH: there is no way to answer", got="PING")
            self._note_ping(item.value)
            bits = HELLO_COLO | (HELLO_ARBITER if self._arbiter else 0)
            self.say(ReturnPath.PONG, HELLO | bits if item.value == HELLO else item.value, must=True)
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
            self._digest.reset()
            self._decoder.set_digest(self._digest)

    def _expect_last_word(self, digest: int) -> None:
        """A colo source can take its VM back until it has sent this; what only looks like the stream's end is not it."""
        offset = self._buffer.position
        self._buffer.set_deadline("last word", self._deadlines.epoch_s)
        word = self._buffer.read_u32()
        if word != self._last_word:
            raise StreamError(
                "the stream's end is not followed by the source's last word", where="stream", offset=offset, value=word)
        sent = int.from_bytes(self._buffer.read_exact(DIGEST_BYTES), "big")
        if sent != digest:
            raise StreamError(
                f"the stream was damaged on its way: its digest is {digest:032x}, the source's {sent:032x}",
                where="stream", offset=offset + 4, value=sent)
