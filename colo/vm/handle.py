"""The VM as a session pauses and resumes it: for a checkpoint, and when its lease is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from colo.abc import VirtualMachine
from colo.errors import VmError


@dataclass(slots=True)
class VmHandle:
    """The VM, and whether this session has it stand still. ``guard`` hears of calls that could hang."""

    vm: VirtualMachine
    paused: bool = False
    """For a checkpoint, or because the other side runs."""
    paused_ns: int = 0
    guard: Callable[[str | None], None] = field(default=lambda doing: None)
    unleased: bool = False
    """Because no lease allows it to run."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

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
        found: list[object] = []
        self._call("save_state", lambda: found.append(self.vm.save_state()))
        return found[0]

    def _call(self, name: str, method: Callable[[], object]) -> None:
        self.guard(name)
        try:
            method()
        except Exception as error:
            raise VmError(f"the VM's {name}() raised {type(error).__name__}: {error}") from error
        finally:
            self.guard(None)
