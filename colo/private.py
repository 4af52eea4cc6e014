"""Directories that strangers cannot have planted, and files in them, used by descriptor.

A path is a question that can be answered differently each time it is asked: whoever may write to one of its directories
can put a link, a directory or a fifo of his own in its place, also between a check and the use. So every component is opened
once, relative to the one before it, without following links; what was opened is checked, and used from then on by its
descriptor. What is in the directory is made, opened, replaced and removed relative to that descriptor, by a plain name.

A component may belong to root or to this user, and others may not write to it, unless it is root's or ours and sticky
(``/tmp``): there nobody can move or remove what is ours. A link is followed where only root or this user can have put it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Self

from colo.errors import StorageError
from colo.path_walk import LOOK, Walk, check_secret, explained, kind_of, user_name

UNIX_PATH_MAX_BYTES = 107
"""A unix socket's path: Linux's sun_path holds 108 bytes, with the NUL that ends the name."""
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class PrivateDirectory:
    """A directory held open by :attr:`fd`, made and checked by :meth:`open`. Close it, or use it as a context.

    Names given to its methods are those of entries right in it: no slashes, and neither ``.`` nor ``..``. Every method raises
    StorageError when the system refuses, or when what is there is not what it should be; its ``__cause__`` has the errno.
    """

    def __init__(self, path: Path, fd: int, *, parent_fd: int = -1, made: bool = False) -> None:
        self.path = path
        """As it was named, absolute; for messages, and for other programs that have to open it by name."""
        self.fd = fd
        self.made = made
        """Whether it was made by :meth:`open`, so that :meth:`remove` may remove it."""
        self._parent_fd = parent_fd

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, make: bool = True, secret: bool = True) -> Self:
        """Open ``path``; ``make`` makes what of it is missing, with mode 0700.

        ``secret``: it belongs to this user, with no rights for anybody else (0700). Otherwise others may look into it, and,
        if it is sticky, put things of their own beside ours.

        Raises StorageError when it, or any directory on the way, is another user's or can be changed by one, is reached
        by a link that a stranger can have put there, is no directory, or cannot be made or opened.
        """
        whole = Path(os.fspath(path))
        if not whole.is_absolute():
            with explained(whole, "cannot be opened"):
                whole = Path.cwd() / whole
        if "\0" in str(whole):
            raise StorageError(f"{str(whole)!r}: a path has no NUL in it")
        walk = Walk(whole, make, secret)
        try:
            return cls._of(walk, whole)
        finally:
            walk.close()

    @classmethod
    def _of(cls, walk: Walk, whole: Path) -> Self:
        walk.run()
        with explained(whole, "cannot be opened"):
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=walk.fd)
        return cls(whole, fd, parent_fd=walk.take_parent(), made=walk.made)

    def __del__(self) -> None:
        self.close()  # as files do it: who drops it has closed it

    def directory(self, name: str, *, make: bool = True) -> PrivateDirectory:
        """A private directory in this one. No link is followed. Raises as :meth:`open`."""
        path = self.path / _entry(name)
        made = False
        with explained(path, "cannot be made or opened"):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self.fd)
                    made = True
            look = os.open(name, LOOK, dir_fd=self.fd)
        try:
            facts = os.fstat(look)
            if not stat.S_ISDIR(facts.st_mode):
                raise StorageError(f"{path} is {kind_of(facts.st_mode)} and no directory: remove it, or name another place")
            check_secret(path, facts)
            with explained(path, "cannot be opened"):
                fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=look)
        finally:
            os.close(look)
        return PrivateDirectory(path, fd, parent_fd=os.dup(self.fd), made=made)

    def open_file(self, name: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor of the regular file ``name``, opened with ``flags`` (``os.O_RDWR | os.O_CREAT | …``).

        Never through a link, never waiting (for a fifo's other end), and emptied by ``O_TRUNC`` only after it was checked.
        Raises StorageError for anything but a regular file of this user with one name: a second one (a hard link) may be
        somebody's who keeps it.
        """
        path = self.path / _entry(name)
        with explained(path, "cannot be opened"):
            fd = os.open(name, flags & ~os.O_TRUNC | _FILE, mode, dir_fd=self.fd)
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise StorageError(f"{path} is {kind_of(facts.st_mode)} and no file: remove it, or name another directory")
            if facts.st_uid != os.geteuid():
                raise StorageError(f"{path} belongs to {user_name(facts.st_uid)}: remove it, or name another directory")
            if facts.st_nlink > 1:
                raise StorageError(
                    f"{path} has {facts.st_nlink} names (hard links), so others may hold it: remove it, or name another "
                    "directory")
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
            if flags & os.O_TRUNC:
                os.ftruncate(fd, 0)
        except OSError as error:
            os.close(fd)
            raise StorageError(f"{path}: {error.strerror}") from error
        except BaseException:
            os.close(fd)
            raise
        return fd

    def read(self, name: str, limit_bytes: int) -> bytes:
        """What the file holds. Raises StorageError when that is more than ``limit_bytes``, or as :meth:`open_file`."""
        with os.fdopen(self.open_file(name, os.O_RDONLY), "rb") as file:
            try:
                data = file.read(limit_bytes + 1)
            except OSError as error:
                raise StorageError(f"{self.path / name}: {error.strerror}") from error
        if len(data) > limit_bytes:
            raise StorageError(f"{self.path / name} has more than {limit_bytes} bytes: it is no file of ours")
        return data

    def write(self, name: str, data: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
        """Put a file with ``data`` in the place of ``name``: whole or not at all, also if the machine stops (``durable``)."""
        beside = f".{_entry(name)}.{os.getpid()}.new"
        self.unlink(beside)
        fd = self.open_file(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with explained(self.path / name, "cannot be written"):
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                os.rename(beside, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
                if durable:
                    os.fsync(self.fd)
        except BaseException:
            with contextlib.suppress(StorageError):
                self.unlink(beside)
            raise

    def rename(self, name: str, to: str) -> None:
        """Give ``name`` the name ``to``, in the place of what has that."""
        with explained(self.path / _entry(name), f"cannot be renamed to {to}"):
            os.rename(name, _entry(to), src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str, *, missing_ok: bool = True) -> None:
        """Remove a name that is no directory's; a link itself, never what it leads to."""
        with explained(self.path / _entry(name), "cannot be removed"):
            try:
                os.unlink(name, dir_fd=self.fd)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def rmdir(self, name: str) -> None:
        """Remove the empty directory ``name``."""
        with explained(self.path / _entry(name), "cannot be removed"):
            os.rmdir(name, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result | None:
        """What has this name (a link: itself), or None."""
        with explained(self.path / _entry(name), "cannot be looked at"):
            try:
                return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    def names(self) -> list[str]:
        """Everything that is in it, sorted."""
        with explained(self.path, "cannot be read"):
            return sorted(os.listdir(self.fd))

    def address(self, name: str) -> str:
        """A short path of ``name`` by way of the descriptor, good in this process while it is open: a unix socket's address
        has room for 107 bytes only, and binding and connecting know no ``dir_fd``."""
        return f"/proc/self/fd/{self.fd}/{_entry(name)}"

    def remove(self) -> None:
        """Remove it, if it was made here, is empty, and still has its name; then close it."""
        if self.made and self._parent_fd >= 0:
            with contextlib.suppress(OSError):
                now, ours = os.stat(self.path.name, dir_fd=self._parent_fd, follow_symlinks=False), os.fstat(self.fd)
                if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
                    os.rmdir(self.path.name, dir_fd=self._parent_fd)
        self.close()

    def close(self) -> None:
        """Give the descriptor up. Idempotent."""
        for fd in (self.fd, self._parent_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._parent_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _entry(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in {".", ".."}:
        raise StorageError(f"{name!r} is no name of a file in a directory")
    return name
