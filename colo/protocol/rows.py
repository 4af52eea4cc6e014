"""A step of the checkpointing table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from colo.protocol.words import Action, Condition, Event, Role, State


class Row(NamedTuple):
    """One step. ``commits``: with it, the epoch's checkpoint counts as committed on this side."""

    role: Role
    state: State
    event: Event
    next_state: State
    actions: tuple[Action, ...] = ()
    when: frozenset[Condition] = frozenset()
    commits: bool = False

    @property
    def served(self) -> bool:
        """False for rows of the hybrid mode: they are part of the protocol, and refused for now."""
        return Condition.HYBRID not in self.when


def row_of(
    role: Role,
    state: State,
    event: Event,
    next_state: State,
    *actions: Action,
    when: Iterable[Condition] = (),
    commits: bool = False,
) -> Row:
    """One, as it is written."""
    return Row(role, state, event, next_state, actions, frozenset(when), commits)
