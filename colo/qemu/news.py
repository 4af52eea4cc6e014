"""What whoever looks after a QEMU waits for: that somebody has something new for it, or that the QEMU's process is gone."""

from __future__ import annotations

import math
import select
import time

from colo.qemu.process import Qemu
from colo.wake import Wake


class News:
    """One thread waits; :meth:`ring` is for all others: the monitor's, a fence's, whoever asks for something.

    What is new has to be there before it is rung for, and is looked at after each :meth:`wait`: so nothing is missed.
    """

    def __init__(self) -> None:
        self._wake = Wake()

    def ring(self) -> None:
        """There is something new. From any thread, also after :meth:`close`."""
        self._wake.set()

    def wait(self, qemu: Qemu, until: float) -> None:
        """Until it was rung, the process of ``qemu`` is gone, or it is ``until`` (``time.monotonic()``; infinite: never)."""
        poller = select.poll()
        poller.register(self._wake.fd, select.POLLIN)
        if qemu.end_fd is not None:
            poller.register(qemu.end_fd, select.POLLIN)
        poller.poll(None if until == math.inf else max(0.0, until - time.monotonic()) * 1000)
        self._wake.clear()

    def close(self) -> None:
        """Nobody waits any more. Any number of times."""
        self._wake.close()
