"""The lease: until when each side may run the VM, each by its own clock.

The secondary promises, in answer to a renewal, "I shall not run the VM before L has passed since I sent this". The primary's
side counts L less a margin from the moment it **asked**. The asking was before the answer, so its lease ends before the
promise does, whatever the network does; no clock is compared with another's, and the wall clock plays no part.

Both classes do no I/O and read no clock: times are nanoseconds of one clock that goes on while a host sleeps
(``CLOCK_BOOTTIME``), each side's own.
"""

from __future__ import annotations

from collections import deque

LEASE_MS = 3000.0
LEASE_MS_LEAST = 300.0
LEASE_MS_MOST = 60_000.0
MARGIN_NS_LEAST = 100_000_000
"""For scheduling: from the lease's end being noticed to the VM's last processor standing still."""
DRIFT_PPM = 400
"""Two clocks, each within 200 ppm of the true rate."""
RENEWALS = 4
"""Renewals a lease."""
LEASE_SHARE = 3
"""With a third of a lease left, and no promise coming, the secondary counts as lost: there must be time to ask the
arbiter."""
KEPT = 64
"""Renewals whose sending is remembered: an answer to an older one proves nothing any more."""


def lease_ns_of(lease_ms: float) -> int:
    """A lease in nanoseconds. Raises ValueError when it cannot be one."""
    if not LEASE_MS_LEAST <= lease_ms <= LEASE_MS_MOST:
        raise ValueError(
            f"a lease of {lease_ms:g} ms: from {LEASE_MS_LEAST:g} ms, or a hiccup ends it, to {LEASE_MS_MOST:g} ms")
    return int(lease_ms * 1e6)


def margin_ns(lease_ns: int) -> int:
    """What the primary's side takes off a lease."""
    return max(MARGIN_NS_LEAST, lease_ns * DRIFT_PPM // 1_000_000 + lease_ns // 100)


class LeaseHolder:
    """The side whose VM runs: asks, and knows when its lease is over."""

    __slots__ = ("_asked", "_sequence", "end_ns", "lease_ns")

    def __init__(self, lease_ns: int, *, end_ns: int = 0) -> None:
        self.lease_ns = lease_ns
        self.end_ns = end_ns
        """The VM may run before this, and must stand still from then on."""
        self._sequence = 0
        self._asked: deque[tuple[int, int]] = deque(maxlen=KEPT)

    def ask(self, now_ns: int) -> int:
        """A renewal is about to be sent: its sequence number."""
        self._sequence += 1
        self._asked.append((self._sequence, now_ns))
        return self._sequence

    def promised(self, sequence: int, lease_ns: int) -> bool:
        """The promise that answers renewal ``sequence`` came, for ``lease_ns``; whether the lease ends later by it."""
        asked_ns = next((at for number, at in self._asked if number == sequence), None)
        if asked_ns is None:
            return False
        length_ns = min(lease_ns, self.lease_ns)
        end_ns = asked_ns + length_ns - margin_ns(length_ns)
        if end_ns <= self.end_ns:
            return False
        self.end_ns = end_ns
        return True

    @property
    def due_ns(self) -> int:
        """When the next renewal is to be sent."""
        return self._asked[-1][1] + self.lease_ns // RENEWALS if self._asked else 0

    def left_ns(self, now_ns: int) -> int:
        """How long the VM may still run; 0 when the lease is over."""
        return max(0, self.end_ns - now_ns)


class LeaseGrantor:
    """The side that waits: promises, and knows when it has kept its promise.

    ``forgotten``: this side may have promised before it was started again, so the longest promise counts from now.
    """

    __slots__ = ("_progress_ns", "_promised", "lease_ns", "promise_end_ns", "proof", "wanting")

    def __init__(self, lease_ns: int, now_ns: int, *, forgotten: bool = False) -> None:
        self.lease_ns = lease_ns
        self.promise_end_ns = now_ns + lease_ns if forgotten else 0
        self.wanting = False
        """It wants to run the VM, and so promises no more."""
        self.proof = ""
        """Why the other side's VM does not run, and will not."""
        self._promised = forgotten
        self._progress_ns = 0

    def renewal(self, now_ns: int) -> bool:
        """The other side asks: whether it is promised, from now on."""
        if self.wanting or self.proof:
            return False
        self.promise_end_ns = max(self.promise_end_ns, now_ns + self.lease_ns)
        self._promised = True
        return True

    def progress(self, now_ns: int) -> None:
        """The other side's VM has just shown that it runs (a checkpoint was committed)."""
        self._progress_ns = now_ns

    def want(self) -> None:
        """From now on nothing is promised."""
        self.wanting = True

    def relent(self) -> None:
        """It wants no longer. A proof stays: what was proven of this generation stays true."""
        self.wanting = False

    def proven(self, proof: str) -> None:
        """The other side's VM does not run, and will not in this generation."""
        self.proof = self.proof or proof

    @property
    def unfenced(self) -> bool:
        """The VM went on although nothing was promised: nothing stops it there, and so time proves nothing.

        What was sent before the lease was over may come late, but not by as much as half a lease.
        """
        return self._promised and self._progress_ns > self.promise_end_ns + self.lease_ns // 2

    def lapsed(self, now_ns: int) -> bool:
        """Whether the promise is over, nobody asked for another, and the VM showed nothing for half a lease either: the
        primary's side is lost, whatever its connection looks like."""
        return (
            self._promised and not self.wanting and now_ns >= self.promise_end_ns
            and self._progress_ns <= now_ns - self.lease_ns // 2
        )

    def wait_ns(self, now_ns: int) -> int | None:
        """How long until the VM may run here; 0: now; None: only a proof can tell (:attr:`unfenced`)."""
        if self.proof:
            return 0
        if self.unfenced:
            return None
        return max(0, self.promise_end_ns - now_ns)
