"""How a primary's connection is spoken, and what of it is always the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

from colo.protocol import Action, Dialect, Mode
from colo.protocol.deadlines import Deadlines
from colo.stream.writer import command, ping
from colo.wire import ColoMessage, Command, Extension

MESSAGES = {
    Action.SEND_CHECKPOINT_REQUEST: ColoMessage.CHECKPOINT_REQUEST,
    Action.SEND_VMSTATE_SEND: ColoMessage.VMSTATE_SEND,
}
"""Without a value."""
COMMANDS = {
    Action.SEND_OPEN_RETURN_PATH: command(Command.OPEN_RETURN_PATH),
    Action.SEND_PING: ping(1),
    Action.SEND_ENABLE_COLO: command(Command.ENABLE_COLO),
    Action.SEND_SWITCHOVER_START: command(Command.SWITCHOVER_START),
}
NO_EXTENSION = Extension(0)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """How a connection is spoken."""

    machine: str
    dialect: Dialect
    mode: Mode
    copy: bool
    deadlines: Deadlines
    extensions: Extension = NO_EXTENSION
    """What is offered beyond QEMU's protocol, if the dialect has it (:attr:`Dialect.extended`)."""
    copy_ahead: bool = True
    """With ``copy``: copy dirty pages also before the pause (:mod:`colo.epoch.copy_ahead`)."""
    initial_rounds: int = 5
    """Most rounds over RAM while the VM runs, before it is paused for the rest."""
    initial_rest_pages: int = 2000
    """So few dirty pages are sent with the VM paused."""
