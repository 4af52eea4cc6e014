"""QEMU's monitor protocol: connections for blocking code, their events, and answers that are not believed."""

from __future__ import annotations

from colo.qemu.qmp.client import LINE_LIMIT_BYTES
from colo.qemu.qmp.connection import QmpConnection
from colo.qemu.qmp.errors import QmpCommandError, QmpError, QmpLost, QmpReplyError, QmpTimeout
from colo.qemu.qmp.events import EventSubscription, QmpEvent

__all__ = [
    "LINE_LIMIT_BYTES", "EventSubscription", "QmpCommandError", "QmpConnection", "QmpError", "QmpEvent", "QmpLost",
    "QmpReplyError", "QmpTimeout",
]
