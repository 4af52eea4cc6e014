"""The primary's end of a lease connection, for blocking code: the guard's, and a session's of its own VM."""

from __future__ import annotations

import time

from colo.abc import Transport
from colo.errors import ChannelLost, DeadlineExceeded, ProtocolError
from colo.lease.frames import Frame, FrameReader, encode
from colo.lease.meeting import Meeting, Welcome, refusal
from colo.transport import connect
from colo.wire import LeaseMessage

MEET_S = 5.0
READ_BYTES = 1 << 16


class Refused(ProtocolError):
    """The secondary does not want to be met so: its reason is the message."""


class LeaseConnection:
    """A connection to a secondary, met: :attr:`welcome` is what it said."""

    def __init__(self, transport: Transport, meeting: Meeting, timeout_s: float = MEET_S) -> None:
        """Meet over ``transport``, which is this object's from now on. Raises :class:`Refused`, ChannelLost,
        DeadlineExceeded, StreamError, ProtocolError; it is then closed."""
        self._transport = transport
        self._timeout_s = timeout_s
        self._reader = FrameReader()
        self._waiting: list[Frame] = []
        try:
            self.peer = transport.address
            """Address family and address by which the other end is reached again."""
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
        return cls(connect(to, timeout_s, insecure=insecure), meeting, timeout_s)

    @property
    def fd(self) -> int:
        """Readable when there is something to :meth:`receive`."""
        return self._transport.fileno()

    def send(self, frame: Frame) -> None:
        """Raises ChannelLost, or DeadlineExceeded when it is not taken in time."""
        self._transport.send(encode(frame), timeout_s=self._timeout_s, phase="lease")

    def receive(self, timeout_s: float) -> Frame | None:
        """The next message, or None when none came in time. Raises ChannelLost, StreamError."""
        until = time.monotonic() + timeout_s
        while not self._waiting:
            try:
                data = self._transport.receive(READ_BYTES, timeout_s=max(0.0, until - time.monotonic()))
            except DeadlineExceeded:
                return None
            if not data:
                raise ChannelLost("lease connection: the secondary closed it")
            self._waiting += self._reader.feed(data)
        return self._waiting.pop(0)

    def close(self) -> None:
        """Any number of times."""
        self._transport.close()
