"""The lease connection of whoever holds a lease: made, and made again, without ever blocking."""

from __future__ import annotations

import select
from collections.abc import Collection
from typing import Any

from colo.errors import ChannelError, ColoError, DeadlineExceeded, StrangerRefused
from colo.lease.frames import Frame, FrameReader, encode
from colo.lease.meeting import refusal
from colo.protocol.lease import RENEWALS
from colo.transport import SocketTransport, TcpOptions, begin_connect
from colo.wire import LeaseMessage

CONNECT_NS = 1_000_000_000
READ_BYTES = 65536
TALKING = TcpOptions(keepalive_idle_s=0, user_timeout_ms=0)
"""What is heard over it, and the session's own time, tell whether it lives."""
PROBED = TcpOptions(keepalive_idle_s=1, user_timeout_ms=0)


class LeaseLink:
    """To the secondary at ``peer`` (address family and address), in the session that it calls ``token``.

    The secondary may be gone, and somebody else of its machine in its place: who listens there is looked at each time
    (:mod:`colo.transport.peers`) before the token is sent, and heard only when it knows that token.

    :meth:`tend` is called often, :meth:`ready` when :attr:`sock` is. Times are nanoseconds of ``CLOCK_BOOTTIME``.

    ``quiet``: nothing is asked over it for long, so nothing that is heard tells whether it lives: the kernel's probes do.
    """

    def __init__(
        self, peer: tuple[int, Any], *, token: str, generation: int, lease_ns: int, who: str, quiet: bool = False,
        allow_uids: Collection[int] = (),
    ) -> None:
        self.peer = peer
        self.allow_uids = allow_uids
        self.token = token
        self.generation = generation
        self.lease_ns = lease_ns
        self.who = who
        self.sock: SocketTransport | None = None
        self.met = False
        self.said = ""
        """Why the secondary refused, if it did."""
        self.refused = False
        """At the last attempt."""
        self.try_ns = 0
        """When the next attempt is due, or the one under way has failed."""
        self._quiet = quiet
        self._token_sent = False
        self._heard_ns = 0
        self._reader = FrameReader()

    @property
    def events(self) -> int:
        """What to poll :attr:`sock` for."""
        return select.POLLIN if self._token_sent else select.POLLOUT

    def tend(self, now_ns: int) -> None:
        """Connect, or give a connection up on which nothing is heard for half a lease."""
        if self.sock is not None and not self.met and now_ns >= self.try_ns:
            self.drop()
        if self.met and not self._quiet and now_ns - self._heard_ns > self.lease_ns // 2:
            self.drop()  # it may be the connection: another one finds out
            self.try_ns = now_ns
        if self.sock is None and now_ns >= self.try_ns:
            self._connect(now_ns)

    def _connect(self, now_ns: int) -> None:
        family, address = self.peer
        self.try_ns = now_ns + min(CONNECT_NS, self.lease_ns // RENEWALS)
        self._reader = FrameReader()
        try:
            self.sock = begin_connect(family, address, options=PROBED if self._quiet else TALKING)
        except ChannelError:
            self.drop()

    def meet_again(self, now_ns: int) -> bool:
        """Ask, over a connection that is met, whether it is: WELCOME then says that all that was sent before has been heard.
        Whether it left; the link is quiet no more."""
        self._quiet, self._heard_ns = False, now_ns
        return self._meet()

    def _meet(self) -> bool:
        return self.send(Frame(LeaseMessage.MEET, self.generation, text={"token": self.token, "who": self.who}))

    def drop(self) -> None:
        """Hang up. Any number of times."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self.met = self._token_sent = False

    def send(self, frame: Frame) -> bool:
        """Whether it left. Frames are small: a connection that does not take one is of no use."""
        if self.sock is None:
            return False
        try:
            self.sock.send(encode(frame), timeout_s=0)
            return True
        except ChannelError:
            self.drop()
            return False

    def ready(self, now_ns: int) -> list[Frame]:
        """The socket is ready: what came. WELCOME is among it, and has made :attr:`met` true."""
        assert self.sock is not None
        if not self._token_sent:
            if self.sock.connect_error() or self._is_stranger():
                self.drop()
            elif self._meet():
                self._token_sent = True
            return []
        try:
            data = self.sock.receive(READ_BYTES, timeout_s=0)
            frames = self._reader.feed(data)
        except DeadlineExceeded:
            return []
        except ColoError:
            data, frames = b"", []
        if not data:
            self.drop()
            return []
        self._heard_ns = now_ns
        heard = []
        for frame in frames:
            if frame.kind is LeaseMessage.REFUSED:
                self.said, self.refused = refusal(frame.text), True
                self.drop()
                self.try_ns = now_ns + self.lease_ns // 2
                return [frame]
            if frame.kind is LeaseMessage.WELCOME:
                self.met, self.refused, self.said = frame.text.get("token") == self.token, False, ""
            if not self.met:
                self.drop()
                return []
            heard.append(frame)
        return heard

    def _is_stranger(self) -> bool:
        assert self.sock is not None
        try:
            self.sock.check_user(self.allow_uids)
        except StrangerRefused as error:
            self.said = str(error)
            return True
        return False
