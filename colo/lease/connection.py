"""The primary's end of a lease connection, for blocking code: the guard's, and a session's of its own VM."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

from colo.errors import ChannelLost, DeadlineExceeded, ProtocolError
from colo.lease.frames import Frame, FrameReader, encode
from colo.lease.meeting import Meeting, Welcome, refusal
from colo.transport import UnixUri, connect, parse_uri
from colo.wire import LeaseMessage

MEET_S = 5.0


class Refused(ProtocolError):
    """The secondary does not want to be met so: its reason is the message."""


class LeaseConnection:
    """A connection to a secondary, met: :attr:`welcome` is what it said."""

    def __init__(self, sock: socket.socket, meeting: Meeting, timeout_s: float = MEET_S, *, unix_path: str = "") -> None:
        """Raises :class:`Refused`, ChannelLost, DeadlineExceeded, StreamError, ProtocolError; the socket is then closed."""
        self._sock = sock
        # A unix socket's own idea of its name is that under which it was made, before it got its place.
        self.peer: tuple[int, object] = (sock.family, unix_path or sock.getpeername())
        """Address family and address by which the other end is reached again."""
        self._reader = FrameReader()
        self._waiting: list[Frame] = []
        sock.settimeout(timeout_s)
        try:
            self.send(Frame(LeaseMessage.MEET, meeting.generation, text=meeting.as_dict()))
            answer = self.receive(timeout_s)
            if answer is None:
                raise DeadlineExceeded(
                    f"who listens there did not say within {timeout_s:g} s whether it is a secondary that can be met: is it "
                    "`colo secondary` of this version?", phase="meeting")
            if answer.kind is LeaseMessage.REFUSED:
                raise Refused(f"the secondary refuses: {refusal(answer.text)}")
            if answer.kind is not LeaseMessage.WELCOME:
                raise ProtocolError(f"the secondary answers {answer.kind.name} to MEET")
            self.welcome = Welcome.of(answer.text)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, to: str, meeting: Meeting, *, insecure: bool = False, timeout_s: float = MEET_S) -> LeaseConnection:
        """Connect to ``to`` and meet. Raises as the constructor, and ChannelError when nobody listens."""
        return cls.on(connect(to, timeout_s, insecure=insecure), to, meeting, timeout_s)

    @classmethod
    def on(cls, sock: socket.socket, to: str, meeting: Meeting, timeout_s: float = MEET_S) -> LeaseConnection:
        """Meet over ``sock``, a connection to ``to`` that was made before."""
        uri = parse_uri(to)
        return cls(sock, meeting, timeout_s, unix_path=os.path.abspath(uri.path) if isinstance(uri, UnixUri) else "")

    @property
    def fd(self) -> int:
        """Readable when there is something to :meth:`receive`."""
        return self._sock.fileno()

    def send(self, frame: Frame) -> None:
        """Raises ChannelLost, or DeadlineExceeded when it is not taken in time."""
        try:
            self._sock.sendall(encode(frame))
        except TimeoutError:
            raise DeadlineExceeded("the secondary takes no more lease messages", phase="lease") from None
        except OSError as error:
            raise ChannelLost(f"lease connection: {error.strerror or error}") from error

    def receive(self, timeout_s: float) -> Frame | None:
        """The next message, or None when none came in time. Raises ChannelLost, StreamError."""
        until = time.monotonic() + timeout_s
        while not self._waiting:
            left = until - time.monotonic()
            poller = select.poll()
            poller.register(self._sock, select.POLLIN)
            if not poller.poll(max(0.0, left) * 1000):
                return None
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                raise ChannelLost(f"lease connection: {error.strerror or error}") from error
            if not data:
                raise ChannelLost("lease connection: the secondary closed it")
            self._waiting += self._reader.feed(data)
        return self._waiting.pop(0)

    def close(self) -> None:
        """Any number of times."""
        with contextlib.suppress(OSError):
            self._sock.close()
