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
from colo.transport.uri import ExecUri, FdUri, FileUri

EXIT_GRACE_S = 5.0


class ExecSocket(socket.socket):
    """The channel to a child process, which ends with it: closing waits ``EXIT_GRACE_S`` for it, then kills
    it and what it has started.
    """

    process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        super().close()
        process, self.process = self.process, None
        if process is None:
            return
        try:
            process.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start_exec(uri: ExecUri) -> ExecSocket:
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
    sock = ExecSocket(ours.family, ours.type, ours.proto, ours.detach())
    sock.process = process
    return sock


def adopt_fd(uri: FdUri) -> socket.socket:
    """The inherited socket itself: closing what is returned closes it.

    :raises AddressError: the descriptor is not open, or no stream socket.
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
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def open_file(uri: FileUri, mode: Literal["read", "write"]) -> io.FileIO:
    """A stored stream. A new file is private (0600) and must not exist yet: it may hold a guest's memory.

    :raises AddressError: it cannot be opened; or, for writing, it is there already.
    """
    try:
        if mode == "read":
            return io.FileIO(uri.path, "r")
        return io.FileIO(uri.path, "x", opener=lambda path, flags: os.open(path, flags, 0o600))
    except OSError as error:
        raise AddressError(f"{uri}: {error.strerror}") from error
