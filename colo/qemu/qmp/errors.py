"""How a call to a monitor fails."""

from __future__ import annotations

from colo.errors import QemuError


class QmpError(QemuError):
    """The monitor did not do what was asked. ``command`` is the QMP command, if one was being executed."""

    def __init__(self, message: str, *, command: str = "") -> None:
        self.command = command
        super().__init__(message)


class QmpReplyError(QmpError):
    """An answer (or a greeting) that is not of the form that QMP's schema gives it."""


class QmpCommandError(QmpError):
    """QEMU answered with an error; ``error_class`` is its class, e.g. ``CommandNotFound``."""

    def __init__(self, message: str, *, command: str, error_class: str) -> None:
        self.error_class = error_class
        super().__init__(message, command=command)


class QmpTimeout(QmpError):
    """No answer, or no event, in time. The command may still be carried out later."""


class QmpLost(QmpError):
    """The connection is gone: QEMU exited or was killed, or it was closed from our side."""
