"""One side of the embedded demo, as a process of its own: ``python -m colo.cli.demo.side primary|secondary SETTINGS``.

It tells its events as JSON lines, and ends when its standard input does: nobody is left behind. The primary reads where
the secondary listens from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colo.cli import exit_code
from colo.emulator import EmbeddedVm, Walk
from colo.emulator.console_link import ConsoleLink
from colo.epoch.outbox import Outbox
from colo.errors import ColoError, Interrupted, NoCheckpoint, Unsupported, VmError
from colo.session.primary import Primary, PrimaryConfig
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig

POINTS = ("connected", "pause", "save", "resume", "committed", "deliver", "delivered")
TOLD_S = 10.0
"""The world may take so long to acknowledge the last line."""


@dataclass(frozen=True, slots=True)
class SideSettings:
    """What both sides are told. Paths are strings, so that it is JSON."""

    walk: dict[str, int]
    ram_bytes: int
    tick_s: float
    arbiter: str
    console: str
    interval_ms: float
    sending: str = "copy"
    tracker: str = "auto"
    xbzrle: str | None = None
    kill_at: str | None = None
    output_commit: bool = True
    heat_map: bool = False


class KillPoint:
    """``save:3``: this process kills itself the third time it comes to ``save``. Raises ValueError."""

    def __init__(self, text: str | None) -> None:
        self._point, colon, times = (text or "").partition(":")
        if text is not None and (self._point not in POINTS or (colon and not times.isdigit())):
            raise ValueError(f"{text!r} is no point to be killed at: one of {', '.join(POINTS)}, and :N")
        self._left = int(times or 1)

    def reached(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class MortalVm(EmbeddedVm):
    """The primary's VM."""

    point: KillPoint

    def pause(self) -> None:
        super().pause()
        self.point.reached("pause")

    def resume(self) -> None:
        super().resume()
        self.point.reached("resume")

    def save_state(self) -> bytes:
        state = super().save_state()
        self.point.reached("save")
        return state


def final_state(vm: EmbeddedVm) -> dict[str, Any]:
    """What two machines that did the same work have in common; the machine must stand still."""
    return {
        "ram_sha256": hashlib.sha256(vm.memory["ram"]).hexdigest(),
        "registers": asdict(vm.registers()),
        "ticks": vm.timer.ticks,
        "printed_bytes": vm.console.written,
    }


_telling = threading.Lock()


def tell(kind: str, data: Any = None) -> None:
    """One event to who started this process."""
    if hasattr(data, "as_dict"):
        data = data.as_dict()
    with _telling:
        print(json.dumps({"event": kind, "data": data}), flush=True)


def lead(settings: SideSettings) -> None:
    """The primary: never returns unless protection ends."""
    address = sys.stdin.readline().strip()
    end_with_parent()
    point = KillPoint(settings.kill_at)
    vm = MortalVm(settings.ram_bytes, tick_s=settings.tick_s)
    vm.point = point
    Walk(**settings.walk).load_into(vm)
    link = ConsoleLink(
        Path(settings.console), generation=0, start=0, written=0, on_acknowledged=vm.console.acknowledge)

    def deliver(item: tuple[int, bytes]) -> None:
        point.reached("deliver")
        link.send(*item)
        point.reached("delivered")

    outbox = Outbox(deliver)
    if settings.output_commit:
        vm.console.output = lambda position, data: outbox.put((position, data), len(data))
    else:
        vm.console.output = link.send

    def on_event(kind: str, data: Any) -> None:
        tell(kind, data)
        point.reached({"checkpoint": "committed"}.get(kind, kind))

    config = PrimaryConfig(
        address, settings.arbiter, interval_ms=settings.interval_ms, sending=settings.sending, tracker=settings.tracker,
        xbzrle=settings.xbzrle, sections=True)
    with Primary(vm, config, outbox=outbox, on_event=on_event) as primary:
        tell("started", {"pid": os.getpid(), "tracker": primary.status()["tracker"]})
        vm.resume()
        primary.start()
        outcome = primary.wait()
    tell("ended", {"ending": outcome.ending.value, "reason": outcome.reason})


def follow(settings: SideSettings) -> None:
    """The secondary: returns when it took over and the guest has done its work here."""
    end_with_parent()
    links: list[ConsoleLink] = []

    def reach_the_world() -> None:
        """The VM's state is loaded: what the world has not acknowledged will be said again."""
        link = ConsoleLink(
            Path(settings.console), generation=1, start=vm.console.start, written=vm.console.written,
            on_acknowledged=vm.console.acknowledge)
        links.append(link)
        vm.console.output = link.send

    vm = EmbeddedVm(settings.ram_bytes, tick_s=settings.tick_s, on_load=reach_the_world)
    came_to_nothing: list[str] = []

    def hear(kind: str, data: Any) -> None:
        tell(kind, data)
        if kind == "notice" and "nothing to resume from" in str(data):
            came_to_nothing.append(str(data))
            secondary.stop()  # it would wait for another primary; here nobody will come any more

    with VmSecondary(
        vm, VmSecondaryConfig("tcp:127.0.0.1:0", settings.arbiter, heat_map=settings.heat_map), on_event=hear
    ) as secondary:
        try:
            secondary.run()
        except Interrupted:
            if came_to_nothing:
                raise NoCheckpoint(came_to_nothing[0]) from None
            raise
        if secondary.heat is not None:
            tell("heat", secondary.heat)
        while vm.failure is None and not (vm.off and not vm.running):
            time.sleep(0.01)
        if vm.failure is not None:
            raise VmError(f"the guest did not get to its end after the takeover: {vm.failure}")
        end_s = time.monotonic() + TOLD_S
        while vm.console.tail and time.monotonic() < end_s:
            time.sleep(0.001)
            vm.console.settle()
        tell("finished", {"unacknowledged_bytes": len(vm.console.tail), **final_state(vm)})


def end_with_parent() -> None:
    """End this process when its standard input ends."""
    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> int:
    """Run one side; returns the exit code."""
    settings = SideSettings(**json.loads(sys.argv[2]))
    try:
        (lead if sys.argv[1] == "primary" else follow)(settings)
    except ColoError as error:
        tell("error", {"type": type(error).__name__, "message": str(error)})
        return exit_code(error)
    except ValueError as error:  # an option: --tracker
        tell("error", {"type": "Unsupported", "message": str(error)})
        return exit_code(Unsupported())
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads that wait on standard input must not hold it up
