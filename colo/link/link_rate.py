"""How fast a link is."""

from __future__ import annotations

MEASURED_BYTES = 64 << 10
"""Shorter checkpoints tell of the round trip, not of the link's rate."""
NEW_SHARE = 0.25


class LinkRate:
    """The link's rate, from checkpoints long enough to show it: a running average."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0
        """0: not known yet."""

    def took(self, sent_bytes: int, ms: float) -> None:
        """So many bytes were sent and acknowledged within so long."""
        if sent_bytes < MEASURED_BYTES or ms <= 0:
            return
        now = sent_bytes / ms * 1000
        self.bytes_per_s += (now - self.bytes_per_s) * (NEW_SHARE if self.bytes_per_s else 1.0)
