"""One session at a time has a VM."""

from __future__ import annotations

import threading

from colo.abc import VirtualMachine

_held: set[int] = set()
_lock = threading.Lock()


class VmHold:
    """The right to pause and resume ``vm``, in this process."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm  # kept: its id names it as long as it lives
        self._mine = False

    def take(self) -> None:
        """Raises RuntimeError when another session has it."""
        with _lock:
            if id(self._vm) in _held:
                raise RuntimeError("this VM belongs to another session; end that one first")
            _held.add(id(self._vm))
            self._mine = True

    def release(self) -> None:
        """Give it up, if it was taken. Any number of times."""
        with _lock:
            if self._mine:
                _held.discard(id(self._vm))
                self._mine = False
