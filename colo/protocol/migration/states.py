"""Facts about every state of a migration: its status, the deadline, what is read, who has the VM and whether it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from colo.protocol.migration.words import MigrationStatus, Phase, Reads, Role, State, VmPlace

if TYPE_CHECKING:
    from colo.protocol.deadlines import Deadlines

SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION


class MigrationFacts(NamedTuple):
    """``runs_here``: whether the VM runs at this side, if it is one that runs. ``place``: who has it, seen from the source.
    ``says``: one line for documentation and logs."""

    status: MigrationStatus
    phase: Phase
    reads: Reads
    place: VmPlace
    runs_here: bool
    says: str

    @property
    def over(self) -> bool:
        """No connection: each of its actions is carried out, whatever another one raises."""
        return self.phase is Phase.OVER

    def seconds(self, deadlines: Deadlines) -> float | None:
        """How long this state may last, None without limit."""
        name = _DEADLINES.get(self.phase)
        return None if name is None else getattr(deadlines, name)


_DEADLINES = {
    Phase.HANDSHAKE: "handshake_s",
    Phase.ROUND: "epoch_s",
    Phase.DEVICES: "epoch_s",
    Phase.SWITCHOVER: "epoch_s",
    Phase.TAKEN: "message_s",
    Phase.STREAM: "epoch_s",
    Phase.LAST_WORD: "epoch_s",
}

_S, _Q, _P, _R = State, MigrationStatus, Phase, Reads
_HERE, _THERE, _UNDECIDED = VmPlace.HERE, VmPlace.THERE, VmPlace.UNDECIDED
_SOURCE_FACTS = (
    (_S.NOT_STARTED, _Q.NONE, _P.LOCAL, _R.NOTHING, _HERE, True, "nothing has begun"),
    (_S.CONNECTING, _Q.SETUP, _P.CONNECT, _R.NOTHING, _HERE, True, "the destination may not listen yet"),
    (_S.AWAIT_HELLO, _Q.SETUP, _P.HANDSHAKE, _R.RETURN_PATH, _HERE, True, "who is the destination?"),
    (_S.AWAIT_WORD, _Q.SETUP, _P.HANDSHAKE, _R.RETURN_PATH, _HERE, True, "a colo one; it is told the last word's number"),
    (_S.SENDING_ROUND, _Q.ACTIVE, _P.ROUND, _R.RETURN_PATH, _HERE, True, "owned pages are sent"),
    (_S.AWAIT_ROUND, _Q.ACTIVE, _P.ROUND, _R.RETURN_PATH, _HERE, True, "has the destination read them?"),
    (_S.DRAINING, _Q.ACTIVE, _P.ROUND, _R.END, _HERE, True, "has the destination's machine taken them?"),
    (_S.HARVESTING, _Q.ACTIVE, _P.LOCAL, _R.NOTHING, _HERE, True, "what was written meanwhile?"),
    (_S.PAUSING, _Q.ACTIVE, _P.LOCAL, _R.NOTHING, _HERE, False, "little is left: the VM is paused"),
    (_S.PRE_SWITCHOVER, _Q.PRE_SWITCHOVER, _P.LOCAL, _R.RETURN_PATH, _HERE, False, "waits for leave to go on"),
    (_S.SAVING, _Q.DEVICE, _P.LOCAL, _R.NOTHING, _HERE, False, "device state saved, last pages collected"),
    (_S.SENDING_REST, _Q.DEVICE, _P.ROUND, _R.RETURN_PATH, _HERE, False, "all but the last of the stream is sent"),
    (_S.AWAIT_DEVICES, _Q.DEVICE, _P.DEVICES, _R.RETURN_PATH, _HERE, False, "has a QEMU refused a device?"),
    (_S.AWAIT_ANSWER, _Q.DEVICE, _P.SWITCHOVER, _R.RETURN_PATH, _UNDECIDED, False, "all is handed out: it may run there"),
    (_S.AWAIT_TAKEN, _Q.DEVICE, _P.TAKEN, _R.END, _UNDECIDED, False, "all is handed out, and nobody will answer"),
    (_S.ARBITRATING, _Q.DEVICE, _P.OVER, _R.NOTHING, _UNDECIDED, False, "the answer is lost: the arbiter decides"),
    (_S.CANCELLING, _Q.CANCELLING, _P.OVER, _R.NOTHING, _HERE, True, "the VM is to run on as before"),
    (_S.STUCK, _Q.FAILED, _P.OVER, _R.NOTHING, _HERE, True, "one of the VM's methods does not return"),
    (_S.COMPLETED, _Q.COMPLETED, _P.OVER, _R.NOTHING, _THERE, False, "the destination has the VM"),
    (_S.FAILED, _Q.FAILED, _P.OVER, _R.NOTHING, _HERE, True, "it runs on here as before"),
    (_S.CANCELLED, _Q.CANCELLED, _P.OVER, _R.NOTHING, _HERE, True, "it runs on here as before"),
    (_S.UNDECIDED, _Q.FAILED, _P.OVER, _R.NOTHING, _UNDECIDED, False, "it may run there: somebody must look, and decide"),
)
_DESTINATION_FACTS = (
    (_S.NOT_STARTED, _Q.NONE, _P.LOCAL, _R.NOTHING, _HERE, False, "nothing has begun"),
    (_S.WAITING, _Q.NONE, _P.LOCAL, _R.NOTHING, _HERE, False, "no source has come"),
    (_S.STOPPING, _Q.SETUP, _P.LOCAL, _R.NOTHING, _HERE, False, "the VM is to stand still"),
    (_S.AWAIT_STREAM, _Q.SETUP, _P.HANDSHAKE, _R.STREAM, _HERE, False, "the stream has not begun"),
    (_S.RECEIVING, _Q.ACTIVE, _P.STREAM, _R.STREAM, _HERE, False, "the stream arrives; its source may be a QEMU"),
    (_S.RECEIVING_HELLO, _Q.ACTIVE, _P.STREAM, _R.STREAM, _HERE, False, "a colo source; its last word's number is to come"),
    (_S.RECEIVING_COLO, _Q.ACTIVE, _P.STREAM, _R.STREAM, _HERE, False, "the stream of a colo source arrives"),
    (_S.AWAIT_LAST_WORD, _Q.ACTIVE, _P.LAST_WORD, _R.LAST_WORD, _HERE, False, "whole; is it the source's last word?"),
    (_S.LOADING, _Q.DEVICE, _P.LOCAL, _R.NOTHING, _UNDECIDED, False, "the device state is loaded"),
    (_S.CLAIMING, _Q.DEVICE, _P.LOCAL, _R.NOTHING, _UNDECIDED, False, "the arbiter is asked"),
    (_S.STARTING, _Q.DEVICE, _P.LOCAL, _R.NOTHING, _UNDECIDED, False, "the VM is let run"),
    (_S.STOPPING_AGAIN, _Q.DEVICE, _P.LOCAL, _R.NOTHING, _UNDECIDED, False, "it did not start: it is to stand still"),
    (_S.MAY_RUN, _Q.FAILED, _P.OVER, _R.NOTHING, _UNDECIDED, True, "it did not start, nor can it be stopped"),
    (_S.COMPLETED, _Q.COMPLETED, _P.OVER, _R.NOTHING, _THERE, True, "it runs here"),
    (_S.FAILED, _Q.FAILED, _P.OVER, _R.NOTHING, _HERE, False, "it stands still here; the source has it"),
)

FACTS: dict[tuple[Role, State], MigrationFacts] = {
    (role, state): MigrationFacts(status, phase, reads, place, runs_here, says)
    for role, rows in ((SOURCE, _SOURCE_FACTS), (DESTINATION, _DESTINATION_FACTS))
    for state, status, phase, reads, place, runs_here, says in rows
}
"""Facts about every state of either role, in the order in which they are passed."""

ENDS = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.UNDECIDED, State.MAY_RUN})
"""Nothing follows but what somebody decides."""


def states(role: Role) -> Iterator[State]:
    """The states a role can be in."""
    return (state for owner, state in FACTS if owner is role)


def facts(role: Role, state: State) -> MigrationFacts:
    return FACTS[role, state]
