"""RAM blocks as a primary announces them, whatever they are made of: the promise of every RAM image."""

from __future__ import annotations

from collections.abc import Iterable

from colo._fast.kernels.ramblock import RamBlock
from colo.errors import LimitExceeded, StreamError

WHERE = "ram MEM_SIZE"


def _list_difference(before: list[str], now: list[str]) -> str:
    """Which names are new, gone, or elsewhere."""
    words = [f"'{name}' is new" for name in now if name not in before]
    words += [f"'{name}' is gone" for name in before if name not in now]
    moved = next((f"'{b}' comes where '{a}' was" for a, b in zip(before, now, strict=False) if a != b), "")
    return "; ".join((words or [moved])[:8])


class BlockImage:
    """RAM blocks, made when a primary announces them. What they are made of is the subclass's."""

    max_ram_bytes: int
    blocks: list[RamBlock]
    """The committed blocks, in the stream's order."""

    def __init__(self, max_ram_bytes: int) -> None:
        self.max_ram_bytes = max_ram_bytes
        self.blocks = []

    def log_files(self) -> tuple[int, int, int] | None:
        """Files for the redo log of a checkpoint, or None: it lives and dies with this process."""
        return None

    def begin(self) -> None:
        """A first copy is about to come: the next :meth:`announce` is its."""

    def forget(self) -> None:
        """Remove what there is of a first copy that was never whole."""

    def announce(self, announced: Iterable[tuple[str, int]]) -> list[RamBlock]:
        """RAM blocks for the (idstr, used_length) pairs of a MEM_SIZE record, in its order.

        The first call makes them. Later calls take the same names in the same order, maybe with other lengths
        (QEMU grows ROM blocks), and leave :attr:`blocks` as it is: :meth:`commit` puts the result in its place.
        """
        wanted = list(announced)
        total = sum(length for _, length in wanted)
        if total > self.max_ram_bytes:
            raise LimitExceeded(
                f"{total} bytes of RAM announced, at most {self.max_ram_bytes} are allowed (--max-ram)",
                where=WHERE, value=total,
            )
        known = self._known()
        if not known:
            self._make_room(total)
            return [self._make(idstr, length) for idstr, length in wanted]
        before, now = [b.idstr for b in known], [idstr for idstr, _ in wanted]
        if before != now:
            raise StreamError(
                f"the list of RAM blocks changed: {_list_difference(before, now)}", where=WHERE, value=now,
            )
        return [
            block if block.used_length == length else self._resize(block, length)
            for block, (_, length) in zip(known, wanted, strict=True)
        ]

    def _known(self) -> list[RamBlock]:
        """The blocks that the next announcement must fit; empty: it makes them."""
        return self.blocks

    def _make_room(self, total_bytes: int) -> None:
        """Refuse, with StorageError, what there is no place for."""

    def _make(self, idstr: str, length: int) -> RamBlock:
        raise NotImplementedError

    def _resize(self, block: RamBlock, length: int) -> RamBlock:
        raise NotImplementedError

    def prepare(
        self, checkpoint: int, machine: str, ram_section_id: int, device_state: bytes, blocks: list[RamBlock]
    ) -> None:
        """All that :meth:`commit` needs is put down; what cannot be is refused now."""

    def commit(self, blocks: list[RamBlock], extent: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Take ``blocks`` (of :meth:`announce`), and the staged log of ``extent``, for the committed ones."""
        self.blocks = blocks

    def replayed(self) -> None:
        """The committed log is wholly in the blocks."""

    @property
    def total_bytes(self) -> int:
        """Sum of the committed blocks' lengths."""
        return sum(block.used_length for block in self.blocks)
