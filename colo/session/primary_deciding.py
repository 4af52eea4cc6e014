"""Whether a primary's VM may run, by the arbiter and by its lease: the table's endings that concern the whole session."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from colo.abc import Transport
from colo.arbiter import Arbiter, ArbiterIdentity, Runner, claim, take_first
from colo.arbiter.watch import GenerationLook
from colo.epoch.participants import Participants
from colo.errors import ArbitrationError, ArbitrationLost, ChannelLost, VmError
from colo.fence.vm_lease import VmLease
from colo.lease.connection import LeaseConnection
from colo.lease.meeting import Meeting
from colo.protocol import Action, Event, Role, State, lookup
from colo.session.primary_config import PrimaryConfig
from colo.session.primary_waiting import Waiting
from colo.vm.handle import VmHandle

LEASED_S = 5.0
"""Within this the first promise must have come."""


class PrimaryLease:
    """The lease of a session, from one secondary after the other; none is held until :meth:`begin`.

    ``waiting`` ends when a secondary counts as lost, or has claimed the VM; ``notice`` hears what a user should know.
    """

    def __init__(
        self, config: PrimaryConfig, handle: VmHandle, waiting: Waiting, notice: Callable[[str], None],
    ) -> None:
        self._config = config
        self._handle = handle
        self._waiting = waiting
        self._notice = notice
        self._held: VmLease | None = None
        self.generation = 0
        """The one that is leased, or was last."""
        self.silent = ""
        """Why the secondary counts as lost, by the lease."""

    def begin(self, sock: Transport, identity: ArbiterIdentity | None, generation: int, claim_token: str) -> None:
        """Meet the secondary at the other end of ``sock``, which is used up by that, and hold a lease of ``generation``.

        Raises ChannelError; ProtocolError when the secondary refuses; ChannelLost when no promise comes.
        """
        config = self._config
        try:
            connection = LeaseConnection(sock, Meeting(
                vm=identity.vm if identity is not None else config.vm,
                uuid=identity.uuid if identity is not None else "",
                arbiter_id=identity.id if identity is not None else "", generation=generation, claim_token=claim_token,
                lease_ms=config.lease_ms, who=f"{socket.gethostname()} (pid {os.getpid()})"))
        except BaseException:
            sock.close()
            raise
        peer = connection.peer
        connection.close()
        if connection.welcome.notice:
            self._notice(f"the secondary could not take over as things are: {connection.welcome.notice}")
        self.generation = generation
        self._held = VmLease(
            peer, token=connection.welcome.token, generation=generation, lease_ms=connection.welcome.lease_ms,
            stop=self._handle.lease_over, go_on=self._handle.leased, changed=self._changed, witness=config.fence,
            allow_uids=config.allow_uids, tell=self._notice)
        if not self._held.wait_leased(LEASED_S):
            self.drop()
            raise ChannelLost(f"the secondary promised nothing within {LEASED_S:g} s; see what it says itself")

    def _changed(self) -> None:
        """From the lease's thread."""
        held = self._held
        if held is None:
            return
        self.silent = held.lost
        if held.taken:
            self._waiting.taken_over()
        elif self.silent:
            self._waiting.leave()

    def drop(self) -> None:
        """Hang up; the VM stays as it is. Any number of times."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
        self.silent = ""

    def answering(self) -> None:
        """The session is asking the arbiter: it will say what came of it."""
        if self._held is not None:
            self._held.answering()

    def alone(self, generation: int, reason: str) -> None:
        """This side runs the VM in ``generation``, or, where nobody had to be asked, in the one behind the leased one."""
        if self._held is not None:
            self._held.alone(max(generation, self.generation + 1), reason)

    def prove(self, reason: str) -> None:
        """The VM stands still for good, and the secondary is told."""
        if self._held is not None:
            self._held.prove(reason)

    def release_witness(self) -> None:
        """Nothing depends any more on whether this process lives."""
        if self._held is not None:
            self._held.release_witness()

    @property
    def notice(self) -> str:
        """Why the secondary could not take over as things are, by its own word."""
        return self._held.notice if self._held is not None else ""

    def status(self) -> dict[str, Any] | None:
        """None where none is held."""
        return self._held.status() if self._held is not None else None


class Deciding:
    """Who runs, by the arbiter; the VM, its lease and the participants follow from that.

    ``waiting`` ends when somebody else has claimed the VM, and says when to give up an arbiter that cannot tell; ``notice``
    hears what a user should know.
    """

    def __init__(
        self, arbiter: Arbiter, handle: VmHandle, lease: PrimaryLease, participants: Participants, waiting: Waiting,
        notice: Callable[[str], None],
    ) -> None:
        self.generation = arbiter.current()
        self.reason = ""
        """Why a connection ends: for the arbiter, the secondary and the outcome."""
        self.error: ArbitrationError | None = None
        """What the arbiter said, where it was not that this side may run."""
        self._arbiter = arbiter
        self._handle = handle
        self._lease = lease
        self._participants = participants
        self._waiting = waiting
        self._notice = notice
        self._look: GenerationLook | None = None
        self._given_up: str | None = None
        self.actions: dict[Action, Callable[[], Event | None]] = {
            action: partial(method, self) for action, method in ACTIONS.items()}

    # -- the generation

    def watch(self) -> None:
        """Notice from now on when another side claims the VM."""
        if self._look is None:
            self._look = GenerationLook(self._arbiter, None, self._waiting.taken_over)

    def expect_own(self) -> None:
        """This side may be taken over from: its generation is to stay."""
        if self._look is not None:
            self._look.expect(self.generation)

    def close(self) -> None:
        """Watch no more; the generation stays as it is."""
        if self._look is not None:
            self._look.close()

    def begin_lease(self, connect: Callable[[], Transport]) -> None:
        """Be the VM's primary, if nobody else can be running it, and hold a lease from a secondary.

        Raises as ``connect``; ArbitrationLost when the VM runs elsewhere, ArbitrationError, ProtocolError when the secondary
        refuses, ChannelError.
        """
        self._lease.drop()
        sock = connect()  # first: a generation is not claimed for a secondary that is not there
        token = ""
        if self._arbiter.identity is not None:
            self._expect_any()
            try:
                claimed = take_first(self._arbiter, Runner.of(), reason="protect")
            except BaseException:
                sock.close()
                raise
            self.generation, token = claimed.generation, claimed.token
            self.expect_own()
        self._lease.begin(sock, self._arbiter.identity, self.generation, token)

    def _expect_any(self) -> None:
        """A newer generation may be this side's own, not noted yet."""
        if self._look is not None:
            self._look.expect(None)

    # -- the table's actions

    def _arbitrate(self) -> Event:
        if self._given_up is None:
            self._lease.answering()
        self._expect_any()
        try:
            self.generation = claim(
                self._arbiter, self.generation, reason=self.reason, runner=Runner.of(),
                on_undecided=self._notice, wait=self._waiting.wait)
        except ArbitrationLost as error:
            self.error = error
            self.reason = str(error)
            return Event.TAKEOVER_LOST
        except ArbitrationError as error:
            self.error = error
            return Event.TAKEOVER_UNDECIDED
        self.error = None
        self.expect_own()
        return Event.TAKEOVER_WON

    def _run_alone(self) -> None:
        self._lease.alone(self.generation, self.reason)
        if self._given_up is None:
            self._handle.resume()
        elif self._given_up != "resume":
            with contextlib.suppress(Exception):
                self._handle.vm.resume()

    def _release_all(self) -> None:
        self._participants.end(True)

    def _drop_all(self) -> None:
        self._participants.end(False)

    def _stop_vm(self) -> None:
        if self._given_up is None:
            self._handle.pause()
            self._lease.prove(self.reason)

    # -- endings without a connection

    def end(self, state: State, event: Event) -> State:
        """Where no connection carries the table out: this part of what it asks for in ``state``. Returns the next state."""
        outcome = lookup(Role.PRIMARY, state, event, frozenset())
        for action in outcome.actions:
            self.actions[action]()
        return outcome.next_state

    def end_hung(self, doing: str, error: VmError, *, may_be_committed: bool) -> VmError:
        """The session's thread is stuck in the VM's own method ``doing``: from another one, decide who runs, and see to it.
        Returns what the session ends with: ``error``, or that the VM was not resumed.

        The VM's methods are called past the session's account of them, which is the stuck thread's.
        """
        self._given_up, self.reason = doing, str(error)
        event = self._arbitrate() if may_be_committed else Event.TAKEOVER_WON
        if self.end(State.ARBITRATING, event) is State.ALONE:
            return error
        how = VmError(f"{error}; the VM was not resumed: {self.error}")
        how.__cause__ = self.error
        return how


ACTIONS: dict[Action, Callable[[Deciding], Event | None]] = {
    Action.ARBITRATE: Deciding._arbitrate,
    Action.RUN_ALONE: Deciding._run_alone,
    Action.RELEASE_ALL: Deciding._release_all,
    Action.DROP_ALL: Deciding._drop_all,
    Action.STOP_VM: Deciding._stop_vm,
}
"""What the session carries out of the primary's rows; a connection does the rest: :data:`colo.link.primary_link.ACTIONS`."""
