"""Runs a migration's table: what happens is fed to the machine, what it asks for is done, and no ending loses a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from colo.errors import ChannelLost, DeadlineExceeded, Interrupted, ProtocolError
from colo.protocol.migration.machine import MigrationMachine
from colo.protocol.migration.states import facts
from colo.protocol.migration.words import Action, Event, Reads

Handler = Callable[[], Event | None]
"""Carries an action out, and may return the event that this leads to."""


class Heard(Exception):
    """The peer said what the action under way cannot go on with: the table says what follows."""

    def __init__(self, event: Event) -> None:
        super().__init__(event.value)
        self.event = event


def event_of(error: BaseException) -> Event:
    """How the table calls an error."""
    if isinstance(error, Heard):
        return error.event
    if isinstance(error, Interrupted):
        return Event.CANCELLED
    if isinstance(error, DeadlineExceeded):
        return Event.DEADLINE
    return Event.CHANNEL_LOST if isinstance(error, ChannelLost | OSError) else Event.FAILED


class Exchange:
    """``machine`` and the ``handlers`` of its actions; ``await_event`` waits for the peer where the state says so.

    ``on_state`` is called after each step, before its actions; ``on_error(error)`` hears what went wrong. ``instead(event)``
    may put another event in the place of one, in the same moment in which it is fed: nothing comes between.
    """

    def __init__(
        self, machine: MigrationMachine, handlers: Mapping[Action, Handler], await_event: Callable[[], Event], *,
        on_error: Callable[[BaseException], None], on_state: Callable[[], None] = lambda: None,
        instead: Callable[[Event], Event] = lambda event: event,
    ) -> None:
        self.machine = machine
        self.lock = threading.RLock()
        """Held while an event is fed."""
        self._handlers = handlers
        self._await_event = await_event
        self._on_state = on_state
        self._on_error = on_error
        self._instead = instead

    def run(self, event: Event) -> None:
        """From ``event`` to an end. Raises nothing: what was raised became an event, and the table says what follows."""
        following: Event | None = event
        while following is not None:
            following = self._step(following)

    def feed(self, event: Event) -> tuple[Action, ...]:
        """One event, from any thread; returns the actions. Raises ProtocolError as the machine does."""
        with self.lock:
            try:
                self.machine.feed(self._instead(event))
            except ProtocolError as error:
                wrong: ProtocolError | None = error
            else:
                wrong = None
            actions = self.machine.actions
        self._on_state()
        if wrong is not None:
            raise wrong
        return actions

    def hear(self, event: Event) -> None:
        """What the peer said while an action reads from it. What carries on is done at once; any other ends the action."""
        outcome = self.machine.outcome(event)
        if not outcome.expected or facts(self.machine.role, outcome.next_state).over:
            raise Heard(event)
        for action in self.feed(event):
            self._handlers[action]()

    def _step(self, event: Event) -> Event | None:
        try:
            actions = self.feed(event)
        except BaseException as error:
            self._on_error(error)
            actions = self.machine.actions
            if not isinstance(error, ProtocolError) and not self.machine.facts.over:
                return event_of(error)  # a listener of this thread's, or Ctrl-C
        following = self._carry_out(actions)
        if self.machine.ended:
            return None
        if following is not None:
            return following
        try:
            if self.machine.reads is Reads.NOTHING:
                raise RuntimeError(f"nothing leads on from state {self.machine.state.value}")
            return self._await_event()
        except BaseException as error:
            return self._event_of(error)

    def _carry_out(self, actions: tuple[Action, ...]) -> Event | None:
        """All of them where the connection is over, else up to the first that fails."""
        over = self.machine.facts.over
        following: Event | None = None
        failed: Event | None = None
        for action in actions:
            try:
                following = self._handlers[action]() or following
            except BaseException as error:
                failed = failed or self._event_of(error)
                if not over:
                    break
        return failed or following

    def _event_of(self, error: BaseException) -> Event:
        if not isinstance(error, Heard):
            self._on_error(error)
        return event_of(error)
