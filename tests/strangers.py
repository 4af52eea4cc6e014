"""Other users of this machine, for tests of what they cannot do."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

STRANGER = 54321
"""A uid that nobody has."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while: run as root")


def as_user(uid: int, do: Callable[[], object]) -> int:
    """Do it in a child process of that user; its exit code: 0, or 1 after an exception, which it prints."""
    pid = os.fork()
    if pid == 0:
        os._exit(_become_and_do(uid, do))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def user(uid: int, do: Callable[[socket.socket], object]) -> Iterator[socket.socket]:
    """A child process of that user which does it, and a socket to it; it is killed at the end."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        os._exit(_become_and_do(uid, lambda: do(theirs)))
    theirs.close()
    try:
        ours.settimeout(60)
        yield ours
    finally:
        ours.close()
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
        os.waitpid(pid, 0)


def _become_and_do(uid: int, do: Callable[[], object]) -> int:
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        do()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        return 1
    return 0
