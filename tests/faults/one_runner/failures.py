"""What can fail, as data: each failure with its name, what it does to a world, how it is mended, and who is to run then."""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.one_runner.world import World

VMS = ("7.2", "11.1", "in-process")
QEMUS = VMS[:2]
Action = Callable[[World], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """``mend`` makes it as if it had not been, as far as that can be; None where it cannot.

    ``runs`` is the side whose VM is to run when this alone fails: ``primary``, ``secondary``, or ``either`` (``runs_in_process``,
    if given, for VMs in the user's own process). ``destroys`` are the
    sides that cannot run the VM any more, whatever is mended. ``thaws``: what was frozen as a whole executes until it is told.
    """

    name: str
    act: Action
    mend: Action | None = None
    runs: str = "primary"
    runs_in_process: str = ""
    vms: tuple[str, ...] = VMS
    destroys: frozenset[str] = frozenset()
    thaws: bool = False
    what: str = ""
    user: str = "nothing"
    """What happens, and what the user is to do, for the documentation."""


def _guard(number: signal.Signals) -> Action:
    def act(world: World) -> None:
        assert world.guard is not None
        world.signal(world.guard.pid, number)

    return act


def _vm(number: signal.Signals) -> Action:
    def act(world: World) -> None:
        if number == signal.SIGCONT:
            world.note_thaw()
        world.signal(world.vm_pid(), number)

    return act


def _fence(number: signal.Signals) -> Action:
    return lambda world: world.signal(world.fence_pid(), number)


def _witness(number: signal.Signals) -> Action:
    return lambda world: world.signal(world.witness_pid(), number)


def _follower(number: signal.Signals) -> Action:
    def act(world: World) -> None:
        assert world.follower is not None
        world.signal(world.follower.pid, number)

    return act


def _standby(number: signal.Signals) -> Action:
    def act(world: World) -> None:
        if not world.outputs["secondary"].read():  # else it is the VM by now
            world.signal(world.standby_pid(), number)

    return act


def _cut(*ways: tuple[str, str]) -> Action:
    return lambda world: [world.hosts.cut(*way) for way in ways] and None


def _mend(*ways: tuple[str, str]) -> Action:
    return lambda world: [world.hosts.mend(*way) for way in ways] and None


OUT, BACK = ("primary", "secondary"), ("secondary", "primary")


def _flap(world: World) -> None:
    """Five times down and up, each for up to half a lease."""
    rng = random.Random(5)

    def flap() -> None:
        for _ in range(5):
            _cut(OUT, BACK)(world)
            time.sleep(rng.uniform(0.02, world.lease_ms / 2000))
            _mend(OUT, BACK)(world)
            time.sleep(rng.uniform(0.02, 0.2))

    thread = threading.Thread(target=flap, daemon=True)
    thread.start()
    world.helpers.append(thread)


def _take_away(*names: str) -> Action:
    return lambda world: [world.take_arbiter(name) for name in names] and None


def _give_back(*names: str) -> Action:
    return lambda world: [world.give_arbiter(name) for name in names] and None


def _both(*actions: Action) -> Action:
    return lambda world: [action(world) for action in actions] and None


def _for_a_while(act: Action, mend: Action, leases: float) -> Action:
    """Mended by itself, after so many leases."""

    def run(world: World) -> None:
        def later() -> None:
            time.sleep(leases * world.lease_ms / 1000)
            mend(world)

        act(world)
        thread = threading.Thread(target=later, daemon=True)
        thread.start()
        world.helpers.append(thread)

    return run


def _host(name: str, what: str) -> Action:
    def act(world: World) -> None:
        host = world.hosts[name]
        other = "secondary" if name == "primary" else "primary"
        ways = ((name, other), (other, name), (name, "arbiter"), ("arbiter", name))
        if what == "thaw":
            _mend(*ways)(world)
            world.note_thaw()
        else:
            _cut(*ways)(world)
        {"freeze": host.freeze, "thaw": host.thaw, "kill": host.kill}[what]()

    return act


def _failover(world: World) -> None:
    world.failover()


def _isolate(name: str) -> tuple[Action, Action]:
    return (_both(_cut(OUT, BACK), _take_away(name)), _both(_mend(OUT, BACK), _give_back(name)))


P, S = frozenset(["primary"]), frozenset(["secondary"])
STOP, CONT, KILL, TERM = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL, signal.SIGTERM

FAILURES: dict[str, Failure] = {failure.name: failure for failure in (
    Failure("guard-killed", _guard(KILL), lambda world: world.start_guard(), vms=QEMUS,
            what="`colo protect` is killed; its fence goes on holding the lease",
            user="`colo protect` again, as before: it goes on guarding"),
    Failure("guard-terminated", _guard(TERM), vms=QEMUS,
            what="SIGTERM to `colo protect`: protection ends in order", user="`colo protect` again, when the VM is to be protected"),
    Failure("guard-frozen", _guard(STOP), _guard(CONT), vms=QEMUS,
            what="`colo protect` stands still; its fence goes on holding the lease",
            user="thaws it, or kills it and starts another"),
    Failure("guard-thawed", _for_a_while(_guard(STOP), _guard(CONT), 1.5), vms=QEMUS,
            what="`colo protect` stands still for longer than a lease, and goes on"),
    Failure("fence-killed", _fence(KILL), vms=QEMUS, what="the fence beside QEMU is killed: `colo protect` makes another"),
    Failure("fence-frozen", _fence(STOP), _fence(CONT), vms=QEMUS, runs="either",
            what="the fence stands still: `colo protect` stops the VM in its stead, or claims it",
            user="protects the VM anew"),
    Failure("witness-killed", _witness(KILL), vms=("in-process",),
            what="the witness beside a program with a VM of its own is killed: the session starts another"),
    Failure("vm-killed", _vm(KILL), runs="secondary", destroys=P,
            what="QEMU (or the user's program) is killed, or crashes: its fence (or its witness) proves it",
            user="looks into why; protects the VM anew"),
    Failure("vm-frozen", _vm(STOP), _vm(CONT), runs="secondary", thaws=True,
            what="QEMU (or the user's program) stands still", user="protects the VM anew"),
    Failure("vm-thawed", _for_a_while(_vm(STOP), _vm(CONT), 1.5), runs="either", thaws=True,
            what="it stands still for about as long as a lease, and goes on", user="protects the VM anew, if it was taken over"),
    Failure("vm-hung", lambda world: world.hang(), lambda world: world.unhang(), runs="secondary",
            runs_in_process="primary",  # nobody but its own process could stop it, and that hangs: it stays where it is
            what="QEMU's main loop hangs (dead storage). A VM in the user's own process that hangs stays where it is",
            user="looks into its storage; protects the VM anew"),
    Failure("secondary-killed", _follower(KILL), destroys=S,
            what="`colo secondary` is killed", user="`colo secondary` and `colo protect` again"),
    Failure("secondary-frozen", _follower(STOP), _follower(CONT),
            what="`colo secondary` stands still", user="ends or thaws it; protects the VM anew"),
    Failure("secondary-thawed", _for_a_while(_follower(STOP), _follower(CONT), 1.5),
            what="`colo secondary` stands still for longer than a lease, and goes on: it has lost", user="protects the VM anew"),
    Failure("standby-killed", _standby(KILL), vms=QEMUS, what="the stand-by QEMU is killed: `colo secondary` starts another"),
    Failure("link-down", _cut(OUT, BACK), _mend(OUT, BACK),
            what="nothing passes between the two hosts; both reach the arbiter", user="mends the link; protects the VM anew"),
    Failure("link-to-secondary-down", _cut(OUT), _mend(OUT),
            what="what the primary's host sends does not arrive", user="mends the link; protects the VM anew"),
    Failure("link-to-primary-down", _cut(BACK), _mend(BACK),
            what="what the secondary's host sends does not arrive", user="mends the link; protects the VM anew"),
    Failure("link-flapping", _flap, runs="either",
            what="the link goes up and down", user="mends the link; protects the VM anew, if that ended"),
    Failure("primary-isolated", *_isolate("primary"), runs="secondary",
            what="the primary's host reaches neither the other nor the arbiter: its VM is stopped at the lease's end, and ended once "
            "it is known that the other runs", user="mends the network; protects the VM anew"),
    Failure("secondary-isolated", *_isolate("secondary"),
            what="the secondary's host reaches neither the other nor the arbiter", user="mends the network; protects the VM anew"),
    Failure("primary-host-dead", _host("primary", "kill"), runs="secondary", destroys=P,
            what="the primary's host dies", user="protects the VM anew"),
    Failure("primary-host-frozen", _host("primary", "freeze"), _host("primary", "thaw"), runs="secondary", thaws=True,
            what="the primary's whole host stands still", user="protects the VM anew"),
    Failure("primary-host-thawed", _for_a_while(_host("primary", "freeze"), _host("primary", "thaw"), 2.5),
            runs="secondary", thaws=True,
            what="it stands still for longer than a lease, and goes on: its VM is stopped at once, and ended",
            user="protects the VM anew"),
    Failure("secondary-host-dead", _host("secondary", "kill"), destroys=S,
            what="the secondary's host dies", user="`colo secondary` on another host, `colo protect` again"),
    Failure("secondary-host-frozen", _host("secondary", "freeze"), _host("secondary", "thaw"), thaws=True,
            what="the secondary's whole host stands still", user="`colo secondary` and `colo protect` again"),
    Failure("arbiter-gone", _take_away("primary", "secondary"), _give_back("primary", "secondary"),
            what="neither host reaches the arbiter; the link is whole", user="mends it: until then no failure of a host or the "
            "link is survived, the VM waits for the arbiter"),
    Failure("arbiter-gone-for-primary", _take_away("primary"), _give_back("primary"),
            what="the primary's host does not reach the arbiter", user="mends it"),
    Failure("arbiter-gone-for-secondary", _take_away("secondary"), _give_back("secondary"),
            what="the secondary's host does not reach the arbiter", user="mends it"),
    Failure("arbiter-gone-and-back", _for_a_while(
        _take_away("primary", "secondary"), _give_back("primary", "secondary"), 0.8), what="it is away for a while"),
    Failure("failover-asked-for", _failover, runs="secondary",
            what="`colo failover`: the primary's VM stops, and proves it", user="asked for it"),
)}


@dataclass(frozen=True, slots=True)
class Case:
    """What fails, on what, and when; :meth:`line` has all of it."""

    vm: str
    arbiter: str
    first: str
    second: str = ""
    delay_ms: int = 0
    """From the first failure to the second."""
    wait_ms: int = 0
    """From the protected VM's second checkpoint to the first failure: where in an epoch it falls."""

    def line(self) -> str:
        """One line that makes the same case again."""
        after = f" then {self.second} after {self.delay_ms} ms" if self.second else ""
        return f"{self.vm} {self.arbiter}: {self.first} at {self.wait_ms} ms{after}"

    @classmethod
    def parse(cls, line: str) -> Case:
        """From :meth:`line`. Raises ValueError."""
        found = re.fullmatch(r"(\S+) (\S+): (\S+) at (\d+) ms(?: then (\S+) after (\d+) ms)?", line.strip())
        if found is None or found[1] not in VMS or found[3] not in FAILURES or (found[5] or found[3]) not in FAILURES:
            raise ValueError(f"no case: {line!r}; one is '7.2 file: link-down at 30 ms then guard-killed after 400 ms'")
        return cls(found[1], found[2], found[3], found[5] or "", int(found[6] or 0), int(found[4]))

    @property
    def runs(self) -> str:
        """The side whose VM is to run; "" if that is open."""
        [failure, *more] = self.failures
        runs = failure.runs_in_process if self.vm == "in-process" and failure.runs_in_process else failure.runs
        return "" if more or runs == "either" else runs

    @property
    def failures(self) -> tuple[Failure, ...]:
        """One or two."""
        return tuple(FAILURES[name] for name in (self.first, self.second) if name)


def cases(seed: int, count: int, *, arbiters: tuple[str, ...], vms: tuple[str, ...] = VMS, lease_ms: int = 1000) -> list[Case]:
    """``count`` cases of this seed: first each failure alone, as often as it is its turn, then two at a time."""
    rng = random.Random(seed)
    settings = [(vm, arbiter) for vm in vms for arbiter in arbiters]
    singles = [(vm, arbiter, name, "") for vm, arbiter in settings for name in FAILURES if vm in FAILURES[name].vms]
    pairs = [
        (vm, arbiter, one, two) for vm, arbiter in settings for one in FAILURES for two in FAILURES
        if one != two and vm in FAILURES[one].vms and vm in FAILURES[two].vms]
    rng.shuffle(singles)
    rng.shuffle(pairs)
    if count < 2 * len(FAILURES):
        chosen = _each_once(singles)[: (count + 1) // 2]
    else:
        chosen = singles[: count // 3] if count > len(singles) else _each_once(singles)
    while len(chosen) < count:
        chosen += pairs[: count - len(chosen)]
    return [
        Case(vm, arbiter, one, two, rng.randrange(lease_ms + 1) if two else 0, rng.randrange(120))
        for vm, arbiter, one, two in chosen[:count]]


def _each_once(singles: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    found: dict[str, tuple[str, str, str, str]] = {}
    for each in singles:
        found.setdefault(each[2], each)
    return list(found.values())
