"""Cases, run: one on a set of hosts, or many on several sets at once."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.faults.one_runner.arbiters import Arbiters
from tests.faults.one_runner.failures import Case
from tests.faults.one_runner.hosts import ROOT, Hosts
from tests.faults.one_runner.output import Output
from tests.faults.one_runner.verdict import SLACK_S, Verdict, judge
from tests.faults.one_runner.world import NotBegun, World

LEASE_MS = 1000
LOOK_S = 0.05
ASKING_S = 6.0
"""So long a command that asks a session may take."""
FETCHED = Path(os.environ.get("COLO_QEMU_DIR", ROOT / ".qemu"))


def binary(vm: str) -> str:
    """The QEMU of that version; "" if it is not here, or none is needed."""
    if vm == "7.2":
        return shutil.which(os.environ.get("COLO_QEMU", "qemu-system-x86_64")) or ""
    path = FETCHED / vm / "qemu-system-x86_64"
    return str(path) if path.exists() else ""


class Place:
    """A set of hosts on which one case after another is run. A context manager."""

    def __init__(self) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix="colo-", dir="/dev/shm"))
        self.hosts = Hosts(self.run_dir)
        self.arbiters = Arbiters(self.hosts)
        self.outputs = {name: Output(self.hosts[name]) for name in ("primary", "secondary")}

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        for output in self.outputs.values():
            output.close()
        self.hosts.close()
        shutil.rmtree(self.run_dir)

    def run(self, case: Case, lease_ms: int = LEASE_MS) -> Verdict:
        """Make its world, let it fail, mend what can be mended, and judge. Raises NotBegun."""
        world = World(
            self.hosts, self.arbiters, self.outputs, vm=case.vm, arbiter=case.arbiter, binary=binary(case.vm),
            lease_ms=lease_ms)
        with contextlib.closing(world):
            world.begin()
            time.sleep(case.wait_ms / 1000)
            failed_at_s = time.time()
            case.failures[0].act(world)
            if case.second:
                time.sleep(case.delay_ms / 1000)
                case.failures[1].act(world)
            self._settle(world, lease_ms / 1000 + 1.0)
            mended_at_s = time.time()
            self._mend(case, world)
            self._settle(world, lease_ms / 1000 + 1.0, goes_on_after_s=time.time() + 0.3)
            if len(world.running()) != 1:
                self._settle(world, lease_ms / 1000 + 2 * SLACK_S)
            return judge(case, world, failed_at_s=failed_at_s, mended_at_s=mended_at_s, ended_at_s=time.time())

    def _mend(self, case: Case, world: World) -> None:
        for helper in world.helpers:
            while helper.is_alive():
                helper.join(LOOK_S)
                world.running()
        for failure in case.failures:
            if failure.mend is not None:
                failure.mend(world)

    def _settle(self, world: World, most_s: float, goes_on_after_s: float = float("inf")) -> None:
        """Until who runs cannot change any more, or protection goes on after then; or so long."""
        end = time.monotonic() + most_s
        latest = end + ASKING_S
        sure = 0
        while time.monotonic() < end or (world.is_asking() and time.monotonic() < latest):
            time.sleep(LOOK_S)
            if world.is_asking():
                continue
            sure = sure + 1 if world.is_decided() or world.is_protected_since(goes_on_after_s) else 0
            if sure * LOOK_S >= 0.3:
                return


def run_all(
    cases: Iterable[Case], *, places: int, lease_ms: int = LEASE_MS, tell: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """All of them, ``places`` at a time; a case that could not begin is tried once more. In the order of the cases."""
    waiting: queue.SimpleQueue[tuple[int, Case]] = queue.SimpleQueue()
    verdicts: dict[int, Verdict] = {}
    errors: list[BaseException] = []
    for number, case in enumerate(cases):
        waiting.put((number, case))

    def work() -> None:
        try:
            with Place() as place:
                while not errors:
                    try:
                        number, case = waiting.get_nowait()
                    except queue.Empty:
                        return
                    verdicts[number] = _tried(place, case, lease_ms)
                    tell(verdicts[number])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, name=f"place-{n}") for n in range(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [verdicts[number] for number in sorted(verdicts)]


def _tried(place: Place, case: Case, lease_ms: int) -> Verdict:
    for left in (True, False):
        try:
            return place.run(case, lease_ms)
        except NotBegun as error:
            if not left:
                return Verdict(case.line(), "not begun", None, faults=[f"not begun: {error}"])
        except Exception as error:  # one of a thousand, and the instruments': the others are not lost by it
            return Verdict(case.line(), "not judged", None, faults=[f"not judged: {type(error).__name__}: {error}"])
    raise AssertionError("not reached")


def table(verdicts: Sequence[Verdict]) -> str:
    """For a terminal: a line per case, faults last."""
    lines = [f"{'case':<95} {'runs':<10} {'after ms':>9} {'outage':>7} {'overlap':>8} {'thawed':>7}  exits"]
    for verdict in verdicts:
        exits = " ".join(f"{name}={code}" for name, code in verdict.exits.items())
        lines.append(
            f"{verdict.case:<95} {verdict.runs:<10} {verdict.after_ms if verdict.after_ms is not None else '-':>9} "
            f"{verdict.outage_ms:>7} {verdict.overlap_ms:>8} {verdict.thawed_ms:>7}  {exits}")
        lines += [f"    FAULT {fault[:400]}" for fault in verdict.faults]
    faulty = [verdict for verdict in verdicts if verdict.faults]
    lines.append(f"{len(verdicts)} cases, {len(faulty)} with faults, both ran in {sum(v.overlap_ms > 0 for v in verdicts)}, "
                 f"nowhere in {sum('nowhere' in ' '.join(v.faults) for v in verdicts)}")
    return "\n".join(lines)
