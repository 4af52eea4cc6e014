"""The clock that leases are counted by."""

from __future__ import annotations

import time


def now_ns() -> int:
    """Nanoseconds of CLOCK_BOOTTIME, which goes on while the machine sleeps; each machine's own, compared with no other's."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
