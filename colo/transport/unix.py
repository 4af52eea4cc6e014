"""Unix sockets: private from the first instant, never in the way of a live one, gone when closed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
import time

from colo.errors import AddressError, ChannelError, DeadlineExceeded
from colo.transport.uri import UnixUri


class UnixName:
    """The name that a listening socket has in the file system, to be removed once: if it still is that
    socket's."""

    __slots__ = ("_key", "_path", "_pid")

    def __init__(self, path: str) -> None:
        # As seen from here: by the time it is removed, the process may be in another directory.
        self._path = os.path.abspath(path)
        self._pid = os.getpid()
        self._key = _key(self._path)

    def remove(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child closes its copy: the name belongs to the parent
        with contextlib.suppress(OSError):
            if _key(self._path) == self._key:
                os.unlink(self._path)


def _key(path: str) -> tuple[int, int]:
    info = os.lstat(path)
    return info.st_dev, info.st_ino


def listen_unix(uri: UnixUri, *, backlog: int) -> tuple[socket.socket, UnixName]:
    """A listening socket of mode 0600.

    It is made in a directory that nobody else can enter, and gets its name (by a hard link, which never
    replaces anything) when its mode is set and it listens: there is no instant at which others could
    connect, or a peer would find it deaf.
    """
    parent = os.path.dirname(uri.path) or "."
    try:
        private = tempfile.mkdtemp(prefix=".colo-", dir=parent)
    except OSError as error:
        raise ChannelError(f"cannot listen on {uri}: {parent}: {error.strerror}") from error
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory = os.open(private, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # By way of the descriptor the name is short, however long the path is.
            sock.bind(f"/proc/self/fd/{directory}/new")
            os.chmod("new", 0o600, dir_fd=directory)
            sock.listen(backlog)
            _give_name(uri, directory)
            return sock, UnixName(uri.path)
        finally:
            for name in ("new", "old"):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)
            os.close(directory)
    except OSError as error:
        sock.close()
        raise ChannelError(f"cannot listen on {uri}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(private)


def _give_name(uri: UnixUri, directory: int) -> None:
    for _ in range(10):
        try:
            os.link("new", uri.path, src_dir_fd=directory, follow_symlinks=False)
            return
        except FileExistsError:
            _take_away_if_stale(uri, directory)
    raise ChannelError(f"cannot listen on {uri}: others make and remove sockets of this name all the time")


def _take_away_if_stale(uri: UnixUri, directory: int) -> None:
    """Remove a socket on which nobody listens any more.

    It is first moved to where only we see it, and tried again there: had somebody put a live one in its
    place in between, that gets its name back.
    """
    try:
        info = os.lstat(uri.path)
        if not stat.S_ISSOCK(info.st_mode):
            raise AddressError(f"cannot listen on {uri}: it is there and is no socket; use another path")
        if _alive(uri, uri.path):
            raise ChannelError(
                f"cannot listen on {uri}: it is in use: somebody listens there; end that, or use another path"
            )
        os.rename(uri.path, "old", dst_dir_fd=directory)
    except FileNotFoundError:
        return
    if _alive(uri, f"/proc/self/fd/{directory}/old"):
        with contextlib.suppress(FileExistsError):
            os.link("old", uri.path, src_dir_fd=directory, follow_symlinks=False)
        raise ChannelError(f"cannot listen on {uri}: it is in use, somebody has just begun to listen there")
    os.unlink("old", dir_fd=directory)


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
    """:raises ChannelError: nobody listens there, or may not be reached."""
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
