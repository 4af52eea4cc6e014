"""A step of a migration's table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from colo.protocol.migration.words import Action, Condition, Event, Role, State


class Row(NamedTuple):
    """One step. ``hands_out``: with its actions the destination gets all it needs to run the VM."""

    role: Role
    state: State
    event: Event
    next_state: State
    actions: tuple[Action, ...] = ()
    when: frozenset[Condition] = frozenset()
    hands_out: bool = False


def row_of(
    role: Role, state: State, event: Event, next_state: State, *actions: Action, when: Iterable[Condition] = (),
    hands_out: bool = False,
) -> Row:
    """One, as it is written."""
    return Row(role, state, event, next_state, actions, frozenset(when), hands_out)
