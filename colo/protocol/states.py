"""Facts about every state: the deadline that runs in it, and what is read from the peer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from colo.protocol.words import Phase, Reads, Role, State

PRIMARY, SECONDARY = Role.PRIMARY, Role.SECONDARY


class StateFacts(NamedTuple):
    """``in_epoch``: the clock of the whole epoch runs. ``says``: one line for documentation and logs."""

    phase: Phase
    in_epoch: bool
    reads: Reads
    says: str


_S, _P, _R = State, Phase, Reads
_OVER_FACTS = (
    (_S.LOST, _P.OVER, False, _R.NOTHING, "no connection; who may run is open"),
    (_S.ARBITRATING, _P.OVER, False, _R.NOTHING, "the arbiter decides"),
    (_S.ALONE, _P.OVER, False, _R.NOTHING, "this side runs the VM, unprotected"),
    (_S.STOPPED, _P.OVER, False, _R.NOTHING, "the other side runs the VM"),
)
_PRIMARY_FACTS = (
    (_S.START, _P.HANDSHAKE, False, _R.NOTHING, "connecting"),
    (_S.INITIAL_RAM, _P.INITIAL, False, _R.RETURN_PATH, "the VM runs, its RAM is sent"),
    (_S.INITIAL_STOPPING, _P.LOCAL, False, _R.RETURN_PATH, "the VM is being stopped"),
    (_S.INITIAL_SAVING, _P.LOCAL, False, _R.RETURN_PATH, "device state is being saved"),
    # The answer can be there before this side has noted that all is sent: it waits unread until then.
    (_S.INITIAL_SENDING, _P.INITIAL, False, _R.NOTHING, "the last of it is sent"),
    (_S.AWAIT_SHUT, _P.INITIAL, False, _R.RETURN_PATH, "the return path is to end first"),
    (_S.AWAIT_READY, _P.INITIAL, False, _R.MESSAGE, "the secondary commits checkpoint 0"),
    (_S.RUNNING, _P.LOCAL, False, _R.MESSAGE, "the VM runs until a checkpoint is due"),
    (_S.AWAIT_REPLY, _P.MESSAGE, True, _R.MESSAGE, "the VM still runs"),
    (_S.STOPPING, _P.LOCAL, True, _R.MESSAGE, "the VM is being stopped"),
    (_S.SAVING, _P.LOCAL, True, _R.MESSAGE, "device state saved, dirty pages harvested"),
    (_S.SENDING_RAM, _P.RAM, True, _R.MESSAGE, "dirty pages are sent"),
    (_S.SENDING_DEVICE, _P.DEVICE, True, _R.NOTHING, "device state is sent"),
    (_S.AWAIT_RECEIVED, _P.MESSAGE, True, _R.MESSAGE, "all sent, nothing acknowledged"),
    (_S.AWAIT_LOADED, _P.MESSAGE, True, _R.MESSAGE, "received over there, not yet loaded"),
    *_OVER_FACTS,
)
_SECONDARY_FACTS = (
    (_S.START, _P.HANDSHAKE, False, _R.STREAM, "accepted; the stream has not begun"),
    (_S.INITIAL_STREAM, _P.INITIAL, False, _R.STREAM, "the initial stream arrives"),
    (_S.INITIAL_VALIDATING, _P.LOCAL, False, _R.NOTHING, "is the initial state loadable?"),
    (_S.INITIAL_COMMITTING, _P.LOCAL, False, _R.NOTHING, "checkpoint 0 is being committed"),
    (_S.INITIAL_LOADING, _P.LOCAL, False, _R.NOTHING, "checkpoint 0 is applied"),
    (_S.IDLE, _P.IDLE, False, _R.MESSAGE, "committed; the primary's VM runs"),
    (_S.SUSPENDING, _P.LOCAL, True, _R.NOTHING, "the second VM is being stopped"),
    (_S.AWAIT_VMSTATE_SEND, _P.MESSAGE, True, _R.MESSAGE, "the primary stops its VM"),
    (_S.RECEIVING_RAM, _P.RAM, True, _R.STREAM, "live state arrives into the stage"),
    (_S.AWAIT_SIZE, _P.MESSAGE, True, _R.MESSAGE, "RAM is staged whole"),
    (_S.RECEIVING_DEVICE, _P.DEVICE, True, _R.DEVICE, "device state arrives"),
    (_S.VALIDATING, _P.LOCAL, True, _R.NOTHING, "all received; is it loadable?"),
    (_S.COMMITTING, _P.LOCAL, True, _R.NOTHING, "what is staged becomes the committed checkpoint"),
    (_S.APPLYING, _P.LOCAL, True, _R.NOTHING, "committed; LOADED waits for the RAM image"),
    (_S.FINISHING_COMMIT, _P.OVER, False, _R.NOTHING, "cut while committing: k or k - 1?"),
    *_OVER_FACTS,
)

FACTS: dict[tuple[Role, State], StateFacts] = {
    (role, state): StateFacts(phase, in_epoch, reads, says)
    for role, rows in ((PRIMARY, _PRIMARY_FACTS), (SECONDARY, _SECONDARY_FACTS))
    for state, phase, in_epoch, reads, says in rows
}
"""Facts about every state of either role, in the order in which they are passed."""

OVER = frozenset({State.FINISHING_COMMIT, State.LOST, State.ARBITRATING, State.ALONE, State.STOPPED})
"""States without a connection: no byte from the peer counts any more."""
COMMITS_RUNNING = frozenset({State.INITIAL_COMMITTING, State.COMMITTING})
"""States in which a commit is under way: it ends one way or the other whatever happens to the channel."""
NOTHING_SENT_WHOLE = frozenset({State.START, State.INITIAL_RAM, State.INITIAL_STOPPING, State.INITIAL_SAVING})
"""States of a primary in which the secondary cannot have a whole initial state from this connection."""


def states(role: Role) -> Iterator[State]:
    """The states a role can be in."""
    return (state for owner, state in FACTS if owner is role)


def facts(role: Role, state: State) -> StateFacts:
    return FACTS[role, state]
