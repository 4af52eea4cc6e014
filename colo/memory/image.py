"""The committed RAM image: one file a RAM block, shared with whoever maps it.

The files are sparse: a page that was never more than zero takes no storage. With what :class:`~colo.memory.KeptCopy` has
beside them they outlive the session: who opens the directory after it finds the last committed checkpoint. What was never
committed is removed at the session's end; a stand-by QEMU that maps a file keeps the memory after the name is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path
from urllib.parse import quote

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.staging import Staging
from colo.errors import StorageError
from colo.memory.block_image import BlockImage
from colo.memory.decision import Phase
from colo.memory.host import available_memory_bytes, host_memory_bytes, on_tmpfs
from colo.memory.kept_copy import KeptCopy, delete_copy
from colo.private import PrivateDirectory

LOCK_NAME = "session.lock"
BLOCKS_NAMES = ("blocks", "blocks-2")
"""Two sets of files: a first copy goes into the one that holds no committed checkpoint."""
SPARE_BYTES = 64 << 20


class RamImage(BlockImage):
    """RAM blocks backed by files in ``directory`` (made with mode 0700 if it is missing; files have mode 0600).

    ``max_ram_bytes`` bounds the sum of all blocks (default: this machine's physical memory). A directory in which an earlier
    session left a committed checkpoint gives its blocks, the redo log replayed; ``discard`` deletes it instead. Raises
    :class:`~colo.errors.StorageError` when the directory is open to other users, in use by another session, cannot
    be written, or holds a checkpoint that is damaged.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, max_ram_bytes: int | None = None, discard: bool = False
    ) -> None:
        self.directory = Path(directory)
        super().__init__(host_memory_bytes() if max_ram_bytes is None else max_ram_bytes)
        self._files: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self._set = 0
        self._filling: int | None = None
        """The set that a first copy goes to."""
        self._lock_fd = -1
        self._top = PrivateDirectory.open(self.directory)
        try:
            self._lock()
            self._open_copy(discard)
        except BaseException:
            self._unlock()
            self._top.close()
            raise

    def _lock(self) -> None:
        self._lock_fd = self._top.open_file(LOCK_NAME, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"{self.directory} is in use by another session; end that one or give --ram-dir another directory"
            ) from None
        except OSError as error:
            raise StorageError(f"RAM directory {self.directory}: {error.strerror}") from error

    def _open_copy(self, discard: bool) -> None:
        # No session holds the lock: what is not of the committed checkpoint was left by one that was killed.
        if discard:
            self._delete_all()
        self.kept = KeptCopy(self._top)
        record = self.kept.record
        self._set = record.image_set if record else 0
        for number in (0, 1):
            if record is None or number != self._set:
                self._remove_set(number)
        if record is None:
            self.kept.forget()
            return
        try:
            self._recover()
        except BaseException:
            self.kept.close()
            self._close_files()
            raise

    def _recover(self) -> None:
        """Map the files of the committed checkpoint, and bring what its redo log has into them."""
        record, description = self.kept.record, self.kept.description
        assert record is not None and description is not None
        if description.total_bytes > self.max_ram_bytes:
            raise StorageError(
                f"{self.directory} holds a checkpoint of {description.total_bytes} bytes of RAM, at most "
                f"{self.max_ram_bytes} are allowed (--max-ram)")
        with self._top.directory(BLOCKS_NAMES[self._set], make=False) as folder:
            self.blocks = [self._reopen(folder, idstr, length) for idstr, length in description.blocks]
        if record.phase is Phase.REPLAY:
            staging = Staging(self.kept.log_files())
            staging.adopt(self.blocks, record.log_records, record.log_bytes, record.pages_bytes)
            staging.reserve()
            staging.apply()
            self.kept.replayed()
        self.kept.shorten_log()

    def _reopen(self, folder: PrivateDirectory, idstr: str, length: int) -> RamBlock:
        path = self.path(idstr)
        fd = self._files[self._set][idstr] = folder.open_file(path.name, os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            if size < length:
                raise StorageError(
                    f"{path} has {size} bytes, the checkpoint's RAM block {length}: it was cut short, and the checkpoint "
                    f"with it; `colo discard {self.directory}` gives it up")
            block = self._map(idstr, fd, length)
            block.note_storage()
        except OSError as error:
            raise StorageError(f"RAM block {idstr} of the checkpoint here: {path}: {error.strerror}") from error
        return block

    @property
    def holds_copy(self) -> bool:
        """Whether a committed checkpoint is kept here: then :meth:`close` leaves it."""
        return self.kept.record is not None

    @property
    def set_in_use(self) -> int:
        """Which of the two sets of files: that of a first copy that is under way, else of the committed ones."""
        return self._set if self._filling is None else self._filling

    def path(self, idstr: str) -> Path:
        """The file of a block: of a first copy that is under way, else of the committed ones.

        Names come from a peer: whatever could leave the directory is percent-encoded.
        """
        return self._path(self.set_in_use, idstr)

    def _path(self, number: int, idstr: str) -> Path:
        name = quote(idstr, safe="@")
        return self.directory / BLOCKS_NAMES[number] / ("%2E" + name[1:] if name.startswith(".") else name)

    # -- a primary's blocks

    def log_files(self) -> tuple[int, int, int] | None:
        """See :meth:`BlockImage.log_files`: they are kept with the checkpoint."""
        return self.kept.log_files()

    def begin(self) -> None:
        """A first copy comes; it touches nothing of the committed checkpoint, and takes its place when it is committed."""
        self.forget()
        self._filling = 1 - self._set if self.holds_copy else self._set
        self._top.directory(BLOCKS_NAMES[self._filling]).close()

    def forget(self) -> None:
        """Remove what there is of a first copy that was never whole: the next primary announces its own blocks."""
        if self._filling is not None:
            self._remove_set(self._filling)
            self._filling = None

    def _known(self) -> list[RamBlock]:
        return self.blocks if self._filling is None else []

    def _make_room(self, total_bytes: int) -> None:
        if self._filling is None:
            self.begin()
        if not self.holds_copy:
            return
        # The image beside the one that is held: about as much as that takes. If it grows past it, the storage of
        # each page is asked for before it is written.
        wanted = min(total_bytes, self.storage_bytes) + SPARE_BYTES
        there = os.statvfs(self.directory)
        free = min(there.f_bavail * there.f_frsize, available_memory_bytes() if on_tmpfs(self.directory) else wanted)
        if free < wanted:
            raise StorageError(
                f"{self.directory} holds a checkpoint, and a new copy beside it needs about {wanted >> 20} MiB where "
                f"{free >> 20} are free: free memory, or give the checkpoint up (`colo discard {self.directory}`)")

    def _make(self, idstr: str, length: int) -> RamBlock:
        assert self._filling is not None
        path = self.path(idstr)
        with self._top.directory(BLOCKS_NAMES[self._filling], make=False) as folder:
            fd = folder.open_file(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._files[self._filling][idstr] = fd
        try:
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
        fd = self._files[self._set][block.idstr]
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

    def prepare(
        self, checkpoint: int, machine: str, ram_section_id: int, device_state: bytes, blocks: list[RamBlock]
    ) -> None:
        """See :meth:`BlockImage.prepare`. Raises StorageError."""
        self.kept.prepare(
            checkpoint, machine, ram_section_id, device_state, tuple((b.idstr, b.used_length) for b in blocks),
            self.set_in_use)

    def commit(self, blocks: list[RamBlock], extent: tuple[int, int, int] = (0, 0, 0)) -> None:
        """See :meth:`BlockImage.commit`: what :meth:`prepare` put down is the committed checkpoint from here on, also for
        whoever opens the directory next. Without :meth:`prepare` before it, it lasts as long as this object."""
        if self.kept.is_prepared:
            self.kept.commit(extent)
        self.blocks = blocks
        if self._filling is not None:
            before, self._set, self._filling = self._set, self._filling, None
            if before != self._set:
                self._remove_set(before)

    def replayed(self) -> None:
        """See :meth:`BlockImage.replayed`."""
        self.kept.replayed()

    # -- what it takes, and the end

    @property
    def storage_bytes(self) -> int:
        """What the committed blocks' files take, holes not counted."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in list(self._files[self._set].values()))

    def remove_files(self) -> None:
        """The checkpoint is a running VM's memory now: forget it here. A process that maps the files keeps their memory,
        until it unmaps or ends."""
        self.kept.forget()
        for number in (0, 1):
            self._unlink_set(number)

    def _delete_all(self) -> None:
        delete_copy(self._top)
        for number in (0, 1):
            self._remove_set(number)

    def _remove_set(self, number: int) -> None:
        """Remove a set of files, whatever is in it. Whoever still maps one keeps it."""
        for fd in self._files[number].values():
            os.close(fd)
        self._files[number].clear()
        self._unlink_set(number)

    def _unlink_set(self, number: int) -> None:
        if self._top.stat(BLOCKS_NAMES[number]) is None:
            return
        with self._top.directory(BLOCKS_NAMES[number], make=False) as folder:
            for name in folder.names():
                folder.unlink(name)
        self._top.rmdir(BLOCKS_NAMES[number])

    def close(self) -> None:
        """Give up the directory. A committed checkpoint stays in it; else the files are removed, and the directory if this
        session made it and it is empty."""
        self.forget()
        if not self.holds_copy:
            self.remove_files()
        else:
            self.kept.shorten_log()
            self.kept.write_note()
        self.kept.close()
        self.blocks = []
        self._close_files()
        if self._lock_fd >= 0 and not self.holds_copy:
            with contextlib.suppress(StorageError):
                self._top.unlink(LOCK_NAME)
            self._top.remove()  # fails, and may, when something of the user's is in it
        self._unlock()
        self._top.close()

    def _close_files(self) -> None:
        for files in self._files:
            for fd in files.values():
                os.close(fd)
            files.clear()

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> RamImage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
