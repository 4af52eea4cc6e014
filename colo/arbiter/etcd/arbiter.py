"""The arbiter ``etcd:``: one key, ``/PREFIX/generation``, with the record of who holds it.

A claim is one transaction: if the key was last written at the revision where this side read the generation that it claims
from, it is written with the next. So of any number of claims one wins, whichever members they are sent to, and it can be
sent again: a second time it no longer fits. Where its answer was lost, the record that is found has this claim's token. The
revision at which it was written is the claim's fencing token.

Everything read is read in the same kind of transaction, by quorum: a member that is cut off does not answer, and another one
is asked. Nothing old is ever read, so compaction takes nothing away; no clock decides anything.

``/PREFIX/identity`` says whose it is, and of which cluster: another cluster, also one that was put back from a snapshot under
a new name, decides nothing.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, replace
from typing import TypeVar

from colo.arbiter.arbiter import (
    Arbiter,
    ArbiterIdentity,
    Claim,
    Holder,
    check_generation,
    check_vm,
    ended_on_purpose,
    init_command,
)
from colo.arbiter.bounded import Bounded
from colo.arbiter.etcd.address import EtcdAddress
from colo.arbiter.etcd.client import Answer, EtcdClient
from colo.arbiter.etcd.registration import Registration, registered
from colo.arbiter.record import (
    holder_text,
    identity_text,
    new_holder,
    new_identity,
    parse_holder,
    parse_identity,
    same_vm,
    stated_generation,
)
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationError, ArbitrationLost

_T = TypeVar("_T")

TIMEOUT_S = 5.0
GRACE_S = 1.0
"""More than the deadline of a call: for what knows no deadline, the look-up of a name."""
IDENTITY = "identity"
GENERATION = "generation"
_BOTH = (IDENTITY, GENERATION)


@dataclass(frozen=True, slots=True)
class _Standing:
    """The arbiter as it was at ``revision``; each key's own revision is what a transaction compares."""

    identity: ArbiterIdentity
    identity_revision: int
    holder: Holder
    holder_revision: int
    revision: int


class EtcdArbiter(Arbiter):
    """Arbitration by a key in etcd 3.4 or later (see :class:`colo.arbiter.etcd.address.EtcdAddress` for the URI).

    Once a claim of this object has won, ``/PREFIX/runners/TOKEN`` is kept there under an etcd lease: as long as it is seen,
    the session that won is alive (:meth:`seen`). That it is not seen proves nothing.

    ``vm``: whose arbiter it must be; "" takes anybody's. After ``timeout_s`` a call gives up with ArbitrationError.

    Raises ArbitrationError when no member answers, or there is no arbiter under that prefix, another VM's, another cluster.
    """

    def __init__(self, uri: str, *, role: str = "", vm: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self.uri = uri
        self._role = role
        self._timeout_s = timeout_s
        self._address = EtcdAddress.parse(uri)
        self._client = EtcdClient(self._address)
        self._bounded = Bounded(timeout_s + GRACE_S, self._client.error)
        self._token, self._closing_token, self._releasing_token = (secrets.token_hex(16) for _ in range(3))
        self._given: int | None = None
        """The highest generation that a claim returned: asked for again, it is refused."""
        self._known: _Standing | None = None
        self._registration = Registration(self._address, self._token)
        try:
            self.identity = self._bounded.run(lambda: self._read().identity, "reading whose it is")
            check_vm(self.identity, vm, uri)
        except BaseException:
            self._client.close()
            raise

    # The interface.

    def claim(self, generation: int, *, reason: str = "", runner: Runner | None = None) -> Claim:
        check_generation(generation)
        runner = runner or Runner.of()
        return self._bounded.run(
            lambda: self._claim(generation, reason, runner), f"claiming generation {generation + 1}", given=self._give)

    def _give(self, claim: Claim) -> None:
        self._given = claim.generation
        self._registration.begin(claim.generation)

    def current(self) -> int:
        return self.holder().generation

    def holder(self) -> Holder:
        return self._bounded.run(lambda: self._read().holder, "reading who holds the generation")

    def close_generation(self, generation: int, reason: str, *, runner: Runner | None = None) -> None:
        check_generation(generation)
        runner = runner or Runner.of()
        self._bounded.run(lambda: self._close(generation, reason, runner), f"closing generation {generation}")

    def release(self, generation: int, *, reason: str) -> Holder:
        check_generation(generation)
        return self._bounded.run(lambda: self._release(generation, reason), f"releasing generation {generation}")

    def seen(self, holder: Holder) -> bool:
        deadline = time.monotonic() + self._timeout_s
        return self._bounded.run(
            lambda: registered(self._client, holder.token, deadline), "reading whether its session is seen")

    def close(self) -> None:
        self._registration.end()
        with contextlib.suppress(ArbitrationError):  # a call is under way, and its thread hangs
            self._bounded.run(self._client.close, "closing")

    # Reading.

    def _read(self) -> _Standing:
        answer = self._client.transaction({}, {}, _BOTH, time.monotonic() + self._timeout_s)
        return self._standing(answer)

    def _standing(self, answer: Answer) -> _Standing:
        """What the answer says, checked against what this side knows."""
        identity, revision = _identity(self._client, answer)
        if self.identity is not None and identity != self.identity:
            raise self._client.error(
                f"another arbiter is there now, of {identity.describe()}: put back what was there, or start anew")
        found = answer.found.get(GENERATION)
        if found is None:
            raise self._client.error(
                f"the key {self._address.prefix}/{GENERATION} was removed: find out which side runs the VM. "
                f"{_anew(self._address)}")
        generation = stated_generation(found.value)
        if generation is None:
            raise self._client.error(
                f"the key {self._address.prefix}/{GENERATION} says nothing usable: find out who wrote to it. "
                f"{_anew(self._address)}")
        holder = parse_holder(found.value, generation) or Holder(generation, "", None, 0.0, "", "", False)
        known = self._known
        if known is not None and (answer.revision < known.revision or generation < known.holder.generation):
            raise self._client.error(
                f"generation {generation} at revision {answer.revision} is older than generation {known.holder.generation} "
                f"at {known.revision}, which this side knows of: was etcd put back from a snapshot?")
        self._known = _Standing(identity, revision, holder, found.revision, answer.revision)
        return self._known

    # Taking the next generation.

    def _claim(self, generation: int, reason: str, runner: Runner) -> Claim:
        if self._given is not None and generation < self._given:
            raise self._lost_text(f"this side has already taken over from generation {generation}")
        taken = new_holder(
            generation + 1, self._token, role=self._role, runner=runner, since_s=time.time(), reason=reason)
        revision = self._take(taken)
        return Claim(taken.generation, self._role, self._token, taken.since_s, runner, revision)

    def _close(self, generation: int, reason: str, runner: Runner) -> None:
        holder = self._read().holder
        if holder.generation == generation + 1 and holder.closed and holder.runner == runner:
            return  # done before
        if holder.generation == generation and not (
            self._given == generation or holder.token == self._token or holder.runner == runner
        ):
            raise self._lost_text(f"generation {generation} is held by {holder.describe()}, who alone can close it")
        self._take(new_holder(
            generation + 1, self._closing_token, role=self._role, runner=runner, since_s=time.time(), reason=reason,
            closed=True))
        self._registration.end()

    def _release(self, generation: int, reason: str) -> Holder:
        taken = new_holder(generation + 1, self._releasing_token, since_s=time.time(), reason=reason)
        self._take(taken, closed_too=True)
        return taken

    def _take(self, taken: Holder, *, closed_too: bool = False) -> int:
        """Make ``taken`` the holder, by the generation before it; returns the revision at which it was written."""
        deadline = time.monotonic() + self._timeout_s
        generation = taken.generation - 1
        standing = self._known
        if standing is None or standing.holder.generation != generation:
            standing = self._read()
        while True:
            holder = standing.holder
            if holder.generation != generation:
                return self._own_or_lost(standing, taken)
            if holder.closed and not closed_too:
                raise self._lost_text(ended_on_purpose(holder, self.uri, standing.identity.vm))
            answer = self._client.transaction(
                {IDENTITY: standing.identity_revision, GENERATION: standing.holder_revision},
                {GENERATION: holder_text(taken, standing.identity)}, _BOTH, deadline)
            if answer.succeeded:
                if answer.revision <= standing.revision:
                    raise self._client.error("a transaction was written at a revision that is over: this is no etcd")
                self._known = replace(
                    standing, holder=taken, holder_revision=answer.revision, revision=answer.revision)
                return answer.revision
            # Somebody else's, or our own whose answer was lost; or the generation was written anew by hand.
            standing = self._standing(answer)

    def _own_or_lost(self, standing: _Standing, taken: Holder) -> int:
        """The revision, if ``standing`` is a claim of our own whose answer was lost or came too late; else raise."""
        holder, generation = standing.holder, taken.generation - 1
        if holder.generation < generation:
            raise self._client.error(
                f"generation {holder.generation} is older than {generation}, which this side knows of: is this the right "
                "etcd, and was it put back from a snapshot?")
        if holder.generation == taken.generation and holder.token == taken.token:
            return standing.holder_revision
        if holder.closed:
            raise self._lost_text(ended_on_purpose(holder, self.uri, standing.identity.vm))
        raise self._lost_text(f"generation {generation} is over, {holder.generation} holds: {holder.describe()}")

    def _lost_text(self, text: str) -> ArbitrationLost:
        return ArbitrationLost(f"arbiter {self.uri}: {text}")


def make_etcd_arbiter(uri: str, *, vm: str, uuid: str = "", timeout_s: float = TIMEOUT_S) -> ArbiterIdentity:
    """Make the keys under the prefix the arbiter of this VM, once; if they are that already, only say so.

    Raises ArbitrationError when they are another VM's, or no member answers.
    """
    wanted = new_identity(secrets.token_hex(16), vm, uuid)
    address = EtcdAddress.parse(uri)
    client = EtcdClient(address)
    try:
        return Bounded(timeout_s + GRACE_S, client.error).run(
            lambda: _make(client, wanted, time.monotonic() + timeout_s), "making the arbiter")
    finally:
        client.close()


def _make(client: EtcdClient, wanted: ArbiterIdentity, deadline: float) -> ArbiterIdentity:
    answer = client.transaction({}, {}, _BOTH, deadline)
    if not answer.found:
        first = new_holder(0, secrets.token_hex(16), since_s=time.time(), reason="made")
        values = {
            IDENTITY: identity_text(wanted, cluster=answer.cluster), GENERATION: holder_text(first, wanted)}
        client.transaction(dict.fromkeys(_BOTH, 0), values, (), deadline)
        answer = client.transaction({}, {}, _BOTH, deadline)
    identity, _ = _identity(client, answer)
    if not same_vm(identity, wanted.vm, wanted.uuid):
        raise client.error(
            f"belongs to {identity.describe()} already: give {wanted.describe()} a prefix of its own")
    return identity


def _identity(client: EtcdClient, answer: Answer) -> tuple[ArbiterIdentity, int]:
    """Whose arbiter it is, and the revision of that. Raises ArbitrationError when it is none, or another cluster's."""
    address = client.address
    found = answer.found.get(IDENTITY)
    if found is None:
        if GENERATION in answer.found:
            raise client.error(
                f"a generation, but no identity: the key {address.prefix}/{IDENTITY} was removed. {_anew(address)}")
        raise client.error(
            f"no arbiter under {address.prefix}; is this the etcd that both sides use? If the VM is new, make it once, on "
            f"one side: {init_command(address.uri)}")
    parsed = parse_identity(found.value)
    if parsed is None:
        raise client.error(
            f"the key {address.prefix}/{IDENTITY} says nothing usable: find out who wrote to it. {_anew(address)}")
    identity, more = parsed
    if more.get("cluster") != answer.cluster:
        raise client.error(
            "it was made in another etcd cluster, and came here in a snapshot, or the members named are not all of one "
            f"cluster: the VM may have been taken over since. Name the etcd that was used. If that is lost: {_anew(address)}")
    return identity, found.revision


def _anew(address: EtcdAddress) -> str:
    return (
        "End the VM's sessions on both sides, make sure that it runs on one of them only, remove the keys "
        f"(etcdctl del --prefix {address.prefix}/), then: {init_command(address.uri)}")
