"""How a connection ends: every step that the table asks for is taken, whatever becomes of the one before it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping

from colo.errors import ProtocolError
from colo.protocol import Action, Event, Machine

Handlers = Mapping[Action, Callable[[], Event | None]]
"""Who carries an action out; returns the event that came of it, if one did."""


def carry_out(actions: Iterable[Action], handlers: Handlers) -> Event | None:
    """All of ``actions``, in their order, also when one of them fails: the first failure is raised when all is done.
    Returns the event that came of them."""
    came: Event | None = None
    failure: BaseException | None = None
    for action in actions:
        try:
            came = handlers[action]() or came
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return came


def end_by(machine: Machine, event: Event, handlers: Handlers) -> None:
    """Feed ``event``, and what comes of it, and carry out what the table asks for. Raises what a handler raised; an event
    that does not fit ends the connection like any other fault of it, and is not raised."""
    pending: Event | None = event
    while pending is not None:
        with contextlib.suppress(ProtocolError):  # the machine has moved on, and says what is left to do
            machine.feed(pending)
        pending = carry_out(machine.actions, handlers)
