"""Who else can change a range of memory, by what /proc/PID/maps says of it."""

from typing import Final

DELETED_HUGE: Final[str]

def seen_by_others(pid: int, low: int, high: int) -> str | None:
    """None when ``[low, high)`` of process ``pid`` (0: this one) is changed through its page tables only;
    otherwise which mapping it is that others can change, and how. What is not mapped is left out.

    TrackerError when the process's mappings cannot be read."""

def printable(path: str) -> str:
    """``path`` for a message: no control characters, at most 80 characters."""
