"""What a primary's thread waits for, and what ends its waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from colo.abc import Transport
from colo.session.primary_config import PrimaryConfig
from colo.transport import connect_until
from colo.wake import Wake

CONNECT_RETRY_S = 0.05
RECONNECT_RETRY_S = 0.5
STEP_S = 0.02


class Waiting:
    """``wake`` ends any wait on a connection, ``due`` one for the next checkpoint. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.wake, self.due = Wake(), Wake()
        self.stopping: str | None = None
        """Why the session was asked to stop."""
        self.fenced = False
        """The other side has claimed the VM."""
        self._refusal = ""

    def stop(self, reason: str) -> None:
        """The session is to end."""
        self.stopping = self.stopping or reason
        self.wake.set()

    def taken_over(self) -> None:
        """The other side has claimed the VM."""
        self.fenced = True
        self.leave()

    def leave(self) -> None:
        """Whatever is waited for: something else is to be looked at."""
        self.due.set()
        self.wake.set()

    @property
    def over(self) -> bool:
        """Asked to stop, or taken over."""
        return self.stopping is not None or self.fenced

    def wait(self, seconds: float) -> bool:
        """So long, or until :attr:`over`, which is returned."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.over:
            time.sleep(min(left, STEP_S))
        return self.over

    def connect(self, config: PrimaryConfig, until: float | None) -> Transport:
        """A connection to the secondary, tried until then (monotonic seconds; None: for ever). Raises Interrupted,
        ChannelError."""
        return connect_until(
            config.to, until, pause_s=RECONNECT_RETRY_S if until is None else CONNECT_RETRY_S, ended=lambda: self.over,
            insecure=config.insecure, allow_uids=config.allow_uids)

    def refused(self, error: Exception, notice: Callable[[str], None]) -> bool:
        """Running alone, what was found would not follow: its user is told, once, and another is looked for after a while.
        Whether the session is to end instead."""
        if str(error) != self._refusal:
            self._refusal = str(error)
            notice(f"no secondary yet, it is tried again: {error}")
        return self.wait(RECONNECT_RETRY_S)

    def close(self) -> None:
        """Nobody may be waiting any more."""
        self.wake.close()
        self.due.close()
