"""A bounded read position, and the faults found on the way.

A fault learns its path from the inside out: the step that met it knows the field, each enclosing structure
puts its own name in front, and the outermost call turns it into a :class:`~colo.errors.StreamError`. Paths so
cost nothing while all goes well.
"""

from __future__ import annotations

from colo.errors import StreamError, Truncated


class Fault(Exception):
    """An error on its way out of nested state; becomes a StreamError, ``kind``, at the package's edge."""

    def __init__(
        self,
        message: str,
        *,
        kind: type[StreamError] = StreamError,
        offset: int | None = None,
        value: object = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.offset = offset
        self.value = value
        self.path: list[str] = [field] if field else []
        self.reached: object = None
        """What had been read before it, where somebody asks for that."""

    def inside(self, name: str) -> None:
        """Put a structure's name in front; a part that opens with ``[`` joins on without a dot."""
        self.path.insert(0, name)

    def error(self, root: str) -> StreamError:
        """The public exception, with its place written as ``root field[2].field``."""
        place = "".join(part if part.startswith("[") else f".{part}" for part in self.path).lstrip(".")
        where = f"{root} {place}" if place else root
        return self.kind(self.message, where=where, offset=self.offset, value=self.value)


class Cursor:
    """A position in received bytes. ``at`` and ``end`` are byte offsets in ``data``; nothing past ``end`` is
    read.
    """

    __slots__ = ("at", "data", "end")

    def __init__(self, data: memoryview, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    def take(self, length_bytes: int) -> memoryview:
        """The next ``length_bytes`` bytes, consumed. A Truncated fault if there are fewer."""
        start = self.at
        stop = start + length_bytes
        if stop > self.end:
            raise self.short(length_bytes)
        self.at = stop
        return self.data[start:stop]

    def short(self, wanted_bytes: int, field: str = "") -> Fault:
        left = self.end - self.at
        return Fault(
            f"{wanted_bytes} bytes are needed, {left} are left",
            kind=Truncated,
            offset=self.at,
            value=left,
            field=field,
        )

    def peek(self, length_bytes: int) -> memoryview:
        """Up to ``length_bytes`` bytes ahead, not consumed; shorter at the end."""
        return self.data[self.at : min(self.at + length_bytes, self.end)]


def as_bytes_view(data: object) -> memoryview:
    """Any C-contiguous buffer as a flat view of bytes; TypeError or BufferError if it is none."""
    view = memoryview(data)  # type: ignore[arg-type]
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    return view.cast("B")
