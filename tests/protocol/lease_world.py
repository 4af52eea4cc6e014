"""Two hosts, an arbiter and the links between them, in simulated time: the classes that decide are the real ones.

Each host has a clock of its own, which starts anywhere and drifts. Each process can be frozen at any moment, each direction of
each link can be cut, messages are late or lost. One list of events, in true time, drives it all; the VM's two copies are watched
whenever one of them begins to execute.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from colo.protocol.fencing import Actions, Certificate, Fence, FenceAction, FenceState
from colo.protocol.lease import LeaseGrantor

MS = 1_000_000
LEASE_MS = 1000
LEASE_NS = LEASE_MS * MS
GUARD_TICK_NS = 20 * MS
GUARD_LATE_NS = 60 * MS
CHECKPOINT_NS = 50 * MS
THAW_NS = 30 * MS
"""A host that was frozen as a whole executes at most so long before its fence has stopped the VM: here, as the processes'
latencies are; on a machine it is measured."""
END_NS = 30_000 * MS


class BothRun(AssertionError):
    """What must never be."""


@dataclass
class Frozen:
    """Until when a process does nothing."""

    until_ns: int = 0


@dataclass
class Link:
    """One direction between two places."""

    up: bool = True


@dataclass
class Copy:
    """One copy of the VM: what keeps it from executing."""

    name: str
    holds: set[str] = field(default_factory=set)
    dead: bool = False

    @property
    def runs(self) -> bool:
        return not self.dead and not self.holds


class World:
    """See this module's head. ``seed`` decides everything."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0
        self._events: list[tuple[int, int, str, Callable[[], None]]] = []
        self._count = 0
        self.log: list[str] = []
        self.skew = {host: (1 + self.rng.uniform(-200e-6, 200e-6), self.rng.randrange(10**12)) for host in "PS"}
        self.frozen = {name: Frozen() for name in ("Q", "F", "G", "S")}
        self.dead: set[str] = set()
        self.links = {pair: Link() for pair in ("PS", "SP", "PA", "AP", "SA", "AS")}
        self.primary, self.standby = Copy("primary's"), Copy("stand-by's", {"waits"})
        self.thawed_ns = -(10**18)
        # The arbiter.
        self.generation, self.winner = 1, "P"
        # The primary's side.
        self.fence = Fence(1, LEASE_NS)
        self.fence.guarded = True
        self.guard_state = "watching"
        self.known_end_ns, self.known_state = 0, FenceState.UNLEASED
        self.guard_stopped = False
        self.colo = True
        """QEMU's channel to the secondary is whole."""
        # The secondary's side.
        self.grantor = LeaseGrantor(LEASE_NS, self.clock("S"))
        self.secondary_state = "following"
        self.won_ns: int | None = None
        self.requested = False

    # -- time

    def clock(self, host: str) -> int:
        rate, start = self.skew[host]
        return int(self.now * rate) + start

    def when(self, host: str, clock_ns: int) -> int:
        """The true time at which ``host``'s clock shows that, not before it does."""
        rate, start = self.skew[host]
        return max(self.now, int((clock_ns - start) / rate) + 2)

    def at(self, time_ns: int, process: str, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (max(time_ns, self.now), self._count, process, act))

    def latency(self) -> int:
        """From something being due to the process being at it."""
        return int(self.rng.expovariate(1 / (2 * MS))) if self.rng.random() < 0.9 else self.rng.randrange(15 * MS)

    def delay(self) -> int:
        return int(self.rng.choice((0.2, 1, 5, 40)) * MS)

    def run(self, until_ns: int = END_NS) -> None:
        while self._events and self._events[0][0] <= until_ns:
            time_ns, _, process, act = heapq.heappop(self._events)
            self.now = time_ns
            if process in self.dead:
                continue
            frozen = self.frozen.get(process)
            if frozen is not None and frozen.until_ns > self.now:
                self.at(frozen.until_ns + self.latency() // 4, process, act)
                continue
            act()
        self.now = until_ns

    def say(self, text: str) -> None:
        self.log.append(f"{self.now / 1e9:9.4f} {text}")

    # -- who executes

    def hold(self, copy: Copy, why: str) -> None:
        copy.holds.add(why)

    def let_go(self, copy: Copy, why: str) -> None:
        was = copy.runs
        copy.holds.discard(why)
        if copy.runs and not was:
            self.say(f"{copy.name} VM runs")
            self.check()

    def check(self) -> None:
        if not (self.primary.runs and self.standby.runs):
            return
        if self.frozen["Q"].until_ns > self.now:
            return
        if self.now - self.thawed_ns <= THAW_NS:
            self.at(self.thawed_ns + THAW_NS + 1, "world", self.check)
            return
        raise BothRun("both run")

    # -- messages

    def send(self, link: str, to: str, act: Callable[[], None]) -> None:
        if self.links[link].up and self.rng.random() > 0.01:
            delay = self.delay()

            def arrive() -> None:
                if self.links[link].up:
                    act()

            self.at(self.now + delay, to, arrive)

    # -- the fence

    def start(self) -> None:
        self.at(0, "F", self.fence_tick)
        self.at(0, "F", self.renew)
        self.at(0, "G", self.guard_tick)
        self.at(0, "Q", self.checkpoint)
        self.at(0, "S", self.secondary_tick)

    def do(self, actions: Actions) -> None:
        for action in actions:
            if action is FenceAction.STOP_VM:
                self.hold(self.primary, "stopped")
            elif action is FenceAction.CONTINUE_VM:
                self.let_go(self.primary, "stopped")
            elif action is FenceAction.KILL_VM:
                self.primary.dead = True
                self.at(self.now + self.latency(), "F", lambda: self.do(self.fence.gone(self.clock("P"))))
            elif action is FenceAction.CERTIFY:
                self.certify()
            else:
                self.tell_guard()

    def tell_guard(self) -> None:
        fence = self.fence
        state, end_ns, wanted = fence.state, fence.lease.end_ns, fence.wanted

        def hear() -> None:
            if state is FenceState.GONE:
                self.at(self.now + self.latency(), "F", lambda: self.do(self.fence.moves("its process ended")))
            self.known_state, self.known_end_ns = state, max(end_ns, self.known_end_ns)
            if wanted and state in (FenceState.LEASED, FenceState.OVER) and self.guard_state == "watching":
                self.settle("the secondary wants it")

        self.at(self.now + self.latency(), "G", hear)

    def certify(self) -> None:
        proof = self.fence.certificate
        generation = self.fence.generation
        if proof is Certificate.STANDS and not self.primary.holds and not self.primary.dead:
            return
        if proof is not Certificate.NONE:
            self.send("PS", "S", lambda: self.proven(proof, generation))

    def fence_tick(self) -> None:
        self.do(self.fence.tick(self.clock("P")))
        due = self.fence.next_ns()
        at = self.now + 20 * MS if due is None else min(self.now + 20 * MS, self.when("P", due))
        self.at(at + self.latency(), "F", self.fence_tick)

    def renew(self) -> None:
        if self.fence.renews:
            sequence = self.fence.lease.ask(self.clock("P"))
            generation = self.fence.generation
            self.send("PS", "S", lambda: self.renewal(sequence, generation))
        elif self.fence.certificate is not Certificate.NONE:
            self.certify()
        self.at(self.now + LEASE_NS // 4 + self.latency(), "F", self.renew)

    # -- the guard

    def guard_tick(self) -> None:
        self.at(self.now + GUARD_TICK_NS + self.latency(), "G", self.guard_tick)
        now = self.clock("P")
        if self.guard_state != "alone" and self.known_state is FenceState.LEASED and self.known_end_ns and now >= self.known_end_ns + GUARD_LATE_NS:
            self.hold(self.primary, "stopped")
        if self.guard_state != "watching":
            return
        left = self.known_end_ns - now
        if self.known_end_ns and left < LEASE_NS // 3:
            self.settle("no promise")
        elif not self.colo and not self.primary.dead:
            self.settle("QEMU left COLO")

    def settle(self, reason: str) -> None:
        if self.primary.dead:
            self.guard_state = "gone"
            return
        self.say(f"guard settles: {reason}")
        self.guard_state = "claiming"
        self.at(self.now + self.latency() // 4, "F", self.fence.answering)
        self.claim_primary()

    def claim_primary(self) -> None:
        if self.guard_state != "claiming":
            return

        def at_arbiter() -> None:
            if self.generation == 1:
                self.generation, self.winner = 2, "P"
                self.say("primary's side wins")
            won = self.winner == "P"
            self.send("AP", "G", lambda: self.decided(won))

        self.send("PA", "A", at_arbiter)
        self.at(self.now + 300 * MS, "G", self.claim_primary)

    def decided(self, won: bool) -> None:
        if self.guard_state != "claiming":
            return
        self.guard_state = "alone" if won else "lost"
        self.colo = False
        if won:
            self.at(self.now + self.latency() // 4, "F", lambda: self.do(self.fence.alone(2)))
            self.let_go(self.primary, "stopped")
        else:
            self.at(self.now + self.latency() // 4, "F", lambda: self.do(self.fence.prove("lost")))

    # -- QEMU

    def checkpoint(self) -> None:
        self.at(self.now + CHECKPOINT_NS, "Q", self.checkpoint)
        if self.primary.runs and self.colo:
            self.send("PS", "S", self.progress)

    # -- the secondary

    def progress(self) -> None:
        if self.secondary_state == "following":
            self.grantor.progress(self.clock("S"))

    def renewal(self, sequence: int, generation: int) -> None:
        if generation != 1:
            return
        if self.grantor.renewal(self.clock("S")):
            self.send("SP", "F", lambda: self.promise(sequence))
        elif self.secondary_state == "running":
            self.send("SP", "F", lambda: self.do(self.fence.end("it runs there")))
        elif self.won_ns is not None:
            self.send("SP", "F", lambda: self.do(self.fence.stop()))
        else:
            self.send("SP", "F", lambda: self.do(self.fence.wants(self.clock("P"))))

    def promise(self, sequence: int) -> None:
        before = self.fence.lease.end_ns
        self.do(self.fence.promised(sequence, LEASE_NS, self.clock("P")))
        if self.fence.lease.end_ns != before:
            self.tell_guard()

    def proven(self, proof: Certificate, generation: int) -> None:
        if generation == 1:
            self.grantor.proven(proof.value)
            if self.secondary_state == "following" and proof is Certificate.GONE:
                self.want("proof")

    def want(self, reason: str) -> None:
        if self.secondary_state == "following":
            self.say(f"secondary wants: {reason}")
            self.secondary_state = "wanting"
            self.grantor.want()
            self.send("SP", "F", lambda: self.do(self.fence.wants(self.clock("P"))))

    def request(self) -> None:
        """An operator asks for a failover."""
        if self.secondary_state == "following":
            self.requested = True
            self.secondary_state = "claiming"
            self.claim_secondary()

    def secondary_tick(self) -> None:
        self.at(self.now + 5 * MS + self.latency(), "S", self.secondary_tick)
        now = self.clock("S")
        if self.secondary_state == "following" and self.grantor.lapsed(now):
            self.want("nobody renews")
        if self.secondary_state == "wanting" and self.grantor.wait_ns(now) == 0:
            self.secondary_state = "claiming"
            self.claim_secondary()
        if self.secondary_state == "won" and self.grantor.wait_ns(now) == 0:
            self.secondary_state = "running"
            self.let_go(self.standby, "waits")

    def claim_secondary(self) -> None:
        if self.secondary_state != "claiming":
            return

        def at_arbiter() -> None:
            if self.generation == 1:
                self.generation, self.winner = 2, "S"
                self.say("secondary's side wins")
            won = self.winner == "S"
            self.send("AS", "S", lambda: self.secondary_decided(won))

        self.send("SA", "A", at_arbiter)
        self.at(self.now + 300 * MS, "S", self.claim_secondary)

    def secondary_decided(self, won: bool) -> None:
        if self.secondary_state != "claiming":
            return
        if not won:
            self.secondary_state = "lost"
            return
        self.secondary_state, self.won_ns = "won", self.now
        self.grantor.want()
        self.send("SP", "F", lambda: self.do(self.fence.stop()))

    # -- what goes wrong

    def freeze(self, names: str, length_ns: int) -> None:
        self.say(f"{names} frozen for {length_ns / 1e9:.3f} s")
        until = self.now + length_ns
        for name in names:
            self.frozen[name].until_ns = max(self.frozen[name].until_ns, until)
        if "Q" in names:
            self.hold(self.primary, "frozen")

            def thaw() -> None:
                if self.frozen["Q"].until_ns <= self.now:
                    if "F" in names:
                        self.thawed_ns = self.now
                    self.let_go(self.primary, "frozen")

            self.at(until, "world", thaw)

    def kill(self, name: str) -> None:
        self.say(f"{name} killed")
        if name == "Q":
            self.primary.dead = True
            self.colo = False
            self.at(self.now + self.latency(), "F", lambda: self.do(self.fence.gone(self.clock("P"))))
        else:
            self.dead.add(name)
        if name == "G":
            self.at(self.now + self.latency(), "F", lambda: self.do(self.fence.guard(False, self.clock("P"))))
            self.at(self.now + self.rng.randrange(100 * MS, 3_000 * MS), "world", self.another_guard)

    def another_guard(self) -> None:
        """Somebody starts `colo protect` again: it finds the fence, and what that knows."""
        self.say("another guard")
        self.dead.discard("G")
        self.guard_state = "watching"
        fence = self.fence
        self.known_state, self.known_end_ns = fence.state, fence.lease.end_ns
        self.at(self.now + self.latency(), "F", lambda: self.do(fence.guard(True, self.clock("P"))))
        self.at(self.now, "G", self.guard_tick)
        if fence.state is FenceState.ALONE:
            self.guard_state = "alone"
        elif fence.state in (FenceState.OVER, FenceState.STANDS):
            self.settle("the VM was stopped by its fence")

    def cut(self, pairs: tuple[str, ...], length_ns: int) -> None:
        self.say(f"{' '.join(pairs)} cut for {length_ns / 1e9:.3f} s")
        for pair in pairs:
            self.links[pair].up = False

        def heal() -> None:
            for pair in pairs:
                self.links[pair].up = True

        self.at(self.now + length_ns, "world", heal)
