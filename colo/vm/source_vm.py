"""The VM at a migration's source: stood still, let run, slowed down, and left as it was found."""

from __future__ import annotations

from collections.abc import Callable

from colo.abc import VirtualMachine
from colo.vm.calls import call_vm
from colo.vm.handle import VmHandle


class SourceVm:
    """``guard`` hears of calls that could hang. All methods raise VmError for what the VM's own raise."""

    def __init__(self, vm: VirtualMachine, guard: Callable[[str | None], None]) -> None:
        self.vm = vm
        self.was_running = True
        self.throttle_percent: int | None = None
        """None: it was never slowed down."""
        self._guard = guard
        self._handle = VmHandle(vm, guard=guard)

    def note_running(self) -> None:
        """Whether it is to run on is decided by whether it runs now. One that does not tell (``running``) does."""
        self.was_running = bool(getattr(self.vm, "running", True))

    @property
    def paused(self) -> bool:
        """Whether it stands still for the session's sake."""
        return self._handle.paused

    @property
    def paused_ns(self) -> int:
        """Since when, on time.monotonic_ns()'s clock."""
        return self._handle.paused_ns

    def pause(self) -> None:
        if not self._handle.paused:
            self._handle.pause()

    def run_on(self) -> None:
        """Run, if it ran before."""
        if self.was_running:
            self._handle.resume()
        self._handle.paused = False

    def save(self) -> object:
        """What its ``save_state`` returns."""
        return self._handle.save()

    def throttle(self, percent: int) -> None:
        self.throttle_percent = percent
        call_vm("throttle", lambda: self.vm.throttle(percent), self._guard)  # type: ignore[attr-defined]
