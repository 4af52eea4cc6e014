"""A primary with the tiny guest, and our secondary in this process, for one fault each."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from colo.arbiter import init_arbiter
from colo.epoch.committed import Committed
from colo.errors import QemuError
from colo.figures.takeover_report import TakeoverReport
from colo.protocol.deadlines import Deadlines
from colo.qemu.guest import GuestState, check_guest_memory
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import QemuProcess
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from tests.qemu.tiny_machine import GUEST, RAM_MIB, Machine, wait_for_lines

SETTINGS = ColoSettings(checkpoint_delay_ms=20)
DEADLINES = Deadlines().capped(1000)
LINE_STEPS = GUEST.steps_per_tick * GUEST.ticks_per_line
LOW_BYTES = 0xA0000
HIGH_START = 0x100000
"""Between them lie the VGA hole and shadowed ROM: not in pc.ram as the processor sees it."""


class Rig:
    """``run_dir`` gets everything. ``config`` overrides fields of the secondary's configuration."""

    def __init__(self, machine: Machine, run_dir: Path, *, settings: ColoSettings = SETTINGS, primary_extra: tuple[str, ...] = (),
                 **config: Any) -> None:
        self.run_dir = run_dir
        self.settings = settings
        self.serial = run_dir / "standby.log"
        self.primary_serial = run_dir / "primary.log"
        self.arbiter_dir = run_dir / "arbiter"
        self.arbiter_dir.mkdir(mode=0o700)
        init_arbiter(f"file:{self.arbiter_dir}", vm="test")
        self.ram_dir = config.setdefault("ram_dir", run_dir / "ram")
        self.monitor = run_dir / "protect.sock"
        self.events: list[tuple[str, Any]] = []
        self.outcome: TakeoverReport | BaseException | None = None
        self.image: bytes | None = None
        self.state: GuestState | BaseException | None = None
        self.on_compose: Callable[..., None] = lambda *_: None
        """Called in a takeover when the stand-by is chosen, before it is given anything."""
        self.process = QemuProcess.start(
            machine("-qmp", f"unix:{self.monitor},server=on,wait=off", *primary_extra, accel="kvm", serial=self.primary_serial),
            run_dir / "primary",
        )
        self.primary = QemuPrimary(self.process)
        values: dict[str, Any] = {
            "standby": machine(accel="kvm", serial=self.serial),
            "arbiter": f"file:{self.arbiter_dir}",
            "deadlines": DEADLINES,
            "lease_ms": 0.0,  # these primaries are led by the test itself: nobody is there to ask for one
            "takeover_s": 10.0,
        }
        self.config = replace(QemuSecondaryConfig("tcp:127.0.0.1:0", self.ram_dir), **(values | config))
        try:
            self.secondary = QemuSecondary(self.config, on_event=self._event)
        except BaseException:
            self.process.kill()
            raise
        resume = self.secondary._resume

        def resume_after(*arguments: Any, **named: Any) -> TakeoverReport:
            self.on_compose()
            return resume(*arguments, **named)

        self.secondary._resume = resume_after  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self._follow, name="secondary-under-test", daemon=True)

    def _event(self, kind: str, data: Any) -> None:
        self.events.append((kind, data))
        if kind == "settled":
            self._examine(data)

    def notices(self, words: str) -> list[str]:
        """The notices so far that have these words."""
        return [str(data) for kind, data in list(self.events) if kind == "notice" and words in str(data)]

    def _examine(self, committed: Committed) -> None:
        # As a file: looking at a mapping's holes would give them storage.
        self.image = self.secondary.image.path("pc.ram").read_bytes()
        try:
            self.state = check_guest_memory(self.image, GUEST)
        except BaseException as error:
            self.state = error

    def _follow(self) -> None:
        try:
            self.outcome = self.secondary.run()
        except BaseException as error:
            self.outcome = error

    # -- the parts of a case

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.secondary.address.removeprefix("tcp:").rsplit(":", 1)
        return host, int(port)

    def start(self) -> None:
        """The secondary runs; the guest has passed over its whole range once."""
        self.thread.start()
        wait_for_lines(self.primary_serial, 1)

    def protect(self, port: int | None = None) -> None:
        """Without waiting for the first checkpoint, which may never come."""
        uri = f"tcp:127.0.0.1:{port or self.address[1]}"
        thread = threading.Thread(target=self._set_up, args=(uri,), daemon=True)
        thread.start()
        self._setting_up = thread

    def _set_up(self, uri: str) -> None:
        with contextlib.suppress(QemuError):
            self.primary.set_up(uri, self.settings, timeout_s=30)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def kill_primary(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def primary_memory(self) -> bytes:
        """All RAM of the primary as its processor sees it: its VM must stand still."""
        assert self.process.status() in ("paused", "colo", "finish-migrate"), self.process.status()
        path = self.run_dir / "pmemsave"
        self.process.qmp.execute("pmemsave", {"val": 0, "size": RAM_MIB << 20, "filename": str(path)})
        data = path.read_bytes()
        path.unlink()
        return data

    def finish(self, timeout_s: float = 20.0) -> TakeoverReport | BaseException:
        """How the session ended."""
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), f"the session hangs: {self.secondary.status()}"
        assert self.outcome is not None
        return self.outcome

    def check_resumed(self, report: TakeoverReport | BaseException, expected: int) -> None:
        """The VM runs from ``expected``: its memory was of one instant, and it goes on from there."""
        if isinstance(report, BaseException):
            raise report
        assert report.checkpoint == expected
        if not isinstance(self.state, GuestState):
            raise self.state or AssertionError("the image was never settled")
        counters = wait_for_lines(self.serial, 1)
        # The counter is stored before its line is printed: between the two they are equal.
        assert self.state.counter <= counters[0] <= self.state.counter + LINE_STEPS, (self.state.counter, counters)
        assert counters == sorted(counters)

    def close(self) -> None:
        with contextlib.suppress(QemuError):
            self.process.kill()
        self.secondary.stop()
        self.thread.join(20)
        self.secondary.close()
        if isinstance(self.outcome, TakeoverReport):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.outcome.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.outcome.pid, 0)


@contextlib.contextmanager
def rig(machine: Machine, run_dir: Path, **options: Any) -> Iterator[Rig]:
    case = Rig(machine, run_dir, **options)
    try:
        yield case
    finally:
        case.close()


def same_ram(image: bytes, saved: bytes) -> bool:
    """Whether ``image`` (pc.ram) is ``saved`` (the processor's view), where the two show the same memory."""
    return image[:LOW_BYTES] == saved[:LOW_BYTES] and image[HIGH_START:] == saved[HIGH_START:]


def wait_until(holds: Any, timeout_s: float = 10.0, what: str = "it") -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)
