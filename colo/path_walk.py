"""The walk to a directory that strangers cannot have planted: each component opened relative to the one before, and checked.

A component may belong to root or to this user, and others may not write to it, unless it is root's or ours and sticky
(``/tmp``): there nobody can move or remove what is ours. A link is followed where only root or this user can have put it.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from colo.errors import StorageError

LINK_LIMIT = 40
"""Links in one path: as many as the kernel follows."""
LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""To look at what has a name, whatever it is, without opening or following it."""


class Walk:
    """From the root to the end of a path, one open descriptor after the other."""

    def __init__(self, whole: Path, make: bool, secret: bool) -> None:
        self.whole = whole
        self.make = make
        self.secret = secret
        self.made = False
        """The last component was missing and is made."""
        self.fd = -1
        self.parent_fd = -1
        self._at = Path("/")
        """For messages: where the walk is, links resolved."""

    def run(self) -> None:
        """Walk; :attr:`fd` is the end's."""
        facts = self._restart()
        pending = deque(self.whole.parts[1:])
        links = 0
        while pending:
            name = pending.popleft()
            fd = self._step(name)
            try:
                found = os.fstat(fd)
                if stat.S_ISLNK(found.st_mode):
                    links += 1
                    if links > LINK_LIMIT:
                        raise StorageError(f"{self._named(name)} leads through more than {LINK_LIMIT} links")
                    target = self._target(name, fd, facts, found)
                    if target.startswith("/"):
                        facts = self._restart()
                    pending.extendleft(reversed([part for part in target.split("/") if part not in {"", "."}]))
                    continue
                if not stat.S_ISDIR(found.st_mode):
                    raise StorageError(
                        f"{self._named(name)} is {kind_of(found.st_mode)} and no directory: name another place")
                if self.secret and not pending:
                    check_secret(self._at / name, found)
                else:
                    self._check(self._named(name), fd, found)
                fd, facts = self._enter(name, fd), found
            finally:
                if fd >= 0:
                    os.close(fd)

    def take_parent(self) -> int:
        """The descriptor of the directory that the end is in, given away."""
        fd, self.parent_fd = self.parent_fd, -1
        return fd

    def close(self) -> None:
        for fd in (self.fd, self.parent_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.parent_fd = -1

    def _enter(self, name: str, fd: int) -> int:
        """Go one deeper; returns the descriptor that is not needed any more, or -1."""
        self._at /= name
        unused, self.parent_fd, self.fd = self.parent_fd, self.fd, fd
        return unused

    def _restart(self) -> os.stat_result:
        self.close()
        self._at = Path("/")
        self.fd = os.open("/", LOOK | os.O_DIRECTORY)
        facts = os.fstat(self.fd)
        self._check("/", self.fd, facts)
        return facts

    def _step(self, name: str) -> int:
        self.made = False
        with explained(self._named(name), "cannot be made or opened" if self.make else "cannot be opened"):
            try:
                return os.open(name, LOOK, dir_fd=self.fd)
            except FileNotFoundError:
                if not self.make:
                    raise
            try:
                os.mkdir(name, 0o700, dir_fd=self.fd)
                self.made = True
            except FileExistsError:
                pass  # somebody was faster: it is looked at like any other
            return os.open(name, LOOK, dir_fd=self.fd)

    def _target(self, name: str, fd: int, directory: os.stat_result, link: os.stat_result) -> str:
        """Where a link leads, if nobody but root and we can have put it there."""
        if link.st_uid not in _trusted() or _open_to_others(self.fd, directory):
            raise StorageError(
                f"{self._named(name)} is a link that another user may have put there (it is {user_name(link.st_uid)}'s): "
                "name the place that it leads to itself")
        with explained(self._named(name), "cannot be read"):
            return os.readlink("", dir_fd=fd)

    def _check(self, where: str, fd: int, facts: os.stat_result) -> None:
        if facts.st_uid not in _trusted():
            raise StorageError(
                f"{where} belongs to {user_name(facts.st_uid)}, who could put anything in the place of what is in it: name a "
                "directory on a path that is yours and root's alone")
        if _open_to_others(fd, facts) and not facts.st_mode & stat.S_ISVTX:
            raise StorageError(
                f"others may write to {where} (mode {stat.S_IMODE(facts.st_mode):04o}) and put anything in the place of what "
                f"is in it: chmod go-w {where}, or name another directory")

    def _named(self, name: str) -> str:
        """A component, for messages: as the user wrote it, and where that is if it was reached by links."""
        here = self._at / name
        return str(here) if self.whole.is_relative_to(here) else f"{here} (on the way to {self.whole})"


@contextlib.contextmanager
def explained(what: object, refused: str) -> Iterator[None]:
    """The system's refusals as StorageError."""
    try:
        yield
    except OSError as error:
        reason = "a link, which is not followed here" if error.errno == errno.ELOOP else error.strerror
        raise StorageError(f"{what} {refused}: {reason}") from error


def _trusted() -> tuple[int, int]:
    return 0, os.geteuid()


def check_secret(path: Path, facts: os.stat_result) -> None:
    """What a stranger may neither enter nor have made. Raises StorageError."""
    if facts.st_uid != os.geteuid():
        raise StorageError(
            f"{path} belongs to {user_name(facts.st_uid)}, and what goes in it is secret: name a directory of your own")
    if facts.st_mode & 0o077:
        raise StorageError(
            f"{path} is open to other users (mode {stat.S_IMODE(facts.st_mode):04o}), and what goes in it is secret: "
            f"chmod 700 {path}, or name a directory that does not exist yet")


def _open_to_others(fd: int, facts: os.stat_result) -> bool:
    """Whether any user but its owner and root may write to a directory."""
    if facts.st_mode & 0o002:
        return True
    # With an access control list, the group's bits are the most that anybody in the list may have.
    return bool(facts.st_mode & 0o020) and (_has_list(fd) or not _only_member(facts.st_gid, facts.st_uid))


def _has_list(fd: int) -> bool:
    try:
        return bool(os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access"))
    except OSError:
        return False  # none, or a file system that knows none


def _only_member(gid: int, uid: int) -> bool:
    """Whether a group is one user's own, as many systems give one to each (and make their directories writable for it)."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    if user.pw_gid != gid or set(group.gr_mem) - {user.pw_name}:
        return False  # a group in which nobody is, such as mail, is what programs run as
    return all(each.pw_uid in {uid, 0} for each in pwd.getpwall() if each.pw_gid == gid)


def user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def kind_of(mode: int) -> str:
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link", stat.S_IFIFO: "a fifo",
             stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")
