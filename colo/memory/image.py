"""The committed RAM image: one file a RAM block, shared with whoever maps it.

The files are sparse: a page that was never more than zero takes no storage. They are made new for each session and
removed at its end; a stand-by QEMU that maps one keeps the memory after the name is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from colo._fast.ramblock import RamBlock
from colo.errors import LimitExceeded, StorageError, StreamError
from colo.memory.host import host_memory_bytes

LOCK_NAME = "session.lock"
BLOCKS_NAME = "blocks"
WHERE = "ram MEM_SIZE"


def _list_difference(before: list[str], now: list[str]) -> str:
    """Which names are new, gone, or elsewhere."""
    words = [f"'{name}' is new" for name in now if name not in before]
    words += [f"'{name}' is gone" for name in before if name not in now]
    moved = next((f"'{b}' comes where '{a}' was" for a, b in zip(before, now, strict=False) if a != b), "")
    return "; ".join((words or [moved])[:8])


class RamImage:
    """RAM blocks backed by files in ``directory`` (made with mode 0700 if it is missing; files have mode 0600).

    ``max_ram_bytes`` bounds the sum of all blocks (default: this machine's memory, or its control group's limit). Raises
    :class:`~colo.errors.StorageError` when the directory is open to other users, in use by another session, or cannot
    be written.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_ram_bytes: int | None = None) -> None:
        self.directory = Path(directory)
        self.max_ram_bytes = host_memory_bytes() if max_ram_bytes is None else max_ram_bytes
        self.blocks: list[RamBlock] = []
        """The committed blocks, in the stream's order."""
        self._files: dict[str, int] = {}
        self._lock_fd = -1
        self._made_directory = False
        self._open_directory()

    def _open_directory(self) -> None:
        try:
            if not self.directory.exists():
                self.directory.mkdir(mode=0o700, parents=True)
                self._made_directory = True
            mode = self.directory.stat().st_mode
            if not stat.S_ISDIR(mode):
                raise StorageError(f"{self.directory} is not a directory; give --ram-dir one of its own")
            if mode & 0o077:
                raise StorageError(
                    f"{self.directory} is open to other users (mode {stat.S_IMODE(mode):04o}) and guest memory is "
                    f"secret: chmod 700 it, or give --ram-dir a directory that does not exist yet"
                )
            self._lock_fd = os.open(
                self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            self._lock_fd = -1
            raise StorageError(
                f"{self.directory} is in use by another session; end that one or give --ram-dir another directory"
            ) from None
        except OSError as error:
            raise StorageError(f"RAM directory {self.directory}: {error.strerror}") from error
        # No session holds the lock, so these were left by one that was killed. Whoever still maps one keeps it.
        blocks = self.directory / BLOCKS_NAME
        blocks.mkdir(mode=0o700, exist_ok=True)
        for left in blocks.iterdir():
            left.unlink(missing_ok=True)

    def path(self, idstr: str) -> Path:
        """The file of a block. Names come from a peer: whatever could leave the directory is percent-encoded."""
        name = quote(idstr, safe="@")
        return self.directory / BLOCKS_NAME / ("%2E" + name[1:] if name.startswith(".") else name)

    def announce(self, announced: Iterable[tuple[str, int]]) -> list[RamBlock]:
        """RAM blocks for the (idstr, used_length) pairs of a MEM_SIZE record, in its order.

        The first call makes the files. Later calls take the same names in the same order, maybe with other lengths
        (QEMU grows ROM blocks), and leave :attr:`blocks` as it is: :meth:`commit` puts the result in its place.
        """
        wanted = list(announced)
        total = sum(length for _, length in wanted)
        if total > self.max_ram_bytes:
            raise LimitExceeded(
                f"{total} bytes of RAM announced, at most {self.max_ram_bytes} are allowed (--max-ram)",
                where=WHERE, value=total,
            )
        if not self.blocks:
            return [self._make(idstr, length) for idstr, length in wanted]
        before, now = [b.idstr for b in self.blocks], [idstr for idstr, _ in wanted]
        if before != now:
            raise StreamError(
                f"the list of RAM blocks changed: {_list_difference(before, now)}", where=WHERE, value=now,
            )
        return [
            block if block.used_length == length else self._resize(block, length)
            for block, (_, length) in zip(self.blocks, wanted, strict=True)
        ]

    def commit(self, blocks: list[RamBlock]) -> None:
        """Take ``blocks`` (of :meth:`announce`) for the committed ones."""
        self.blocks = blocks

    def _make(self, idstr: str, length: int) -> RamBlock:
        path = self.path(idstr)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._files[idstr] = fd
            os.ftruncate(fd, length)
            return self._map(idstr, fd, length)
        except OSError as error:
            raise StorageError(f"RAM block {idstr}: {path}: {error.strerror}") from error

    def _map(self, idstr: str, fd: int, length: int) -> RamBlock:
        memory = mmap.mmap(fd, length)
        # Guest memory is secret: no core dump of this process has it.
        memory.madvise(mmap.MADV_DONTDUMP)
        return RamBlock(idstr, length, memory=memory, fd=fd)

    def _resize(self, block: RamBlock, length: int) -> RamBlock:
        fd = self._files[block.idstr]
        try:
            if length > block.used_length:
                # What a longer block had there once must not come back: the pages begin as zero.
                os.ftruncate(fd, block.used_length)
                os.ftruncate(fd, length)
            resized = self._map(block.idstr, fd, length)
        except OSError as error:
            raise StorageError(f"RAM block {block.idstr}: cannot be {length} bytes: {error.strerror}") from error
        resized.adopt(block)
        return resized

    @property
    def total_bytes(self) -> int:
        """Sum of the committed blocks' lengths."""
        return sum(block.used_length for block in self.blocks)

    @property
    def storage_bytes(self) -> int:
        """What the files take, holes not counted."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in list(self._files.values()))

    def remove_files(self) -> None:
        """Remove the files' names. A process that maps them keeps the memory, until it unmaps or ends."""
        for idstr in self._files:
            self.path(idstr).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the files, give up the directory (removed if this session made it and it is empty)."""
        self.remove_files()
        self.blocks = []
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        if self._lock_fd >= 0:
            with contextlib.suppress(OSError):
                (self.directory / BLOCKS_NAME).rmdir()
                (self.directory / LOCK_NAME).unlink()
                if self._made_directory:
                    self.directory.rmdir()  # fails, and may, when something of the user's is in it
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> RamImage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
