"""One migration's place in the table."""

from __future__ import annotations

from colo.errors import ProtocolError
from colo.protocol.migration.states import ENDS, MigrationFacts, facts
from colo.protocol.migration.table import Outcome, expected_events, lookup
from colo.protocol.migration.words import FROM_PEER, Action, Condition, Event, Reads, Role, State


class MigrationMachine:
    """Holds the state of one migration and applies the table. No input, no output, no time, no threads.

    ``feed`` takes an event and returns the actions to carry out, in order. Single-threaded: who shares one between threads
    locks it. ``return_path``: whether a source opens one; a destination learns it. ``arbiter``: whether this side has one.
    ``held``: a source waits for leave before the switchover.
    """

    __slots__ = ("actions", "arbiter", "colo_peer", "handed_out", "held", "return_path", "role", "state")

    def __init__(self, role: Role, *, return_path: bool = False, arbiter: bool = False, held: bool = False) -> None:
        self.role = role
        self.return_path = return_path
        self.arbiter = arbiter
        self.held = held
        self.state = State.NOT_STARTED
        self.colo_peer = False
        """A source's destination is a colo one. Learnt."""
        self.handed_out = False
        """A source's destination gets, or has, all that it needs to run the VM."""
        self.actions: tuple[Action, ...] = ()
        """What the last event asked for: also after ``feed`` raised, when it is what there is left to do."""

    def __repr__(self) -> str:
        return f"<MigrationMachine {self.role.value} {self.state.value}>"

    @property
    def facts(self) -> MigrationFacts:
        """Status, deadline, what is read from the peer next, who has the VM."""
        return facts(self.role, self.state)

    @property
    def reads(self) -> Reads:
        """What the next bytes from the peer are. Without a return path, a source hears of the connection's end only."""
        reads = self.facts.reads
        return Reads.END if reads is Reads.RETURN_PATH and not self.return_path else reads

    @property
    def ended(self) -> bool:
        """Nothing more happens by itself."""
        return self.state in ENDS

    @property
    def conditions(self) -> frozenset[Condition]:
        """What holds now of all that a row can depend on."""
        c = Condition
        return frozenset((
            c.RETURN_PATH if self.return_path else c.NO_RETURN_PATH,
            c.COLO_PEER if self.colo_peer else c.QEMU_PEER,
            c.ARBITER if self.arbiter else c.NO_ARBITER,
            c.HELD if self.held else c.NOT_HELD,
        ))

    @property
    def expected(self) -> tuple[Event, ...]:
        """The events that would carry the migration on from here."""
        return expected_events(self.role, self.state, self.conditions)

    def outcome(self, event: Event) -> Outcome:
        """What ``event`` would lead to now."""
        return lookup(self.role, self.state, event, self.conditions)

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Take one event; returns the actions it asks for.

        Raises ProtocolError when the event does not fit the state. The machine has then moved on as after a failure, and
        :attr:`actions` holds what is to be done about it.
        """
        outcome = self.outcome(event)
        error = None if outcome.expected else self._error(event)
        if outcome.expected:
            self._learn(event)
        self.state = outcome.next_state
        self.handed_out |= outcome.hands_out
        self.actions = outcome.actions
        if error is not None:
            raise error
        return self.actions

    def _learn(self, event: Event) -> None:
        if event is Event.OPEN_RETURN_PATH:
            self.return_path = True
        elif event in (Event.COLO_ANSWERED, Event.COLO_WITH_ARBITER_ANSWERED):
            self.colo_peer = True

    def _error(self, event: Event) -> ProtocolError:
        expected = tuple(each.value for each in self.expected)
        who = "the peer sent" if event in FROM_PEER else "this side reported"
        what = " or ".join(expected) if expected else "nothing more"
        return ProtocolError(
            f"{self.role.value} in state {self.state.value}: {who} {event.value}, expected {what}",
            state=self.state.value, got=event.value, expected=expected,
        )

