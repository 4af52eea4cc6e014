"""Notices that one of a VM's own methods does not return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from colo.errors import VmError

LOOK_S = 0.05


class VmWatch:
    """Each method may take ``limit_s``. ``on_hung(method, error)`` is then called once, from the watch's own thread."""

    def __init__(self, limit_s: float, on_hung: Callable[[str, VmError], None]) -> None:
        self._limit_s = limit_s
        self._on_hung = on_hung
        self._doing: tuple[str, float] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.hung: VmError | None = None

    def start(self) -> None:
        """Watch from now on, until :meth:`close`."""
        threading.Thread(target=self._watch, name="colo-vm-watch", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def guard(self, doing: str | None) -> None:
        """A method begins, or ended (None). Raises VmError when one was given up."""
        with self._lock:
            self._doing = None if doing is None else (doing, time.monotonic() + self._limit_s)
            if self.hung is not None:
                raise self.hung

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            with self._lock:
                doing = self._doing
                if doing is not None and time.monotonic() > doing[1]:
                    self.hung = VmError(
                        f"the VM's {doing[0]}() did not return within {self._limit_s:g} s: the session has given it up"
                    )
            if self.hung is not None and doing is not None:
                self._on_hung(doing[0], self.hung)
                return
