"""What descriptions, fields and steps know of each other: two promises, so that none of their files imports in a circle.

A field carries a description, a description compiles its fields into steps, and a step saves the objects of the description
that its field carries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from colo.vmdesc.cursor import Cursor

Entry = dict[str, Any]
"""A field of a vmdesc, still without its name; or a description's members."""


class Described(Protocol):
    """A description, as a field that carries it sees it: its limits, and its inner edge (a bytearray or a cursor through all
    levels, faults instead of errors)."""

    name: str
    version: int
    minimum_version: int
    depth: int
    """Descriptions inside each other, this one counted."""
    least_bytes: int
    """No object takes fewer bytes, subsections aside."""
    factory: Callable[[], Any] | None

    @property
    def is_uniform(self) -> bool:
        """Nothing in it depends on the object: an array of it may be told by its first element."""
        ...

    def save_into(self, obj: Any, out: bytearray, version: int) -> None:
        """Append the state to ``out``."""
        ...

    def describe_into(self, obj: Any, out: bytearray, version: int) -> Entry:
        """Append the state to ``out`` and return what a vmdesc says of it."""
        ...

    def load_from(self, obj: Any, cursor: Cursor, version: int) -> None:
        """Load from ``cursor``, which is left behind the last subsection that is ours."""
        ...


class Step(Protocol):
    """What a field compiles to. Saves to the end of ``out``, loads from a cursor; ``version`` is the one of the stream."""

    def save(self, obj: Any, out: bytearray, version: int) -> None: ...

    def load(self, obj: Any, cursor: Cursor, version: int) -> None: ...

    def describe(self, obj: Any, out: bytearray, version: int) -> list[Entry]:
        """Saves too: the sizes in the entries are those of what was written."""
        ...
