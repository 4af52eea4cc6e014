"""Whatever is cut, frozen or killed, and whenever: at no instant do both copies of the VM execute, and one does in the end."""

from __future__ import annotations

import random

import pytest

from colo.protocol.lease import LeaseGrantor
from tests.protocol.lease_world import END_NS, LEASE_NS, MS, BothRun, World

CUTS: tuple[tuple[str, ...], ...] = (
    ("PS", "SP"), ("PS",), ("SP",), ("PA", "AP"), ("SA", "AS"), ("PS", "SP", "PA", "AP"), ("PS", "SP", "SA", "AS"),
    ("PA", "AP", "SA", "AS"), ("AP",), ("AS",), ("PS", "SP", "PA", "AP", "SA", "AS"),
)
FREEZES = ("Q", "F", "G", "S", "QFG")
"""One process, or the primary's host as a whole. Two of three (the fence and the guard, with the VM running on) is what nobody
can mend from outside: see the table in docs/operation.md."""
KILLS = ("Q", "G", "S")


def misfortune(world: World) -> None:
    """One to three faults at random times, one of which may be an operator's wish."""
    rng = world.rng
    frozen: set[str] = set()
    for _ in range(rng.randint(1, 3)):
        at = 2_000 * MS + rng.randrange(4_000 * MS)
        length = int(rng.choice((0.05, 0.3, 1.0, 2.5)) * LEASE_NS * rng.uniform(0.5, 1.5))
        what = rng.choice(("cut", "cut", "freeze", "kill", "request"))
        if what == "cut":
            pairs = rng.choice(CUTS)
            world.at(at, "world", lambda pairs=pairs, length=length: world.cut(pairs, length))
        elif what == "freeze":
            names = rng.choice(FREEZES)
            if frozen and names != "S":
                continue
            frozen.add(names)
            world.at(at, "world", lambda names=names, length=length: world.freeze(names, length))
        elif what == "kill":
            name = rng.choice(KILLS)
            if name == "G" and frozen & {"F"}:
                continue
            frozen |= {"F"} if name == "G" else set()
            world.at(at, "world", lambda name=name: world.kill(name))
        else:
            world.at(at, "S", world.request)


def one_schedule(seed: int) -> World:
    world = World(seed)
    world.start()
    misfortune(world)
    try:
        world.run(END_NS)
    except BothRun as both:
        both.add_note(f"seed {seed}")
        for line in world.log[-40:]:
            both.add_note(line)
        raise
    return world


def check_somebody_runs(world: World, seed: int) -> None:
    """All links are whole again by now. What nobody was left to run is not counted: the secondary dead, and QEMU, or the
    secondary had won."""
    if world.primary.runs or world.standby.runs:
        return
    told = f"seed {seed}: nobody runs\n" + "\n".join(world.log[-40:])
    # Restarted, it has its copy and its generation; here it stays dead.
    nobody_decides = "S" in world.dead and (world.primary.dead or world.winner == "S")
    died_unprotected = world.primary.dead and world.winner == "P" and world.generation == 2
    assert nobody_decides or died_unprotected, told


def many(first: int, count: int) -> dict[str, int]:
    found = {"primary": 0, "secondary": 0, "nobody": 0}
    for seed in range(first, first + count):
        world = one_schedule(seed)
        check_somebody_runs(world, seed)
        found["primary" if world.primary.runs else "secondary" if world.standby.runs else "nobody"] += 1
    return found


def test_one_runner_in_some_schedules() -> None:
    found = many(random.randrange(10**9), 700)
    assert found["primary"] > 50 and found["secondary"] > 50, found


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_one_runner_in_a_hundred_thousand_schedules() -> None:
    found = many(0, 100_000)
    assert found["primary"] > 10_000 and found["secondary"] > 10_000, found


class Hasty(LeaseGrantor):
    """Promises, and keeps nothing."""

    def wait_ns(self, now_ns: int) -> int | None:
        return 0


def test_a_secondary_that_does_not_wait_is_found_out() -> None:
    """The judge can judge: without the promise, both run."""
    for seed in range(400):
        world = World(seed)
        world.grantor = Hasty(LEASE_NS, world.clock("S"))
        world.start()
        misfortune(world)
        try:
            world.run(END_NS)
        except BothRun:
            return
    raise AssertionError("a secondary that runs at once was never seen to run too early")
