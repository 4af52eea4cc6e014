"""The arbiter in a real etcd of three members, of which some are dead, stopped or cut off."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from colo.arbiter import Arbiter, arbiter_from_uri, init_arbiter
from colo.arbiter.etcd.arbiter import EtcdArbiter
from colo.errors import ArbitrationError, ArbitrationLost
from tests.arbiter.etcd_cluster import Cluster, Member, SplitCluster, in_namespace, wait_until

DEADLINE_S = 60.0


def claimed(arbiter: Arbiter, generation: int) -> bool:
    """Claim until it is decided, as a session does."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return arbiter.claim(generation).generation == generation + 1
        except ArbitrationLost:
            return False
        except ArbitrationError:
            assert time.monotonic() < deadline


def followers(cluster: Cluster, leader: Member) -> list[Member]:
    return [member for member in cluster.members if member is not leader]


def test_the_leader_killed_and_started_again(three: Cluster) -> None:
    uri = three.uri()
    init_arbiter(uri, vm="vm1")
    first, second = arbiter_from_uri(uri, role="primary"), arbiter_from_uri(uri, role="secondary")
    for round_number in range(2):
        leader = three.leader()
        leader.kill()
        generation = 2 * round_number
        assert claimed(second, generation) and not claimed(first, generation)
        assert first.still_holds(generation + 1)
        leader.start()
        wait_until(lambda leader=leader: three.healthy(leader), "it is healthy again")  # type: ignore[misc]
        assert claimed(first, generation + 1) and not claimed(second, generation + 1)


def test_the_leader_stopped_and_woken(three: Cluster) -> None:
    """A leader that was frozen believes in itself when it wakes up; it may neither answer nor write with that."""
    uri = three.uri()
    init_arbiter(uri, vm="vm1")
    leader = three.leader()
    old = arbiter_from_uri(three.uri("vm1", leader, *followers(three, leader)), role="primary")
    others = arbiter_from_uri(three.uri("vm1", *followers(three, leader)), role="secondary")
    leader.stop()
    assert claimed(others, 0)
    leader.go_on()
    only = EtcdArbiter(three.uri("vm1", leader))
    assert not claimed(only, 0) and not claimed(old, 0)
    assert only.current() == 1


def test_a_claim_at_the_member_that_is_cut_off_from_the_others_does_not_win() -> None:
    with SplitCluster() as cluster:
        def work() -> None:
            init_arbiter(cluster.uri(), vm="vm1")
            leader = cluster.leader()
            far = EtcdArbiter(cluster.uri("vm1", leader), role="primary", timeout_s=3.0)
            near = arbiter_from_uri(cluster.uri("vm1", *followers(cluster, leader)), role="secondary")
            anywhere = arbiter_from_uri(cluster.uri("vm1", leader, *followers(cluster, leader)))
            cluster.cut(leader)
            for attempt in (far.current, lambda: far.claim(0), lambda: EtcdArbiter(cluster.uri("vm1", leader), timeout_s=1.0)):
                with pytest.raises(ArbitrationError) as caught:
                    attempt()
                assert not isinstance(caught.value, ArbitrationLost)
            assert claimed(near, 0)
            # One that knows all members asks the next when this one does not answer.
            assert not claimed(anywhere, 0) and anywhere.current() == 1
            cluster.mend(leader)
            assert not claimed(far, 0)
            assert far.current() == 1

        in_namespace(cluster.name, work)


def test_who_cannot_reach_a_majority_decides_nothing_until_it_is_back() -> None:
    with SplitCluster() as cluster:
        def work() -> None:
            init_arbiter(cluster.uri(), vm="vm1")
            arbiter = arbiter_from_uri(cluster.uri())
            for member in cluster.members[:2]:
                cluster.cut(member, whole=True)
            for attempt in (arbiter.current, lambda: arbiter.claim(0)):
                with pytest.raises(ArbitrationError, match="no member answered in time") as caught:
                    attempt()
                assert not isinstance(caught.value, ArbitrationLost)
            for member in cluster.members[:2]:
                cluster.mend(member, whole=True)
            # Its own: the claim that was given up may have been carried out since.
            assert claimed(arbiter, 0)
            assert not claimed(arbiter_from_uri(cluster.uri()), 0)

        in_namespace(cluster.name, work)


# Everybody at once, while members die.


def crowd(cluster: Cluster, claims: int, seed: int, rounds: int = 1) -> None:
    """``claims`` claims of one generation at once while a member is killed, frozen or started again; ``rounds`` times."""
    random_of = random.Random(seed)
    uri = cluster.uri("crowd")
    init_arbiter(uri, vm="vm1")
    judge = arbiter_from_uri(uri)
    for _ in range(rounds):
        generation = judge.current()
        arbiters = []
        for _ in range(claims):
            members = random_of.sample(cluster.members, 3)
            arbiters.append(EtcdArbiter(cluster.uri("crowd", *members), timeout_s=20.0))
        outcomes: Counter[str] = Counter()
        tokens: list[str] = []
        lock = threading.Lock()
        start = threading.Event()

        def attempt(arbiter: Arbiter, generation: int = generation, outcomes: Any = outcomes, tokens: Any = tokens,
                    lock: Any = lock, start: Any = start) -> None:
            start.wait()
            deadline = time.monotonic() + 90
            while True:
                try:
                    claim = arbiter.claim(generation)
                    outcome = "won"
                except ArbitrationLost:
                    outcome = "lost"
                except ArbitrationError as error:
                    if time.monotonic() < deadline:
                        continue
                    outcome = repr(error)
                with lock:
                    outcomes[outcome] += 1
                    if outcome == "won":
                        tokens.append(claim.token)
                break

        threads = [threading.Thread(target=attempt, args=(arbiter,)) for arbiter in arbiters]
        for thread in threads:
            thread.start()
        victim = random_of.choice([cluster.leader(), *cluster.members])
        start.set()
        time.sleep(random_of.uniform(0, 0.2))
        frozen = random_of.random() < 0.3
        if frozen:
            victim.stop()
        else:
            victim.kill()
        time.sleep(random_of.uniform(0, 2))
        if frozen:
            victim.go_on()
        else:
            victim.start()
        for thread in threads:
            thread.join()
        assert outcomes == {"won": 1, "lost": claims - 1}
        wait_until(lambda: all(map(cluster.healthy, cluster.members)), "all members are healthy")
        holder = judge.holder()
        assert (holder.generation, [holder.token]) == (generation + 1, tokens)
        for arbiter in arbiters:
            arbiter.close()


def test_of_a_crowd_one_wins_while_members_are_killed(three: Cluster) -> None:
    crowd(three, 20, seed=1, rounds=3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_of_500_at_once_one_wins_while_members_are_killed(three: Cluster, seed: int) -> None:
    crowd(three, 500, seed, rounds=5)
