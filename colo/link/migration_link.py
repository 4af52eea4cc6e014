"""The connection of a migration's source: its stream is written, and what comes back on the return path is heard."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable

from colo._fast.kernels.digest import StreamDigest
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.send.pageencoder import PageEncoder
from colo.abc import Transport
from colo.epoch.migration_pages import MigrationPages, RoundCopy
from colo.errors import ChannelError, ChannelLost, ColoError, DeadlineExceeded, ProtocolError
from colo.link.migration_progress import MigrationProgress
from colo.link.pacer import Pacer
from colo.protocol import ReturnPathMessage, decode_return_path, return_path_missing_bytes
from colo.protocol.deadlines import Deadlines
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
from colo.wire import (
    DEVICES_PING,
    DIGEST_BYTES,
    HELLO,
    HELLO_COLO,
    HELLO_MASK,
    LAST_WORD_MIN,
    RAM_SECTION_ID,
    ROUND_PING,
    Command,
    ReturnPath,
)

SLICE_S = 0.1
"""Longest sleep of a paced round: what was changed meanwhile then counts."""
DRAIN_LOOK_S = 0.002


class MigrationLink:
    """Writes the stream to ``sock``, a connection that is the link's from now on. One thread.

    ``wake_fd`` becoming readable ends any wait with Interrupted. All methods raise ChannelError when the destination is
    lost or too slow, and ProtocolError or StreamError for what it says and may not.
    """

    def __init__(
        self, sock: Transport, pages: MigrationPages, pacer: Pacer, progress: MigrationProgress, *,
        deadlines: Deadlines, return_path: bool, wake_fd: int,
    ) -> None:
        self.sock = sock
        self.peer_bits = 0
        """HELLO_ bits of the destination."""
        self._pages = pages
        self._pacer = pacer
        self._progress = progress
        self._deadlines = deadlines
        self._return_path = return_path
        self._wake_fd = wake_fd
        self._buffer = ReadBuffer(sock.fileno(), wake_fd=wake_fd, capacity_bytes=4096)
        self._encoder = PageEncoder(sock.fileno(), wake_fd=wake_fd)
        self._asked: set[int] = set()
        """Numbers of PINGs that were not answered yet."""
        self._shut: int | None = None
        self._ended = False
        self._last_word = b""
        self._digest: StreamDigest | None = None
        """Of what a colo destination is sent while the VM stands still."""
        self._copied_pages: dict[str, int] = {}

    # -- the stream, in its order

    def open(self, machine: str) -> None:
        """Header, CONFIGURATION, the return path, the RAM block list. Returns when the destination has answered, if it is
        to answer."""
        head = file_header() + configuration(machine)
        if self._return_path:
            self._asked.add(HELLO)
            head += command(Command.OPEN_RETURN_PATH) + ping(HELLO)
        self._write(head + ram_start_section(RAM_SECTION_ID, self._pages.infos))
        if self._return_path:
            self._await(lambda: not self._asked, "handshake", self._deadlines.handshake_s)
        if self.peer_bits & HELLO_COLO:
            number = LAST_WORD_MIN | secrets.randbits(31)
            self._asked.add(number)
            self._write(ping(number))
            self._last_word = number.to_bytes(4, "big")
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

    def settle_round(self, number: int) -> None:
        """Return when the destination has read the round: only then is the time it took a measure of bandwidth.

        What the kernel has taken may still lie in its buffers. With a return path the destination's answer to a PING
        tells; else an empty send queue does, as far as it can.
        """
        if self._return_path:
            self._asked.add(ROUND_PING + number)
            self._write(ping(ROUND_PING + number))
            self._drain()
            self._await(lambda: not self._asked, "round", self._deadlines.epoch_s)
        else:
            self._drain()

    def keep_alive(self) -> None:
        """A PART without pages: the destination sees that this side is there."""
        self._write(section_part(RAM_SECTION_ID), eos=True)

    def send_rest(self, number: int, devices: bytes, end: bytes) -> None:
        """The last pages, the end of the ``ram`` section, the device sections, and ``end``, EOF and vmdesc: all but what
        makes it loadable.

        A colo destination loads nothing before it has the last word: a number that no device's data can hold by chance or
        on purpose, and a digest. A QEMU runs the VM when it has EOF, so that is held back. It loads each device as it
        comes: its answer to a PING behind them says that it refused none.
        """
        self._encoder.set_digest(self._digest)
        self.send_round(number, paced=False)
        self._write(section_end(RAM_SECTION_ID), eos=True)
        self._write(devices)
        if self._digest is not None:
            self._write(end)
            self._digest.update(devices + end[:1])
            self._last_word += self._digest.value.to_bytes(DIGEST_BYTES, "big")
        else:
            self._last_word = end
            if self._return_path:
                self._asked.add(DEVICES_PING)
                self._write(ping(DEVICES_PING))
                self._await(lambda: not self._asked, "device state", self._deadlines.epoch_s)
        self._count(0)

    def send_last_word(self) -> None:
        """From here on the destination may load and run."""
        self._ended = True
        self._write(self._last_word)
        self._count(0)

    def await_answer(self) -> int | None:
        """The number in SHUT, 0: it has loaded. Without a return path, None when the destination has taken everything.

        Raises ChannelError, ProtocolError or StreamError: whether it runs is then not known.
        """
        if self._return_path:
            self._await(lambda: self._shut is not None, "switchover", self._deadlines.epoch_s)
            return self._shut
        # Whether it has loaded nobody tells; but a reset, or bytes that stay queued, tell that it has not read everything.
        if wait_ready((self.sock.fileno(),), self._deadlines.message_s):
            self._expect_end()
        if queued := self.sock.unsent_bytes():
            raise ChannelLost(f"the destination did not take the last {queued} bytes")
        return None

    def wait(self, seconds: float) -> None:
        """Wait so long, hearing what comes meanwhile."""
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
        """Let go of the VM's memory, and of the connection."""
        self.close()

    # -- sending

    def _deadline_ns(self) -> int:
        """For one batch: a long round is no fault, one that trickles is."""
        return time.monotonic_ns() + int(self._deadlines.epoch_s * 1e9)

    def _write(self, data: bytes, *, eos: bool = False) -> None:
        self._encoder.write(data, self._deadline_ns(), not eos)
        if eos:
            self._encoder.end_section(self._deadline_ns(), flush=False)
            self._encoder.write(section_footer(RAM_SECTION_ID), self._deadline_ns(), True)

    def _send_copy(self, copy: RoundCopy) -> None:
        at, whole, pages = 0, len(copy), self._progress.left_pages
        before = dict(self._copied_pages)
        with copy.view() as stream:
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

    def _await(self, done: Callable[[], bool], phase: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not done():
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the destination did not answer within {seconds:g} s ({phase})", phase=phase)
            self.wait(left)

    def _hear(self) -> None:
        """Take in what has come. Raises what it says of the destination."""
        while self._shut is None and self._buffer.poll(0):  # SHUT is the last word, the connection may be closed behind it
            if not self._return_path:
                self._expect_end()
                raise ChannelLost("the destination closed the connection before it had everything")
            self._hear_one()
        if self._shut is not None and not self._ended:
            if self._shut == 0:
                raise ProtocolError("the destination says that it has loaded (SHUT 0) what was not sent yet", got="SHUT")
            raise ChannelError(f"the destination gave up (SHUT {self._shut}); its own log says why")

    def _hear_one(self) -> None:
        position = self._buffer.position
        self._buffer.set_deadline("return path", self._deadlines.message_s)
        raw = b""
        while missing := return_path_missing_bytes(raw):
            raw += self._buffer.read_exact(missing)
        message = decode_return_path(raw, offset=position)
        self._take(message)

    def _take(self, message: ReturnPathMessage) -> None:
        if message.kind is ReturnPath.PONG:
            number = message.value or 0
            if number & ~HELLO_MASK == HELLO and HELLO in self._asked:
                self.peer_bits = number & HELLO_MASK
                number = HELLO
            if number not in self._asked:
                raise ProtocolError(f"PONG {number:#x} answers no PING", got="PONG")
            self._asked.discard(number)
        elif message.kind is ReturnPath.SHUT:
            self._shut = message.value or 0
        else:
            raise ProtocolError(
                f"{message.kind.name} on the return path: there is no postcopy here", got=message.kind.name,
                expected=("PONG", "SHUT"),
            )

    def _expect_end(self) -> None:
        """What is readable without a return path is the end, or a mistake."""
        self._buffer.set_deadline("return path", self._deadlines.message_s)
        if not self._buffer.at_end():
            raise ProtocolError("the destination spoke though no return path was opened", got="bytes", expected=("close",))
