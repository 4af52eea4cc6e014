"""One connection's place in the table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from colo.errors import ProtocolError, Unsupported
from colo.protocol.states import OVER, StateFacts, facts
from colo.protocol.table import expected_events, lookup
from colo.protocol.words import FROM_PEER, Action, Condition, Event, Mode, Phase, Reads, Role, State

_MODE_CONDITION = {Mode.EARLY: Condition.EARLY, Mode.STRICT: Condition.STRICT, Mode.HYBRID: Condition.HYBRID}


_DIALECT_OF = {
    Action.SEND_OPEN_RETURN_PATH: "return_path",
    Action.SEND_PING: "return_path",
    Action.SEND_SHUT: "return_path",
    Action.SEND_ENABLE_COLO: "enable_colo",
    Action.SEND_SWITCHOVER_START: "switchover_start",
    Action.SEND_EXTENSIONS: "extended",
    Action.SEND_DIGEST: "digest",
}
"""Actions that are only carried out where the dialect has them."""


@cache
def _conditions(
    mode: Mode,
    return_path: bool,
    checkpoint: bool,
    copy: bool,
    enable_colo: bool,
    switched_over: bool,
    extensions_due: bool,
    digest_due: bool,
) -> frozenset[Condition]:
    holds = {
        _MODE_CONDITION[mode],
        Condition.RETURN_PATH if return_path else Condition.NO_RETURN_PATH,
        Condition.CHECKPOINT if checkpoint else Condition.NO_CHECKPOINT,
        Condition.COPY if copy else Condition.DIRECT,
        Condition.DIGEST_DUE if digest_due else Condition.NO_DIGEST_DUE,
    }
    if extensions_due:
        holds.add(Condition.EXTENSIONS_DUE)
    if not enable_colo:
        holds.add(Condition.COLO_NOT_ENABLED)
    if not switched_over:
        holds.add(Condition.NOT_SWITCHED_OVER)
    return frozenset(holds)


@dataclass(slots=True)
class Dialect:
    """What of the protocol's optional parts is spoken. A secondary fills it in from what it receives.

    | peer                  | return_path | enable_colo | switchover_start |
    |-----------------------|-------------|-------------|------------------|
    | QEMU 7.2              | no          | yes         | no               |
    | QEMU 10.0.7 and later | no          | yes         | yes              |
    | QEMU 11.1             | yes         | no          | yes              |
    """

    return_path: bool = False
    enable_colo: bool = False
    switchover_start: bool = False
    extended: bool = False
    """The primary offers colo's own extensions; only ever to another colo."""
    digest: bool = False
    """Each checkpoint's digest was agreed on; the session sets it when the peer's word is in."""


class Machine:
    """Holds the state of one connection and applies the table. No input, no output, no time, no threads.

    ``feed`` takes an event and returns the actions to carry out, in order. Single-threaded: who shares one
    between threads locks it. Make a new one for each connection, with the number of the checkpoint already
    committed.

    :param role: whose side this is.
    :param mode: what acknowledgements mean; see :class:`Mode`.
    :param dialect: for a primary, what to speak. A secondary starts with nothing and learns.
    :param copy: a primary resumes its VM once its state is copied, instead of after LOADED.
    :param committed: the highest checkpoint committed over earlier connections (as far as this side knows),
        or None.
    :raises Unsupported: for the hybrid mode, whose rows are there and which is not served yet.
    """

    __slots__ = (
        "_digest_due",
        "_extensions_due",
        "_switched_over",
        "actions",
        "committed",
        "copy",
        "dialect",
        "epoch",
        "mode",
        "role",
        "state",
    )

    def __init__(
        self,
        role: Role,
        *,
        mode: Mode = Mode.EARLY,
        dialect: Dialect | None = None,
        copy: bool = False,
        committed: int | None = None,
    ) -> None:
        if mode is Mode.HYBRID:
            raise Unsupported(
                "the hybrid mode (both VMs run, their output compared) is not served: use early or strict"
            )
        self.role = role
        self.mode = mode
        self.copy = copy
        self.dialect = dialect if dialect is not None else Dialect()
        self.state = State.START
        self.committed = committed
        """The highest committed checkpoint: what a takeover resumes from; None: nothing. For a primary, the
        highest it knows of; the secondary's may be one higher."""
        self.epoch = 0 if committed is None else committed + 1
        """The number that the checkpoint under way, or the next one, will have."""
        self.actions: tuple[Action, ...] = ()
        """What the last event asked for: also after ``feed`` raised, when it is what there is left to do."""
        self._switched_over = False
        self._extensions_due = role is Role.PRIMARY and self.dialect.extended
        self._digest_due = False

    def __repr__(self) -> str:
        return f"<Machine {self.role.value} {self.state.value} epoch={self.epoch} committed={self.committed}>"

    @property
    def facts(self) -> StateFacts:
        """Which deadline runs now, and what is read from the peer next."""
        return facts(self.role, self.state)

    @property
    def phase(self) -> Phase:
        return self.facts.phase

    @property
    def reads(self) -> Reads:
        """What the next bytes from the peer are; a message where none is due is then a protocol error."""
        reads = self.facts.reads
        if reads is Reads.RETURN_PATH and not self.dialect.return_path:
            return Reads.MESSAGE
        return reads

    @property
    def over(self) -> bool:
        """The connection is over: no byte from the peer counts any more."""
        return self.state in OVER

    @property
    def conditions(self) -> frozenset[Condition]:
        """What holds now of all that a row can depend on."""
        dialect = self.dialect
        return _conditions(
            self.mode,
            dialect.return_path,
            self.committed is not None,
            self.copy,
            dialect.enable_colo,
            self._switched_over,
            self._extensions_due,
            self._digest_due,
        )

    @property
    def expected(self) -> tuple[Event, ...]:
        """The events that would carry the protocol on from here."""
        return expected_events(self.role, self.state, self.conditions)

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Take one event; returns the actions it asks for.

        :raises ProtocolError: the event does not fit the state. The machine has then moved on to the end of
            the connection, and :attr:`actions` holds what is to be done about it (drop the epoch, reset the
            channel).
        """
        before = self.state
        outcome = lookup(self.role, before, event, self.conditions)
        error = None if outcome.expected else self._error(event)
        self._learn(event)
        self.state = outcome.next_state
        if outcome.commits:
            self.committed = self.epoch
            self.epoch += 1
        self.actions = tuple(action for action in outcome.actions if self._spoken(action))
        if error is not None:
            raise error
        return self.actions

    def _learn(self, event: Event) -> None:
        if self.role is Role.SECONDARY and self.state is State.INITIAL_STREAM:
            if event is Event.OPEN_RETURN_PATH:
                self.dialect.return_path = True
            elif event is Event.ENABLE_COLO:
                self.dialect.enable_colo = True
        if event is Event.SWITCHOVER_START and self.role is Role.SECONDARY:
            self.dialect.switchover_start = True
            self._switched_over = True
        elif event in {Event.INITIAL_STAGED, Event.VMSTATE_SEND}:
            self._switched_over = False
        if event is Event.EXTENSIONS:
            self._extensions_due = False
        elif event is Event.VMSTATE_SEND:
            self._digest_due = self.dialect.digest
        elif event is Event.CHECKPOINT_DIGEST:
            self._digest_due = False

    def _spoken(self, action: Action) -> bool:
        """Is this action part of the dialect?"""
        name = _DIALECT_OF.get(action)
        return name is None or getattr(self.dialect, name)

    def _error(self, event: Event) -> ProtocolError:
        expected = tuple(each.value for each in self.expected)
        who = "the peer sent" if event in FROM_PEER else "this side reported"
        what = " or ".join(expected) if expected else "nothing more"
        return ProtocolError(
            f"{self.role.value} in state {self.state.value} (checkpoint {self.epoch}): {who} {event.value}, "
            f"expected {what}",
            state=self.state.value,
            got=event.value,
            expected=expected,
        )
