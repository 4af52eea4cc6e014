"""The promises of a connection: what a link works on, whatever carries its bytes. By these names also in :mod:`colo.abc`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection. ``uid`` is None where it cannot be told, as that of another machine."""

    local: bool
    uid: int | None


@runtime_checkable
class Transport(Protocol):
    """A connection to a peer: bytes both ways, in order. What a link works on, whatever carries it.

    :meth:`fileno` is the hot path: the core reads and writes that descriptor itself, at memory speed, with deadlines and a
    wake-up of its own (and sends TCP's acknowledgements at once, asked for at each read as the kernel forgets). What Python
    sends and hears goes by :meth:`send` and :meth:`receive`, over the same descriptor, and so in one order.

    A transport that changes bytes on the way (TLS) hands out what takes and gives plain bytes: the socket itself where the
    kernel does the work, else the plain end of a socket pair whose other end it serves. Then :meth:`unsent_bytes` counts what
    both hold, :meth:`end_sending` and :meth:`close` say the farewell that its protocol wants, and :meth:`abort` ends both at
    once. A transport of one direction gives a descriptor that goes one way, and ChannelError for the other.

    One thread at a time sends and one receives; :meth:`abort` is anybody's. A wait ends with Interrupted when ``wake_fd``
    (an eventfd or pipe, -1: none) becomes readable. ``timeout_s``: None is for ever, 0 does not wait.
    """

    @property
    def peer(self) -> str:
        """Where the other end is, for messages: ``tcp:192.0.2.7:9000``."""

    @property
    def address(self) -> tuple[int, object]:
        """Address family and socket address by which the other end is reached again; of a unix socket "" when it has none.
        Raises ChannelLost when it is gone."""

    def identity(self) -> Peer:
        """Who it is, as this machine's kernel tells it now."""

    def check_user(self, allow_uids: Collection[int] = ()) -> None:
        """Raises StrangerRefused when the other end is on this machine, and not known to be root's, this process's user's or
        of ``allow_uids``. On the side that connected: before anything is sent, whether or not it was accepted yet."""

    def fileno(self) -> int:
        """The descriptor that the core works on: not blocking, poll tells when it is ready. -1 after :meth:`close`."""

    def send(self, *parts: Buffer, timeout_s: float | None, wake_fd: int = -1, phase: str = "send") -> None:
        """Send all of it; small parts leave together. Raises ChannelLost, Interrupted, or DeadlineExceeded with ``phase``:
        then a part of it may have left, and nothing else can follow."""

    def receive(self, limit_bytes: int, *, timeout_s: float | None, wake_fd: int = -1) -> bytes:
        """What has come, or comes next; b"": the peer ended. Raises ChannelLost, DeadlineExceeded, Interrupted."""

    def peek(self, limit_bytes: int) -> bytes | None:
        """What has come, without taking it; b"": the peer sends no more, None: nothing yet. Raises ChannelLost."""

    def unsent_bytes(self) -> int:
        """How much of what was sent has not been acknowledged by the other end's kernel; 0 where that cannot be told."""

    def silence_ms(self) -> float:
        """How long ago the other end's kernel was heard of last; infinite where that cannot be told."""

    def probe_silence(self, idle_s: int) -> None:
        """Ask a peer of which nothing was heard for ``idle_s`` whether it is there, by the kernel's own means, where it has
        any. Raises ChannelLost."""

    def end_sending(self) -> None:
        """Nothing more is sent: the peer hears all that was, and then the end. It may speak on. Any number of times."""

    def abort(self) -> None:
        """End the connection at once: what was not sent is thrown away, a peer that can be told so is told by a reset, and
        whoever waits in this process, to read or to write, in Python or the core, wakes with ChannelLost.

        From any thread, any number of times; never blocks, never fails. The descriptor's number stays taken until
        :meth:`close`: a thread that still uses it meets no other file."""

    def close(self) -> None:
        """Give the descriptor up; nobody may be using it. What was sent still goes out, by the kernel, unless bytes that came
        were never received: then TCP resets. Any number of times."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@runtime_checkable
class Listener(Protocol):
    """A place where peers arrive."""

    @property
    def address(self) -> str:
        """The URI to reach it by, with the port that was really taken."""

    def fileno(self) -> int:
        """The listening descriptor, readable when a peer waits; -1 after :meth:`close`. Raises AddressError when there is
        none, as the transport has one connection and no more, which :meth:`accept` gives."""

    def accept(self, timeout_s: float | None = None) -> Transport:
        """The next peer; whose it is has not been asked. DeadlineExceeded after ``timeout_s``; Interrupted when closed,
        before or meanwhile; ChannelError when the system would not."""

    def close(self) -> None:
        """Let nobody in any more, and wake who waits in :meth:`accept`. Connections that were given stay. Any number of
        times."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
