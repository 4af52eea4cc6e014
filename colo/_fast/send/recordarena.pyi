"""Memory that records are collected in, to be sent when the VM runs again."""

class RecordArena:
    """Bytes that a :class:`~colo._fast.send.pageencoder.PageEncoder` collects; a read-only buffer of them.

    While it is exported (a memoryview of it lives) it neither moves nor changes: collecting raises BufferError then."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def room_bytes(self) -> int:
        """Bytes it can hold without growing."""
    def prepare(self, length_bytes: int) -> None:
        """Make room for that many bytes in all, backed by memory, so that collecting them takes no page fault.
        Raises MemoryError, or BufferError while the arena is exported."""
    def clear(self, keep_bytes: int | None = None) -> None:
        """Forget the bytes. Memory above ``keep_bytes`` goes back to the system (None: none does)."""
