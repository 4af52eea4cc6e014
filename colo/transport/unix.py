"""Unix sockets: private from the first instant, never in the way of a live one, gone when closed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator

from colo.errors import AddressError, ChannelError, DeadlineExceeded, StorageError
from colo.private import PrivateDirectory
from colo.transport.uri import UnixUri

LOCK_S = 1.0


class UnixName:
    """The name that a listening socket has in ``directory``, to be removed once: if it still is that socket's.

    The directory is this object's from now on.
    """

    __slots__ = ("_directory", "_key", "_name", "_pid")

    def __init__(self, directory: PrivateDirectory, name: str) -> None:
        self._directory = directory
        self._name = name
        self._pid = os.getpid()
        self._key = _key(directory, name)

    def remove(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child closes its copy: the name belongs to the parent
        with contextlib.suppress(StorageError), self._directory:
            if self._key is not None and _key(self._directory, self._name) == self._key:
                self._directory.unlink(self._name)


def _key(directory: PrivateDirectory, name: str) -> tuple[int, int] | None:
    info = directory.stat(name)
    return None if info is None else (info.st_dev, info.st_ino)


def listen_unix(uri: UnixUri, *, backlog: int) -> tuple[socket.socket, UnixName]:
    """A listening socket of mode 0600.

    It is made in a directory that nobody else can enter, and gets its name (by a hard link, which never
    replaces anything) when its mode is set and it listens: there is no instant at which others could
    connect, or a peer would find it deaf. Where another user could put his own socket in its place, nobody listens.

    Raises ChannelError when the address is in use, cannot be had, or is no safe place (see :mod:`colo.private`).
    """
    head, name = os.path.split(uri.path)
    parent = None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        parent = PrivateDirectory.open(head or ".", make=False, secret=False)
        _listen_in(parent, name, uri, sock, backlog)
        return sock, UnixName(parent, name)
    except BaseException as error:
        sock.close()
        if parent is not None:
            parent.close()
        if isinstance(error, OSError | StorageError):
            raise ChannelError(f"cannot listen on {uri}: {getattr(error, 'strerror', None) or error}") from error
        raise


def _listen_in(parent: PrivateDirectory, name: str, uri: UnixUri, sock: socket.socket, backlog: int) -> None:
    inner = f".colo-{secrets.token_hex(8)}"
    with parent.directory(inner) as private:
        try:
            # By way of the descriptor the name is short, however long the path is.
            sock.bind(private.address("new"))
            os.chmod("new", 0o600, dir_fd=private.fd)
            sock.listen(backlog)
            with _one_at_a_time(parent):
                _give_name(parent, name, uri, private)
        finally:
            for each in ("new", "old"):
                with contextlib.suppress(StorageError):
                    private.unlink(each)
            with contextlib.suppress(StorageError):
                parent.rmdir(inner)


@contextlib.contextmanager
def _one_at_a_time(parent: PrivateDirectory) -> Iterator[None]:
    """Keep others of our kind from replacing the same stale socket meanwhile.

    Whoever holds the lock for longer than ``LOCK_S`` is not of our kind, and where directories cannot be
    locked there is no lock: then the checks of :func:`_take_away_if_stale` have to do.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent.fd)
            stack.callback(os.close, directory)
            until = time.monotonic() + LOCK_S
            while time.monotonic() < until:
                try:
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.001)
        yield


def _give_name(parent: PrivateDirectory, name: str, uri: UnixUri, private: PrivateDirectory) -> None:
    for _ in range(10):
        try:
            os.link("new", name, src_dir_fd=private.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
            return
        except FileExistsError:
            _take_away_if_stale(parent, name, uri, private)
    raise ChannelError(f"cannot listen on {uri}: others make and remove sockets of this name all the time")


def _take_away_if_stale(parent: PrivateDirectory, name: str, uri: UnixUri, private: PrivateDirectory) -> None:
    """Remove a socket on which nobody listens any more.

    It is first moved to where only we see it, and tried again there: had somebody put a live one in its
    place in between, that gets its name back.
    """
    info = parent.stat(name)
    if info is None:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise AddressError(f"cannot listen on {uri}: it is there and is no socket; use another path")
    if _alive(uri, parent.address(name)):
        raise ChannelError(
            f"cannot listen on {uri}: it is in use: somebody listens there; end that, or use another path"
        )
    try:
        os.rename(name, "old", src_dir_fd=parent.fd, dst_dir_fd=private.fd)
    except FileNotFoundError:
        return
    if _alive(uri, private.address("old")):
        with contextlib.suppress(FileExistsError):
            os.link("old", name, src_dir_fd=private.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        raise ChannelError(f"cannot listen on {uri}: it is in use, somebody has just begun to listen there")
    private.unlink("old")


def _alive(uri: UnixUri, path: str) -> bool:
    """Does any socket belong to this name?

    Tried with a datagram socket: one of another type says that it is there by refusing that (EPROTOTYPE),
    and is not bothered by a connection that it would have to accept.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code in {errno.ECONNREFUSED, errno.ENOENT}:
        return False
    if code in {0, errno.EPROTOTYPE, errno.EAGAIN}:
        return True
    raise ChannelError(f"cannot listen on {uri}: it is there and cannot be tried: {os.strerror(code)}")


def connect_unix(uri: UnixUri, deadline: float) -> socket.socket:
    """Raises ChannelError when nobody listens there, or may not be reached."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while code := sock.connect_ex(uri.path):
            # EAGAIN: too many wait to be accepted. There is nothing to poll for.
            if code not in {errno.EAGAIN, errno.EINTR}:
                remedy = {
                    errno.ENOENT: ": there is no such socket; is the other side listening?",
                    errno.ECONNREFUSED: ": nobody listens there any more",
                }.get(code, "")
                raise ChannelError(f"cannot connect to {uri}: {os.strerror(code)}{remedy}")
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"cannot connect to {uri}: it listens, and does not accept in time", phase="connect"
                )
            time.sleep(0.005)
    except BaseException:
        sock.close()
        raise
    return sock
