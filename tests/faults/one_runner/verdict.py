"""What came of a case, and whether it may be."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from tests.faults.one_runner.failures import Case
from tests.faults.one_runner.output import Run, overlaps
from tests.faults.one_runner.world import World

THAW_S = 0.3
"""What was frozen may run so long after its thaw at the most, before it is told that it has lost."""
SLACK_S = 1.5
"""What a loaded machine may add to every bound in time."""
LATE_S = 5.0
"""And to a takeover, for which programs may have to be started. How late it was is in the figures; no test is lost by less."""


@dataclass(slots=True)
class Verdict:
    """``runs`` is where the VM runs at the end. ``faults`` are what may not be; without any the case is good."""

    case: str
    runs: str
    after_ms: float | None
    """From the first failure until the secondary's VM ran; None if it did not."""
    outage_ms: float = 0.0
    """The longest time, from just before the first failure on, in which no guest put anything out."""
    overlap_ms: float = 0.0
    """How long both ran, without what follows a thaw."""
    thawed_ms: float = 0.0
    """How long what was thawed ran while the other side did."""
    exits: dict[str, int | None] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    took_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge(case: Case, world: World, *, failed_at_s: float, mended_at_s: float, ended_at_s: float) -> Verdict:
    """Of a world in which everything has settled."""
    runs = {name: output.runs() for name, output in world.outputs.items()}
    running = world.running(within_s=0.5)  # a loaded machine may leave a guest waiting for so long
    if len(running) == 2:  # one of them may be the last that was heard of one that was just thawed
        time.sleep(0.6)
        running = world.running(within_s=0.5)
    verdict = Verdict(
        case.line(), {0: "nowhere", 1: running[0] if running else "", 2: "both"}[len(running)], None,
        exits={program.name: program.exit_code() for program in world.programs}, said=world.summary())
    _judge_overlap(verdict, world, runs)
    _judge_place(verdict, case, world, running, runs, failed_at_s, mended_at_s)
    _judge_words(verdict, case, world)
    if torn := world.torn():
        verdict.faults.append(f"memory of two instants: {torn}")
    verdict.took_s = round(ended_at_s - failed_at_s, 2)
    return verdict


def _judge_overlap(verdict: Verdict, world: World, runs: dict[str, list[Run]]) -> None:
    for both in overlaps(runs["primary"], runs["secondary"]):
        length_ms = (both.end_s - both.start_s) * 1000
        if any(-0.01 <= both.start_s - thaw <= 0.1 for thaw in world.thaws):
            verdict.thawed_ms = round(verdict.thawed_ms + length_ms, 1)
        else:
            verdict.overlap_ms = round(verdict.overlap_ms + length_ms, 1)
    if verdict.overlap_ms:
        verdict.faults.append(f"both ran for {verdict.overlap_ms} ms")
    if verdict.thawed_ms > THAW_S * 1000:
        verdict.faults.append(f"what was thawed ran for {verdict.thawed_ms} ms beside the other side")
    # One VM has one course: after the secondary has begun, nothing of the primary is legitimate.
    first = runs["secondary"][0].start_s if runs["secondary"] else None
    if first is not None and not verdict.overlap_ms:
        late = [run for run in runs["primary"] if run.start_s > first and not any(
            -0.01 <= run.start_s - thaw <= 0.1 for thaw in world.thaws)]
        if late:
            verdict.faults.append(f"the primary's VM ran again {(late[0].start_s - first) * 1000:.0f} ms after the secondary's began")


def _judge_place(
    verdict: Verdict, case: Case, world: World, running: list[str], runs: dict[str, list[Run]], failed_at_s: float,
    mended_at_s: float,
) -> None:
    failures = case.failures
    destroyed = frozenset[str]().union(*(failure.destroys for failure in failures))
    begun = next((run.start_s for run in runs["secondary"] if run.end_s >= failed_at_s), None)
    if begun is not None:
        verdict.after_ms = round((begun - failed_at_s) * 1000, 1)
    verdict.outage_ms = round(_outage_ms([*world.outputs["primary"].read(), *world.outputs["secondary"].read()], failed_at_s), 1)
    if not running:
        if len(destroyed) == 2:
            ran_there = begun is not None  # and died there: of a VM that ran there is no copy any more
            in_files = case.vm != "in-process"  # that one's copy is its own memory, and goes with the program
            if in_files and not ran_there and not world.copy_is_kept() and not world.had_lost("secondary"):
                verdict.faults.append("both sides were destroyed, and the secondary's copy is not kept")
            verdict.runs = "nowhere (both destroyed)"
        elif destroyed and world.had_lost(*({"primary", "secondary"} - destroyed)):
            verdict.runs = "nowhere (the one that ran was destroyed)"
        else:
            verdict.faults.append("the VM runs nowhere")
    if len(running) == 2:
        verdict.faults.append("both run, for good")
    if case.runs and running and running != [case.runs]:
        verdict.faults.append(f"the {running[0]}'s VM runs, the {case.runs}'s was to")
    if begun is not None and case.runs == "secondary" and not failures[0].thaws:
        late_s = begun - failed_at_s - world.lease_ms / 1000 - 0.5
        if late_s > LATE_S:
            verdict.faults.append(f"the secondary's VM ran {late_s:.1f} s later than lease + 0.5 s")


def _outage_ms(beats: list[float], since_s: float) -> float:
    beats = sorted(beats)
    return max(((later - sooner) * 1000 for sooner, later in pairwise(beats) if later > since_s), default=0.0)


def _judge_words(verdict: Verdict, case: Case, world: World) -> None:
    """Whoever said that a VM runs, or that one is gone, was right, unless it was destroyed or frozen by the case itself."""
    touched = {side for failure in case.failures for side in failure.destroys}
    touched |= {"primary" for failure in case.failures if failure.name.startswith(("vm-", "primary-host"))}
    touched |= {"secondary" for failure in case.failures if failure.name.startswith("secondary-host")}
    for side, when_s, words in world.statements():
        if side in touched:
            continue
        beat = world.outputs[side].first_after(when_s - 0.5)
        if beat is None or beat > when_s + SLACK_S:
            verdict.faults.append(f"{words}: but the {side}'s VM did not run then")
