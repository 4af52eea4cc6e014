"""The VM as a session pauses and resumes it: for a checkpoint, and when its lease is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from colo.abc import VirtualMachine
from colo.vm.calls import call_vm, unguarded

T = TypeVar("T")


@dataclass(slots=True)
class VmHandle:
    """The VM, and whether this session has it stand still. ``guard`` hears of calls that could hang."""

    vm: VirtualMachine
    paused: bool = False
    """For a checkpoint, or because the other side runs."""
    paused_ns: int = 0
    guard: Callable[[str | None], None] = unguarded
    unleased: bool = False
    """Because no lease allows it to run."""
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def pause(self) -> None:
        """Raises VmError when the VM's own method raises."""
        with self._lock:
            self.paused_ns = time.monotonic_ns()
            if not self.unleased:
                self._call("pause", self.vm.pause)
            self.paused = True

    def resume(self) -> None:
        """It goes on, if its lease allows it."""
        with self._lock:
            if self.paused:
                if not self.unleased:
                    self._call("resume", self.vm.resume)
                self.paused = False

    def lease_over(self) -> None:
        """It may not run any more. From the lease's thread."""
        with self._lock:
            if not self.unleased:
                if not self.paused:
                    self.vm.pause()
                self.unleased = True

    def leased(self) -> None:
        """It may run again. From the lease's thread."""
        with self._lock:
            if self.unleased:
                self.unleased = False
                if not self.paused:
                    self.vm.resume()

    def save(self) -> object:
        """What its ``save_state`` returns. Raises as :meth:`pause`."""
        return self._call("save_state", self.vm.save_state)

    def _call(self, name: str, method: Callable[[], T]) -> T:
        return call_vm(name, method, self.guard)
