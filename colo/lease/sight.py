"""What this side sees at the arbiter, compared with what the primary says that it sees there."""

from __future__ import annotations

from typing import Any, Protocol

from colo.errors import ArbitrationError, ProtocolError
from colo.lease.meeting import Meeting


class Watched(Protocol):
    """The arbiter, as far as it is compared."""

    identity: Any

    def holder(self) -> Any: ...


class Sight:
    """Of ``arbiter``; None: this side has none."""

    def __init__(self, arbiter: Watched | None) -> None:
        self._arbiter = arbiter

    def identity(self, field: str) -> str:
        """``id`` or ``vm`` of the arbiter; "" where it has none."""
        identity = self._arbiter.identity if self._arbiter is not None else None
        return str(getattr(identity, field)) if identity is not None else ""

    def compare(self, meeting: Meeting) -> int:
        """The generation that this side sees. Raises ProtocolError where it differs from what the primary sees."""
        here = self.identity("id")
        if here != meeting.arbiter_id:
            raise ProtocolError(
                "the two sides do not see the same arbiter: the primary's is "
                f"{meeting.arbiter_id or 'one without identity'} (VM {meeting.vm or '?'}), this one's "
                f"{here or 'one without identity'} (VM {self.identity('vm') or '?'}): is the share mounted on both, and are "
                "both given the same --arbiter?")
        if self._arbiter is None or not here:
            return meeting.generation
        try:
            holder = self._arbiter.holder()
        except ArbitrationError as error:
            raise ProtocolError(f"this side cannot read the arbiter, so nothing would be protected: {error}") from error
        if holder.generation != meeting.generation or holder.token != meeting.claim_token:
            raise ProtocolError(
                f"the two sides do not see the same at the arbiter: here generation {holder.generation} holds "
                f"({holder.describe()}), the primary says it holds {meeting.generation}")
        return int(holder.generation)
