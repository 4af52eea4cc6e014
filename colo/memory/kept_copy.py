"""The committed checkpoint of a RAM directory, kept so that whoever comes after this process finds it whole.

In ``DIR/copy``: the decision record, two slots for the device state and two for the description (what the record names is
never written over), and the files of the redo log. The image's own files are :class:`~colo.memory.image.RamImage`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from colo._fast.kernels.digest import StreamDigest
from colo.errors import StorageError
from colo.memory.decision import DIGEST_BYTES, RECORD_BYTES, SLOT_BYTES, DecisionRecord, Phase, digest, latest
from colo.memory.description import DESCRIPTION_MAX_BYTES, Description, SessionFacts, decode_description
from colo.private import PrivateDirectory

COPY_NAME = "copy"
NOTE_NAME = "COPY.txt"
DECISION = "decision"
DEVICES = ("device.0", "device.1")
DESCRIPTIONS = ("description.0", "description.1")
LOG = ("log", "log.entries", "log.pages")
DEVICE_MAX_BYTES = 1 << 30


class KeptCopy:
    """What ``directory`` keeps. Opening it changes nothing; one process at a time may write (the session's lock).

    :attr:`record` and :attr:`description` are None where no checkpoint is committed. Raises StorageError, naming the file,
    for what is damaged: a damaged copy is not taken for none.
    """

    def __init__(self, directory: Path | PrivateDirectory) -> None:
        self._own: PrivateDirectory | None = None
        if isinstance(directory, PrivateDirectory):
            self._top = directory
        else:
            self._own = self._top = PrivateDirectory.open(directory, make=False)
        self.directory = self._top.path
        self.session = SessionFacts()
        """What the next description says of the session."""
        self.generation = -1
        """What the next records say of it; see DecisionRecord."""
        self.record: DecisionRecord | None = None
        self.description: Description | None = None
        self._fds: dict[str, int] = {}
        self._folder: PrivateDirectory | None = None
        self._digest = StreamDigest()
        self._lock = threading.RLock()
        """The log is replayed on another thread than the session's."""
        self._prepared: DecisionRecord | None = None
        self._prepared_description: Description | None = None
        try:
            if self._top.stat(COPY_NAME) is not None:
                self._folder = self._top.directory(COPY_NAME, make=False)
                self._read()
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """Where the files are."""
        return self.directory / COPY_NAME

    # -- reading

    def _read(self) -> None:
        assert self._folder is not None
        if self._folder.stat(DECISION) is None:
            return
        data = self._content(DECISION, SLOT_BYTES + RECORD_BYTES)
        record = latest(data)
        if record is None:
            if any(data):
                raise StorageError(
                    f"{self.path / DECISION} is damaged: neither of its two records is whole, so it cannot be told which "
                    f"checkpoint {self.directory} holds; `colo discard {self.directory}` gives it up")
            return
        name = DESCRIPTIONS[record.description_slot]
        with self._naming(name):
            text = self._part(name, record.description_bytes, record.description_digest, DESCRIPTION_MAX_BYTES)
            self.description = decode_description(text)
        self.record = record
        self.generation = record.generation

    def device_state(self) -> bytes:
        """The committed checkpoint's, as received. Raises StorageError."""
        assert self.record is not None
        name = DEVICES[self.record.device_slot]
        with self._naming(name):
            return self._part(name, self.record.device_bytes, self.record.device_digest, DEVICE_MAX_BYTES)

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            raise StorageError(
                f"{self.path / name} is damaged, and with it the checkpoint that {self.directory} holds: {error}; "
                f"`colo discard {self.directory}` gives it up") from error

    def _part(self, name: str, length: int, wanted: bytes, most: int) -> bytes:
        if length > most:
            raise StorageError(f"its length of {length} bytes is more than {most}")
        data = self._content(name, length)
        if len(data) < length:
            raise StorageError(f"it has {len(data)} bytes of {length}")
        if digest(data) != wanted:
            raise StorageError("its digest is not the one in the decision record")
        return data

    def _content(self, name: str, most: int) -> bytes:
        """The file's first ``most`` bytes. Raises StorageError."""
        if self._folder is None:
            raise StorageError(f"{self.path} is gone")
        with os.fdopen(self._folder.open_file(name, os.O_RDONLY), "rb") as file:
            try:
                return file.read(most)
            except OSError as error:
                raise StorageError(f"{self.path / name}: {error.strerror}") from error

    # -- writing

    def log_files(self) -> tuple[int, int, int]:
        """Descriptors of the redo log's files, for :class:`~colo._fast.receive.staging.Staging`."""
        first, second, third = (self._open(name) for name in LOG)
        return first, second, third

    def _open(self, name: str) -> int:
        fd = self._fds.get(name)
        if fd is not None:
            return fd
        if self._folder is None:
            self._folder = self._top.directory(COPY_NAME)
        fd = self._fds[name] = self._folder.open_file(name, os.O_RDWR | os.O_CREAT)
        if name == DECISION and os.fstat(fd).st_size < 2 * SLOT_BYTES:
            self._write(name, bytes(2 * SLOT_BYTES), 0)  # the storage of all records to come
        return fd

    def _write(self, name: str, data: bytes, offset: int) -> None:
        fd = self._open(name)
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(fd, view, offset)
                if done == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view = view[done:]
                offset += done
        except OSError as error:
            raise StorageError(
                f"{self.path / name}: {error.strerror}; free space there, or give another directory with --ram-dir"
            ) from error

    def prepare(
        self, checkpoint: int, machine: str, ram_section_id: int, device_state: bytes,
        blocks: Sequence[tuple[str, int]], image_set: int,
    ) -> None:
        """Put down all that :meth:`commit` will decide on, where the committed checkpoint has nothing.

        Raises StorageError; what is committed is untouched then.
        """
        before = self.record
        device_slot = 1 - before.device_slot if before else 0
        self._write(DEVICES[device_slot], device_state, 0)
        self._digest.reset()
        self._digest.update(device_state)
        description = self.description
        if before is None or description is None or description.machine != machine \
                or description.blocks != tuple(blocks) or description.session != self.session:
            description = Description(machine, tuple(blocks), self.session)
            text = description.encode()
            slot = 1 - before.description_slot if before else 0
            self._write(DESCRIPTIONS[slot], text, 0)
            described = slot, len(text), digest(text)
        else:
            described = before.description_slot, before.description_bytes, before.description_digest
        self._open(DECISION)
        self._prepared_description = description
        self._prepared = DecisionRecord(
            0, Phase.WHOLE, checkpoint, time.time_ns(), ram_section_id, image_set,
            device_slot, len(device_state), self._digest.value.to_bytes(DIGEST_BYTES, "big"), *described,
            generation=self.generation,
        )

    @property
    def is_prepared(self) -> bool:
        """Whether :meth:`commit` has something to decide on."""
        return self._prepared is not None

    def commit(self, extent: tuple[int, int, int]) -> None:
        """Decide: the prepared checkpoint is the committed one, with a redo log of ``extent`` (see Staging)."""
        prepared = self._prepared
        assert prepared is not None
        self._prepared = None
        records, log_bytes, pages_bytes = extent
        first = self.record is None
        with self._lock:
            self._decide(replace(
                prepared, sequence=self.record.sequence + 1 if self.record is not None else 1,
                phase=Phase.REPLAY if records else Phase.WHOLE, log_records=records, log_bytes=log_bytes,
                pages_bytes=pages_bytes))
        self.description = self._prepared_description
        if first:
            self.write_note()

    def replayed(self) -> None:
        """The redo log is wholly in the image: it may be overwritten."""
        with self._lock:
            if self.record is None or self.record.phase is not Phase.REPLAY:
                return
            self.change(phase=Phase.WHOLE, log_records=0, log_bytes=0, pages_bytes=0)

    def change(self, **changes: object) -> None:
        """Decide on the same checkpoint with other facts (fields of DecisionRecord). Raises StorageError."""
        with self._lock:
            assert self.record is not None
            self._decide(self.record.next(**changes))

    def _decide(self, record: DecisionRecord) -> None:
        self._write(DECISION, record.encode(), record.slot_offset)
        self.record = record

    def write_note(self) -> None:
        """Say in a text file beside it what the directory holds. That there is no space for it is no error."""
        with contextlib.suppress(StorageError, OSError):
            self._top.write(NOTE_NAME, self.note().encode())

    def note(self) -> str:
        """The text file's."""
        record, description = self.record, self.description
        assert record is not None and description is not None
        session, where = description.session, self.directory
        vm = f'the VM "{session.vm}"' if session.vm else "a VM"
        lines = [
            f"This directory holds a committed checkpoint of {vm}: machine {description.machine}, "
            f"{description.total_bytes >> 20} MiB of RAM.",
            "It may be the only copy there is: nothing deletes it but a takeover, or a user's word.",
            "",
            f"Written by {session.host} (pid {session.pid}) at checkpoint {record.checkpoint}, "
            f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(record.committed_at_ns / 1e9))}; while the session runs, "
            "later ones take its place.",
        ]
        if record.lost_generation >= 0:
            lines.append(f"The other side holds generation {record.lost_generation}: {record.lost_to or 'who is not known'}.")
        lines += [
            "",
            f"colo status --dir {where}      shows what is in it now",
            f"colo failover --dir {where}    runs it here, if the arbiter ({session.arbiter or 'none was given'}) lets it",
            f"colo secondary … --ram-dir {where}    with the arguments of then: holds it, and lets its primary come back",
            f"colo discard {where}           deletes it",
        ]
        return "\n".join(lines) + "\n"

    # -- the end

    def shorten_log(self) -> None:
        """Give the redo log's storage back, where it is in the image."""
        if self.record is not None and self.record.log_records == 0:
            with contextlib.suppress(OSError):
                for fd in self.log_files():
                    os.ftruncate(fd, 0)

    def forget(self) -> None:
        """Delete it: the decision first, so that no moment shows a part of it for the whole."""
        self.record = self.description = self._prepared = None
        self._let_go()
        delete_copy(self._top)

    def close(self) -> None:
        """Let go of the files; they stay."""
        self._let_go()
        if self._own is not None:
            self._own.close()

    def _let_go(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def delete_copy(top: PrivateDirectory) -> None:
    """Delete what of a kept checkpoint is in ``top``, whole or not, beside the image's files. Raises StorageError."""
    if top.stat(COPY_NAME) is not None:
        with top.directory(COPY_NAME, make=False) as folder:
            for name in (DECISION, *DEVICES, *DESCRIPTIONS, *LOG):
                folder.unlink(name)
        top.rmdir(COPY_NAME)
    top.unlink(NOTE_NAME)
