"""What a forked child of this process must not keep open.

A connection ends when the last copy of its socket is closed. A child that was forked without an exec (``os.fork``, or
:mod:`multiprocessing`'s method ``fork``) has a copy of everything: with it, the other side would not see this process die; a
lock would stay taken, an address in use, a QEMU's monitor busy. So what is registered here is closed in every such child, and
only there: the copy, never the connection.

A library that forks from C passes this by.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import weakref

_things: weakref.WeakSet[socket.socket | io.IOBase] = weakref.WeakSet()
_fds: set[int] = set()


def keep_from_children(thing: socket.socket | io.IOBase) -> None:
    """Close this socket or file in every forked child, as long as the object lives. Any number of times."""
    _things.add(thing)


def keep_fd_from_children(fd: int) -> None:
    """Close this descriptor in every forked child, until :func:`forget_fd`: which has to be called before it is closed."""
    _fds.add(fd)


def forget_fd(fd: int) -> None:
    """The descriptor is about to be closed, and its number may soon be another's."""
    _fds.discard(fd)


def _close_copies() -> None:
    for thing in list(_things):
        with contextlib.suppress(OSError, ValueError):
            if isinstance(thing, socket.socket):
                # Not close(): it would wait for what reads from it, and a subclass may do more than close.
                fd = thing.detach()
                if fd >= 0:
                    os.close(fd)
            else:
                thing.close()
    _things.clear()
    for fd in _fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    _fds.clear()


os.register_at_fork(after_in_child=_close_copies)
