"""A hardware watchdog: resets the machine when nobody says any more that all is well."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from colo.errors import Unsupported

WDIOC_SETTIMEOUT = 0xC0045706
"""linux/watchdog.h: _IOWR('W', 6, int)."""


class Watchdog:
    """The device at ``path``, set to ``timeout_s``. Raises Unsupported, with the reason, where it cannot be had."""

    def __init__(self, path: str, timeout_s: int) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise Unsupported(f"watchdog {path}: {error.strerror}; name another, or none") from error
        try:
            fcntl.ioctl(self._fd, WDIOC_SETTIMEOUT, struct.pack("i", timeout_s))
        except OSError as error:
            self.close()
            raise Unsupported(f"watchdog {path} takes no timeout of {timeout_s} s: {error.strerror}") from error

    def well(self) -> None:
        """All is well: the time begins anew."""
        with contextlib.suppress(OSError):
            os.write(self._fd, b"\0")

    def close(self) -> None:
        """Switch it off. (A process that dies without this leaves it on: the machine is then reset.)"""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.write(self._fd, b"V")
            os.close(self._fd)
            self._fd = -1
