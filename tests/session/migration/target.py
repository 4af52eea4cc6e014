"""A destination for migrations, on a thread of its own, and what is asked of a source's VM."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from colo.errors import ColoError
from colo.memory.trackers import probe
from colo.protocol.deadlines import Deadlines
from colo.session.migration import (
    Arrival,
    MigrationDestination,
    MigrationDestinationConfig,
    MigrationSource,
    MigrationSourceConfig,
)
from tests.session.primary_vm import PageVm, expected

TRACKERS = [result.name for result in probe() if result.available and result.name != "explicit"]
PAGES = 64
QUICK = Deadlines(message_s=1.0, progress_s=1.0, epoch_s=2.0, handshake_s=2.0, idle_s=5.0)


class Target:
    """A destination on a thread, and what became of it."""

    def __init__(self, vm: Any = None, **options: Any) -> None:
        self.vm = vm or PageVm(PAGES)
        self.outcome: Arrival | BaseException | None = None
        self.destination = MigrationDestination(
            self.vm, MigrationDestinationConfig(**{"listen": "tcp:127.0.0.1:0", "resume": False, "deadlines": QUICK, **options}))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.destination.run()
        except ColoError as error:
            self.outcome = error

    def join(self) -> Any:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome

    def close(self) -> None:
        if self.thread.is_alive():
            self.destination.stop()
            self.thread.join(20)
        self.destination.close()
        if hasattr(self.vm, "close"):
            self.vm.close()


def config(target: Target, **options: Any) -> MigrationSourceConfig:
    return MigrationSourceConfig(target.destination.address, **{"deadlines": QUICK, **options})


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def runs_on(vm: Any) -> None:
    """The VM runs here, as if nothing had been."""
    assert vm.running
    turn = vm.turn
    wait_until(lambda: vm.turn > turn, "the VM stands still")
    with vm.paused():
        assert vm.image() == expected(vm.turn, vm.pages)


def tracked_by_nobody(migration: MigrationSource) -> None:
    for part in migration._pages.tracker.parts:  # type: ignore[attr-defined]
        assert not part.started
