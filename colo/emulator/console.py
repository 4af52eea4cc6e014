"""The machine's console: what the guest prints reaches the world exactly once, also across a takeover.

The bytes a guest has printed are numbered from 0, like those of a TCP connection. The device keeps those that the world
has not acknowledged, and they are part of its state: a machine that takes over sends them again, and the world, which
knows its own position, drops what it has. So a line that left just before the primary died is not doubled, and one that
was committed but had not left yet is not lost. That the world never has bytes the state does not know of is the outbox's
work (:class:`colo.epoch.outbox.Outbox`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from colo.vmstate import U32, U64, Buffer, Description

DATA = 0
"""Written: the byte is printed."""
TAIL_MAX_BYTES = 1 << 20
"""What the state holds at most. No peer's state makes more be allocated."""
FULL_BYTES = TAIL_MAX_BYTES // 2
"""So many unacknowledged bytes stop the CPU."""
CHUNK_BYTES = 64 << 10


@dataclass
class Console:
    """``output(position, data)`` is called, on the machine's thread and between instructions, with each byte once; after
    a load again with those not acknowledged. Not thread-safe, but for :meth:`acknowledge`."""

    written: Annotated[int, U64()] = 0
    """Bytes that the guest has printed; the position of the next."""
    tail_bytes: Annotated[int, U32()] = 0
    tail: Annotated[bytes | bytearray, Buffer(size="tail_bytes", max_size=TAIL_MAX_BYTES)] = field(
        default_factory=bytearray)
    """Those of them that the world has not acknowledged: the last ``tail_bytes``."""
    output: Callable[[int, bytes], None] = lambda position, data: None
    handed: int = 0
    """The position up to which ``output`` was called here."""
    _acknowledged: int = 0

    @property
    def start(self) -> int:
        """The position of the first byte that is kept."""
        return self.written - len(self.tail)

    @property
    def full(self) -> bool:
        return len(self.tail) >= FULL_BYTES

    def put(self, byte: int) -> None:
        """The guest prints a byte."""
        assert isinstance(self.tail, bytearray)
        self.tail.append(byte)
        self.written += 1

    def flush(self) -> None:
        """Hand the new bytes to ``output``."""
        while self.handed < self.written:
            at = self.handed - self.start
            data = bytes(self.tail[at : at + CHUNK_BYTES])
            self.output(self.handed, data)
            self.handed += len(data)  # when output raises, it gets them again: by position that does no harm

    def acknowledge(self, position: int) -> None:
        """The world has all bytes before ``position``. From any thread; the state changes at the next :meth:`settle`."""
        self._acknowledged = max(self._acknowledged, position)

    def settle(self) -> None:
        """Drop what was acknowledged. Never beyond what was handed out: the world cannot have more."""
        done = min(self._acknowledged, self.handed) - self.start
        if done > 0:
            del self.tail[:done]  # type: ignore[union-attr]

    def measure(self) -> None:
        """Before a save."""
        self.tail_bytes = len(self.tail)

    def loaded(self, _version: int) -> None:
        """After a load. ValueError when the state is impossible."""
        if len(self.tail) > self.written:
            raise ValueError(f"{len(self.tail)} bytes are unacknowledged, but only {self.written} were printed")
        self.tail = bytearray(self.tail)
        self.handed = self._acknowledged = self.start


CONSOLE = Description.of(Console, "console", pre_save=Console.measure, post_load=Console.loaded)
