"""Channels that come from elsewhere: a child process, an inherited descriptor; and files."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import stat
import subprocess
from typing import Literal

from colo.errors import AddressError, ChannelError
from colo.transport.socket_transport import SocketTransport
from colo.transport.uri import ExecUri, FdUri, FileUri

EXIT_GRACE_S = 5.0


class ExecTransport(SocketTransport):
    """The channel to a child process, which ends with it: closing waits ``EXIT_GRACE_S`` for it, then kills
    it and what it has started; aborting kills at once.
    """

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes], uri: ExecUri) -> None:
        super().__init__(sock, peer=str(uri))
        self.process = process

    def abort(self) -> None:
        if self.fileno() >= 0 and self.process.returncode is None:
            self._kill()
        super().abort()

    def close(self) -> None:
        if self.fileno() < 0:
            return  # closed, or in a forked child: it is its parent's
        super().close()
        try:
            self.process.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self.process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def start_exec(uri: ExecUri) -> ExecTransport:
    """Run the command by /bin/sh, with the other end of a socket pair as its standard input and output."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", uri.command],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise ChannelError(f"cannot start {uri}: {error}") from error
    return ExecTransport(ours, process, uri)


def adopt_fd(uri: FdUri) -> socket.socket:
    """The inherited socket itself: closing what is returned closes it.

    Raises AddressError when the descriptor is not open, or no stream socket.
    """
    try:
        mode = os.fstat(uri.fd).st_mode
    except OSError as error:
        raise AddressError(f"{uri}: {error.strerror}: this process has no such descriptor open") from error
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"{uri}: is no socket; a channel goes both ways, so a pipe or a file will not do")
    os.set_inheritable(uri.fd, False)
    sock = socket.socket(fileno=uri.fd)
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise AddressError(f"{uri}: is no stream socket")
    return sock


def is_listening(sock: socket.socket) -> bool:
    """Whether connections can be accepted on it, rather than bytes sent."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def open_file(uri: FileUri, mode: Literal["read", "write"]) -> io.FileIO:
    """A stored stream. A new file is private (0600) and must not exist yet: it may hold a guest's memory.

    Raises AddressError when it cannot be opened; or, for writing, is there already.
    """
    try:
        if mode == "read":
            return io.FileIO(uri.path, "r")
        return io.FileIO(uri.path, "x", opener=lambda path, flags: os.open(path, flags, 0o600))
    except OSError as error:
        raise AddressError(f"{uri}: {error.strerror}") from error
