"""The COLO protocol as data, without any input or output of its own.

:mod:`words` names roles, states, events and actions, :mod:`states` what holds in each state; :mod:`table`
    says which event leads where, and what is then to be done; :class:`Machine` holds the state of one
    connection and applies the table; :mod:`failover` is the second table, of the failover status;
    :mod:`messages` turns bytes into events and back. A session feeds events and carries out the actions it
    gets, in their order.
"""

from __future__ import annotations

from colo.protocol.failover import Failover, FailoverEvent, FailoverStatus
from colo.protocol.machine import Dialect, Machine
from colo.protocol.messages import (
    Message,
    ReturnPathMessage,
    command_event,
    decode_message,
    decode_return_path,
    encode_message,
    encode_return_path,
    message_event,
    message_missing_bytes,
    return_path_event,
    return_path_missing_bytes,
)
from colo.protocol.rows import Row
from colo.protocol.states import StateFacts, facts
from colo.protocol.table import lookup
from colo.protocol.words import Action, Condition, Event, Mode, Phase, Reads, Role, State

__all__ = [
    "Action",
    "Condition",
    "Dialect",
    "Event",
    "Failover",
    "FailoverEvent",
    "FailoverStatus",
    "Machine",
    "Message",
    "Mode",
    "Phase",
    "Reads",
    "ReturnPathMessage",
    "Role",
    "Row",
    "State",
    "StateFacts",
    "command_event",
    "decode_message",
    "decode_return_path",
    "encode_message",
    "encode_return_path",
    "facts",
    "lookup",
    "message_event",
    "message_missing_bytes",
    "return_path_event",
    "return_path_missing_bytes",
]
