"""Live migration as data, without any input or output of its own.

:mod:`words` names roles, states, events and actions, :mod:`states` what holds in each state, :mod:`table` which event leads
where and what is then to be done, :mod:`pings` what the numbers in PINGs mean. :class:`MigrationMachine` holds the state of
one migration and applies the table; :class:`Exchange` has its actions carried out.

A source S and its destination D, a QEMU or a colo one; what is in brackets goes with the return path::

    S  header, CONFIGURATION, [OPEN_RETURN_PATH, PING HELLO], RAM block list
    D  [PONG HELLO, a colo one adds what it is]
    S  to a colo one: PING with the number of the last word                  D  PONG
    S  rounds of pages while the VM runs, [PING ROUND + n behind each]       D  [PONG]
    S  the VM stands still: last pages, end of the ram section, device sections
    S  to a QEMU: [PING DEVICES, and after D's PONG] EOF, VM description
    S  to a colo one: EOF, VM description; the last word: its number, and a digest
    D  [SHUT(0): it runs there; SHUT(1): it does not]

A last word, or a QEMU's EOF, may make the destination run. Until then the source can always go on with its VM, behind the
channel's end; from then on only the destination's answer, the arbiter, or somebody who has looked gives it back.
"""

from __future__ import annotations

from colo.protocol.migration.exchange import Exchange, Heard, event_of
from colo.protocol.migration.machine import MigrationMachine
from colo.protocol.migration.rows import Row
from colo.protocol.migration.states import FACTS, MigrationFacts, facts, states
from colo.protocol.migration.table import ROWS, STATUSES, StatusFacts, lookup, next_status
from colo.protocol.migration.words import (
    Action,
    Condition,
    Event,
    MigrationStatus,
    Phase,
    Reads,
    Role,
    State,
    VmPlace,
)

__all__ = [
    "FACTS", "ROWS", "STATUSES", "Action", "Condition", "Event", "Exchange", "Heard", "MigrationFacts", "MigrationMachine",
    "MigrationStatus", "Phase", "Reads", "Role", "Row", "State", "StatusFacts", "VmPlace", "event_of", "facts", "lookup",
    "next_status", "states",
]
