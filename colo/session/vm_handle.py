"""The VM as a session pauses and resumes it."""

from __future__ import annotations

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
    paused_ns: int = 0
    guard: Callable[[str | None], None] = field(default=lambda doing: None)

    def pause(self) -> None:
        """Raises VmError when the VM's own method raises."""
        self.paused_ns = time.monotonic_ns()
        self._call("pause", self.vm.pause)
        self.paused = True

    def resume(self) -> None:
        if self.paused:
            self._call("resume", self.vm.resume)
            self.paused = False

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
