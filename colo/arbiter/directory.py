"""The directory of the arbiter ``file:DIR``: opened and checked, and what its names say.

``identity``
    Whose it is; made once, with the first generation (:mod:`colo.arbiter.file_making`), never written again.
``generation.N``
    The generation that holds, and the record of who holds it. There is one of these, or else
``claim.N.TOKEN``
    the same while generation N is being claimed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from colo.arbiter.arbiter import ArbiterIdentity, Holder, init_command
from colo.arbiter.record import RECORD_BYTES, parse_holder, parse_identity, printable
from colo.errors import ArbitrationError, StorageError
from colo.private import PrivateDirectory

IDENTITY = "identity"
SEED = "seed.{token}"

LOOKS = 9
"""So often a listing that shows no generation, or two, is made again, within half a second."""

_GENERATION_NAME = re.compile(r"generation\.(0|[1-9][0-9]{0,14})")
_CLAIM_NAME = re.compile(r"claim\.([1-9][0-9]{0,14})\.([0-9a-f]{32})")
_TOKEN = re.compile(r"[0-9a-f]{32}")
_NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "ceph", "gfs2", "ocfs2", "lustre", "glusterfs", "virtiofs")
_LASTING_INODES = {
    "bcachefs", "btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "gfs2", "lustre", "nfs", "nfs4", "ocfs2", "overlay", "tmpfs",
    "xfs", "zfs",
}
"""File systems on which a file has the same inode number for as long as it lives, on every machine."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The one file that is the state: its name, and the generation it stands for."""

    name: str
    generation: int
    token: str
    """Of a claim not finished yet; "" for a generation."""


class ArbiterDirectory:
    """The directory at ``path``. Its methods take it as a descriptor, from :meth:`open`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.uri = f"file:{self.path}"

    def error(self, text: str) -> ArbitrationError:
        """The error of that text, with the arbiter named."""
        return ArbitrationError(f"arbiter {self.uri}: {text}")

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """The directory, opened anew by its path (a share may have been unmounted since); nobody but root and this user
        may be able to change what is in it, or to put another in its place."""
        try:
            opened = PrivateDirectory.open(self.path, make=False, secret=False)
        except StorageError as error:
            missing = isinstance(error.__cause__, FileNotFoundError)
            remedy = "; make it, and mount what both sides share there" if missing else ""
            raise self.error(f"{error}{remedy}") from error
        with opened:
            mode = os.fstat(opened.fd).st_mode
            if mode & stat.S_ISVTX and mode & 0o022:
                raise self.error(f"others may put something in it (mode {stat.S_IMODE(mode):04o}): chmod go-w {self.path}")
            yield opened.fd

    def read(self, directory: int, name: str) -> bytes:
        """What is in the regular file, as far as a record goes. Raises OSError."""
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return os.read(file, RECORD_BYTES)
        finally:
            os.close(file)

    # Whose it is.

    def identity(self, directory: int) -> tuple[ArbiterIdentity, str]:
        """Whose arbiter this is, and the token of who made it. Raises ArbitrationError when it is none, or a copy of one."""
        try:
            file = os.open(IDENTITY, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except FileNotFoundError:
            raise self._no_identity(directory) from None
        try:
            info = os.fstat(file)
            found = parse_identity(os.read(file, RECORD_BYTES)) if stat.S_ISREG(info.st_mode) else None
        finally:
            os.close(file)
        token = found[1].get("token") if found else None
        if found is None or not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self.error(
                f"the file {IDENTITY!r} in it says nothing usable: find out who wrote to it. {self._anew()}")
        inode = found[1].get("inode")
        if inode != info.st_ino and _file_system(info.st_dev) in _LASTING_INODES:
            raise self.error(
                "this is a copy of an arbiter, put back or brought here from elsewhere: the VM may have been taken over "
                "after it was made. Find out which side runs the VM, and mount the directory that was used. If that is lost: "
                f"{self._anew()}")
        return found[0], token

    def _no_identity(self, directory: int) -> ArbitrationError:
        names = os.listdir(directory)
        old = sorted(name for name in names if name.startswith(("generation.", "claim.")) or name == "created")
        if old:
            return self.error(
                f"no identity in it, only {printable(', '.join(old[:5]))}: it was made by an earlier colo, or by "
                f"hand. {self._anew()}")
        return self.error(
            "no arbiter in it; is what both sides share mounted here? If the VM is new, make it once, on one side: "
            f"{init_command(self.uri)}")

    def _anew(self) -> str:
        return (
            "End the VM's sessions on both sides, make sure that it runs on one of them only, remove the files in this "
            f"directory, then: {init_command(self.uri)}")

    # What holds.

    def standing(self, directory: int) -> Standing:
        """What holds now. A listing made during a rename may show the file twice or not at all: look again then."""
        pause_s = 0.001
        for _ in range(LOOKS):
            found = self._scan(directory)
            if len(found) == 1:
                return found[0]
            time.sleep(pause_s)
            pause_s *= 2
        if found:
            names = ", ".join(sorted(each.name for each in found))
            raise self.error(
                f"several generations: {names}; find out which side runs the VM, stop the other one, "
                "and remove all but the highest"
            )
        raise self.error(
            "no generation in it: its making was not finished (do it again: "
            f"{init_command(self.uri)}), or the file was removed (put generation.N, empty, back with the N that holds)"
        )

    def _scan(self, directory: int) -> list[Standing]:
        found = []
        for name in os.listdir(directory):
            if match := _GENERATION_NAME.fullmatch(name):
                standing = Standing(name, int(match[1]), "")
            elif match := _CLAIM_NAME.fullmatch(name):
                standing = Standing(name, int(match[1]), match[2])
            elif name.startswith(("generation", "claim.")):
                raise self.error(
                    f"{name!r} looks like a generation and is none: find out who made it, remove it"
                )
            else:
                continue
            try:
                info = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(info.st_mode):
                raise self.error(f"{name!r} is not a regular file: find out who made it, remove it")
            found.append(standing)
        return found

    def holder(self, directory: int, standing: Standing) -> Holder:
        """Who holds it, as its file says; somebody unknown if it says nothing, or speaks of another generation."""
        with contextlib.suppress(OSError):
            if holder := parse_holder(self.read(directory, standing.name), standing.generation):
                return holder
        return Holder(standing.generation, "", None, 0.0, "", "", False)

    def look_again(self, directory: int) -> None:
        """Make a network file system's client ask its server: it may believe in a name that is gone for minutes."""
        if not _on_network(os.fstat(directory).st_dev):
            return
        probe = f"probe.{secrets.token_hex(16)}"
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory))
        os.unlink(probe, dir_fd=directory)


def _on_network(device: int) -> bool:
    """Is the file system with this st_dev shared with other machines, so that its names may be cached?"""
    kind = _file_system(device)
    return not kind or kind.startswith(_NETWORK)


def _file_system(device: int) -> str:
    """The type of the file system with this st_dev, or ""."""
    place = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                if left.split()[2] == place:
                    return right.split()[0]
    except (OSError, IndexError):
        pass
    return ""
