"""The connection of a migration's source: its stream is written, and what comes back on the return path is heard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import ClassVar

from colo._fast.kernels.digest import StreamDigest
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.send.pageencoder import PageEncoder
from colo.abc import Transport
from colo.epoch.migration_pages import MigrationPages, RoundCopy
from colo.errors import ChannelLost, ColoError, DeadlineExceeded, ProtocolError
from colo.link.migration_progress import MigrationProgress
from colo.link.pacer import Pacer
from colo.link.reading import read_return_path
from colo.protocol.deadlines import Deadlines
from colo.protocol.migration import Action, Event, Heard, MigrationMachine, Phase, Reads
from colo.protocol.migration.pings import answer_event, new_word, round_ping
from colo.stream.writer import (
    command,
    configuration,
    file_header,
    ping,
    ram_start_section,
    section_end,
    section_footer,
    section_part,
)
from colo.wake import wait_ready
from colo.wire import DEVICES_PING, DIGEST_BYTES, HELLO, RAM_SECTION_ID, Command

SLICE_S = 0.1
"""Longest sleep of a paced round: what was changed meanwhile then counts."""
DRAIN_LOOK_S = 0.002


class MigrationOut:
    """Writes the stream to ``sock``, a connection that is the link's from now on. One thread.

    What is written when, and what may be heard, is in the table (:mod:`colo.protocol.migration`): ``migration`` is this
    source's place in it, :attr:`HANDLERS` carries out what it asks of a connection. ``wake_fd`` becoming readable ends any
    wait with Interrupted. All methods raise ChannelError when the destination is lost or too slow, StreamError or
    ProtocolError for what it says and may not, and Heard for what it says and the table has to answer.
    """

    def __init__(
        self, sock: Transport, pages: MigrationPages, pacer: Pacer, progress: MigrationProgress,
        migration: MigrationMachine, *, machine: str, deadlines: Deadlines, wake_fd: int,
    ) -> None:
        self.sock = sock
        self.shut: int | None = None
        """The number in SHUT."""
        self.devices = b""
        """The device sections, to be sent behind the last pages."""
        self.end = b""
        """EOF and the VM description."""
        self._pages = pages
        self._pacer = pacer
        self._progress = progress
        self._migration = migration
        self._machine = machine
        self._deadlines = deadlines
        self._wake_fd = wake_fd
        self._buffer = ReadBuffer(sock.fileno(), wake_fd=wake_fd, capacity_bytes=4096)
        self._encoder = PageEncoder(sock.fileno(), wake_fd=wake_fd)
        self._asked: int | None = None
        """Number of the PING that is not answered yet."""
        self._word = 0
        self._digest: StreamDigest | None = None
        """Of what a colo destination is sent while the VM stands still."""
        self._copied_pages: dict[str, int] = {}

    # -- the stream, in its order

    def _send_header(self) -> None:
        self._write(file_header() + configuration(self._machine), flush=False)

    def _send_open_return_path(self) -> None:
        self._write(command(Command.OPEN_RETURN_PATH), flush=False)

    def _send_hello(self) -> None:
        self._ask(HELLO, flush=False)

    def _send_blocks(self) -> None:
        self._write(ram_start_section(RAM_SECTION_ID, self._pages.infos))

    def _announce_last_word(self) -> None:
        self._word = new_word()
        self._ask(self._word)
        self._digest = StreamDigest()

    def send_round(self, number: int, *, paced: bool, copy: RoundCopy | None = None) -> None:
        """The owned pages, from memory as it is now, or from ``copy``; returns when the kernel has taken them."""
        if copy is not None:
            self._send_copy(copy)
            return
        pages = self._progress.left_pages + self._pages_sent(self._encoder)

        def after_batch() -> None:
            self._count(pages - self._pages_sent(self._encoder))
            if paced:
                self._wait_for_turn()
            else:
                self._hear()

        self.write_round(self._encoder, number, self._deadline_ns, after_batch)

    def write_round(
        self, encoder: PageEncoder, number: int, deadline_ns: Callable[[], int | None], after_batch: Callable[[], None]
    ) -> None:
        """The owned pages as PARTs of one batch each, through ``encoder``. Between two PARTs the receiver may wait long."""
        for _ in self._pages.open_blocks(encoder, round_number=number):
            more = True
            while more:
                self._pacer.begin()
                before = encoder.stats.sent_bytes
                encoder.write(section_part(RAM_SECTION_ID), deadline_ns())
                _, _, more = encoder.encode(self._pacer.batch_bytes, deadline_ns=deadline_ns(), flush=False)
                encoder.end_section(deadline_ns(), flush=False)
                encoder.write(section_footer(RAM_SECTION_ID), deadline_ns(), True)
                self._pacer.sent(encoder.stats.sent_bytes - before)
                after_batch()
        encoder.close()

    def _send_round_ping(self) -> None:
        """What the kernel has taken may still lie in its buffers: only when the destination answers has it read the round,
        and is the time that took a measure of bandwidth."""
        self._ask(round_ping(self._progress.rounds))

    def _drain_queue(self) -> Event:
        """Without a return path an empty send queue tells the same, as far as it can."""
        self._drain()
        return Event.DRAINED

    def _keep_alive(self) -> None:
        """A PART without pages: the destination sees that this side is there."""
        self._write(section_part(RAM_SECTION_ID), eos=True)

    def _send_rest(self) -> Event:
        self._encoder.set_digest(self._digest)
        self.send_round(self._progress.rounds, paced=False)
        self._write(section_end(RAM_SECTION_ID), eos=True)
        return Event.REST_SENT

    def _send_devices(self) -> None:
        self._write(self.devices)
        self._count(0)

    def _send_devices_ping(self) -> None:
        self._ask(DEVICES_PING)

    def _send_end(self) -> None:
        self._write(self.end)
        self._count(0)

    def _send_last_word(self) -> None:
        assert self._digest is not None
        self._digest.update(self.devices + self.end[:1])
        self._write(self._word.to_bytes(4, "big") + self._digest.value.to_bytes(DIGEST_BYTES, "big"))
        self._count(0)

    def _await_taken(self) -> Event:
        """Whether it has loaded nobody tells; but a reset, or bytes that stay queued, tell that it has not read all."""
        seconds = self._migration.facts.seconds(self._deadlines)
        assert seconds is not None
        if wait_ready((self.sock.fileno(),), seconds):
            self._expect_end()
        if queued := self.sock.unsent_bytes():
            raise ChannelLost(f"the destination did not take the last {queued} bytes")
        return Event.ALL_TAKEN

    HANDLERS: ClassVar[dict[Action, Callable[[MigrationOut], Event | None]]] = {
        Action.SEND_HEADER: _send_header,
        Action.SEND_OPEN_RETURN_PATH: _send_open_return_path,
        Action.SEND_HELLO: _send_hello,
        Action.SEND_BLOCKS: _send_blocks,
        Action.ANNOUNCE_LAST_WORD: _announce_last_word,
        Action.SEND_ROUND_PING: _send_round_ping,
        Action.DRAIN: _drain_queue,
        Action.SEND_KEEP_ALIVE: _keep_alive,
        Action.SEND_REST: _send_rest,
        Action.SEND_DEVICES: _send_devices,
        Action.SEND_DEVICES_PING: _send_devices_ping,
        Action.SEND_END: _send_end,
        Action.SEND_LAST_WORD: _send_last_word,
        Action.AWAIT_TAKEN: _await_taken,
    }

    def wait(self, seconds: float) -> None:
        """Wait so long, hearing what comes meanwhile."""
        self._hear()
        if wait_ready((self.sock.fileno(),), seconds, wake_fd=self._wake_fd):
            self._hear()

    def close(self) -> None:
        """Give the connection up in order."""
        with contextlib.suppress(ColoError, RuntimeError):
            self._encoder.close()
        self.sock.close()

    def abort(self) -> None:
        """Drop the connection at once. From any thread, any number of times."""
        self.sock.abort()

    def release(self) -> None:
        """Let go of the VM's memory."""
        with contextlib.suppress(ColoError, RuntimeError):
            self._encoder.close()

    # -- sending

    def _deadline_ns(self) -> int:
        """For one batch: a long round is no fault, one that trickles is."""
        return time.monotonic_ns() + int(self._deadlines.epoch_s * 1e9)

    def _write(self, data: bytes, *, eos: bool = False, flush: bool = True) -> None:
        self._encoder.write(data, self._deadline_ns(), flush and not eos)
        if eos:
            self._encoder.end_section(self._deadline_ns(), flush=False)
            self._encoder.write(section_footer(RAM_SECTION_ID), self._deadline_ns(), True)

    def _ask(self, number: int, *, flush: bool = True) -> None:
        self._asked = number
        self._write(ping(number), flush=flush)

    def _send_copy(self, copy: RoundCopy) -> None:
        at, whole, pages = 0, len(copy), self._progress.left_pages
        before = dict(self._copied_pages)
        with copy.records() as stream:
            while at < whole:
                self._pacer.begin()
                batch = stream[at : at + self._pacer.batch_bytes]
                self._encoder.write(batch, self._deadline_ns(), True)
                self._pacer.sent(len(batch))
                at += len(batch)
                batch.release()
                self._copied_pages = {kind: before.get(kind, 0) + n * at // whole for kind, n in copy.pages.items()}
                self._count(pages - pages * at // whole)
                self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self._hear()
        while (left := self._pacer.wait_s()) > 0:
            self.wait(min(left, SLICE_S))

    def _pages_sent(self, encoder: PageEncoder) -> int:
        return sum(encoder.stats.pages.values())

    def _count(self, left_pages: int) -> None:
        stats = self._encoder.stats
        pages = {kind: n + self._copied_pages.get(kind, 0) for kind, n in stats.pages.items()}
        self._progress.sent(stats.sent_bytes, pages, left_pages)

    def _drain(self) -> None:
        """Wait until the send queue is empty, however long that takes while it gets shorter."""
        last, until = -1, 0.0
        while (queued := self.sock.unsent_bytes()) > 0:
            now = time.monotonic()
            if queued != last:
                last, until = queued, now + self._deadlines.epoch_s
            elif now >= until:
                raise DeadlineExceeded(
                    f"the destination took none of {queued} queued bytes for {self._deadlines.epoch_s:g} s", phase="round")
            self.wait(DRAIN_LOOK_S)

    # -- the return path

    def await_event(self) -> Event:
        """What the destination says next, in a state in which it is to say something, before that state's deadline."""
        fact = self._migration.facts
        try:
            if fact.phase is Phase.ROUND:
                self._drain()  # a long round is no fault: its deadline begins when all has left
            seconds = fact.seconds(self._deadlines)
            assert seconds is not None
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                self.wait(left)
        except Heard as heard:
            return heard.event
        phase = fact.phase.name.lower()
        raise DeadlineExceeded(f"the destination did not answer within {seconds:g} s ({phase})", phase=phase)

    def _hear(self) -> None:
        """Take in what has come. Raises what it says of the destination."""
        while self.shut is None and self._buffer.poll(0):  # SHUT is the last word, the connection may be closed behind it
            if self._migration.reads is Reads.END:
                self._expect_end()
                raise ChannelLost("the destination closed the connection before it had everything")
            self._buffer.set_deadline("return path", self._deadlines.message_s)
            message = read_return_path(self._buffer)
            event = answer_event(message, self._asked)
            if event in (Event.SHUT, Event.SHUT_FAILED):
                self.shut = message.value or 0
            else:
                self._asked = None
            raise Heard(event)

    def _expect_end(self) -> None:
        """What is readable without a return path is the end, or a mistake."""
        self._buffer.set_deadline("return path", self._deadlines.message_s)
        if not self._buffer.at_end():
            raise ProtocolError("the destination spoke though no return path was opened", got="bytes", expected=("close",))
