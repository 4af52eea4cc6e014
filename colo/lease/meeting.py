"""What the two sides tell each other when they meet, before anything of the VM is sent.

Each says which VM it means and what it sees at the arbiter; while that differs, nothing is protected, and both say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from colo.errors import ProtocolError
from colo.wire import GENERATION_MAX

VERSION = 1
TEXT_MAX = 512
INT_MOST = (1 << 63) - 1
FLOAT_MOST = 10**9
_HEX = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Meeting:
    """The primary's side introduces itself. With ``token`` it is of a session that was welcomed before."""

    vm: str = ""
    uuid: str = ""
    arbiter_id: str = ""
    """The arbiter's identity; "" where it has none (``exec:``, ``none``)."""
    generation: int = 0
    """The generation that it holds."""
    claim_token: str = ""
    """By which the arbiter knows its holder."""
    lease_ms: float = 0.0
    token: str = ""
    who: str = ""
    """For people: host and process."""
    version: int = VERSION

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, text: Mapping[str, Any]) -> Self:
        """Raises ProtocolError when it is not one: types and lengths are checked."""
        found = cls(**_checked(cls, text))
        if found.version != VERSION:
            raise ProtocolError(
                f"the primary's side speaks version {found.version} of the lease's protocol, this one {VERSION}: "
                "use one version of colo on both")
        if found.token and not _HEX.fullmatch(found.token):
            raise ProtocolError("a lease connection's token is not one")
        return found


@dataclass(frozen=True, slots=True)
class Welcome:
    """The secondary's answer: what it calls this session, and what it has."""

    token: str = ""
    lease_ms: float = 0.0
    arbiter_id: str = ""
    generation: int = 0
    """What it sees at the arbiter."""
    checkpoint: int = -1
    """The committed one; -1: none."""
    following: bool = False
    """A primary of this generation is connected."""
    notice: str = ""
    """Why it could not take over as things are; "" when nothing is known against it."""
    who: str = ""
    version: int = VERSION

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, text: Mapping[str, Any]) -> Self:
        """Raises ProtocolError as :meth:`Meeting.of`."""
        found = cls(**_checked(cls, text))
        if not _HEX.fullmatch(found.token):
            raise ProtocolError("the secondary's welcome has no token")
        return found


def refusal(text: Mapping[str, Any]) -> str:
    """Why the other side refuses to meet."""
    reason = text.get("reason")
    return reason[:TEXT_MAX] if isinstance(reason, str) else "no reason given"


def _checked(kind: type[Any], text: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(kind):
        default: Any = field.default
        value: Any = text.get(field.name, default)
        wanted: type[Any] = type(default)
        if wanted is float and type(value) is int and 0 <= value <= FLOAT_MOST:  # of a greater one float() knows nothing
            value = float(value)
        if type(value) is not wanted:
            raise ProtocolError(f"{kind.__name__}.{field.name} is {type(value).__name__}, not {wanted.__name__}")
        if wanted is str and len(value) > TEXT_MAX:
            raise ProtocolError(f"{kind.__name__}.{field.name} has {len(value)} characters, {TEXT_MAX} fit")
        most = GENERATION_MAX - 1 if field.name == "generation" else INT_MOST
        if (wanted is int and not min(0, default) <= value <= most) or (wanted is float and not 0 <= value <= FLOAT_MOST):
            raise ProtocolError(f"{kind.__name__}.{field.name} is out of bounds")
        values[field.name] = value
    return values
