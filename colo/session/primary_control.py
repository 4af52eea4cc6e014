"""What a primary's control socket answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from colo.control.server import ControlServer
from colo.errors import Interrupted
from colo.figures.primary_report import PrimaryReport
from colo.session.primary_config import PrimaryOutcome
from colo.trace import SessionState

CHECKPOINT_S = 30.0
STOP_S = 30.0


class Commanded(Protocol):
    """The primary, as far as it is commanded."""

    state: SessionState

    def status(self) -> dict[str, Any]: ...
    def checkpoint(self, timeout_s: float | None = None) -> PrimaryReport: ...
    def stop(self, reason: str = "requested", timeout_s: float | None = 30.0) -> PrimaryOutcome: ...


def serve(primary: Commanded, path: str) -> ControlServer:
    """Answer on ``path``: ``status``, ``checkpoint`` (now; its report when it is committed), ``stop`` (how it ended).

    Raises Unsupported when ``path`` cannot be a socket, or another session answers there.
    """

    def begun() -> Commanded:
        if primary.state == SessionState.NEW:
            raise Interrupted("the session has not begun")
        return primary

    def stop() -> dict[str, Any]:
        outcome = begun().stop("asked for on the control socket", STOP_S)
        return {"ending": outcome.ending.value, "reason": outcome.reason, "generation": outcome.generation}

    return ControlServer(Path(path), {
        "status": primary.status,
        "checkpoint": lambda: begun().checkpoint(CHECKPOINT_S).as_dict(),
        "stop": stop,
    })
