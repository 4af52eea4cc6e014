"""Who is let in: a connection says with its first bytes what it is, a migration stream or a lease connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from colo.abc import Listener, Transport
from colo.errors import ChannelError, ChannelLost, Interrupted, StrangerRefused
from colo.magic import what_is
from colo.wake import wait_ready
from colo.wire import FILE_MAGIC, LEASE_MAGIC

PENDING_LIMIT = 4
"""Connections that may stand at the door at once; the kernel holds a few more, and refuses the rest."""
PATIENCE_S = 0.25
"""A QEMU speaks as soon as it is connected: who is silent for longer makes room when the door is full."""
MAGIC = FILE_MAGIC.to_bytes(4, "big")
LEASE = LEASE_MAGIC.to_bytes(4, "big")


def admit(
    listener: Listener,
    *,
    handshake_s: float,
    wake_fd: int,
    refused: Callable[[str], None] = lambda reason: None,
    lease: Callable[[Transport], None] | None = None,
    allow_uids: Collection[int] = (),
) -> Transport:
    """Accept connections on ``listener`` until one sends a migration stream's first bytes; the others are closed.

    One that sends something else, or nothing within ``handshake_s``, is closed and told to ``refused``; so is the oldest
    silent one when there are :data:`PENDING_LIMIT` and another comes. One that opens as a lease connection is given to
    ``lease``, where there is one. Another user of this machine who is not in ``allow_uids`` is refused. Raises Interrupted
    when ``wake_fd`` becomes readable or ``listener`` is closed, AddressError when it is none that can be waited for.
    """
    known = (MAGIC,) if lease is None else (MAGIC, LEASE)
    waiting: dict[Transport, float] = {}
    try:
        while True:
            now = time.monotonic()
            for late in [each for each, until in waiting.items() if until <= now]:
                refused(f"a connection sent nothing within {handshake_s:g} s")
                del waiting[late]
                late.close()
            door = listener.fileno()
            if door < 0:
                raise Interrupted("the listener is closed")
            by_fd = {each.fileno(): each for each in waiting}
            fds = [*by_fd, door]
            left = min(waiting.values(), default=None)
            if len(waiting) == PENDING_LIMIT:
                assert left is not None
                patient_until = left - handshake_s + PATIENCE_S
                if patient_until > now:
                    fds.remove(door)
                    left = min(left, patient_until)
            for fd in wait_ready(fds, None if left is None else left - now, wake_fd=wake_fd):
                if fd == door:
                    _take_in(listener, waiting, now + handshake_s, refused, allow_uids)
                elif (each := by_fd[fd]) in waiting:
                    opened = _opening(each, refused, waiting, known=known)
                    if opened == MAGIC:
                        del waiting[each]
                        return each
                    if opened == LEASE:
                        assert lease is not None
                        del waiting[each]
                        lease(each)
    finally:
        for each in waiting:
            each.close()


def _take_in(
    listener: Listener, waiting: dict[Transport, float], until: float, refused: Callable[[str], None],
    allow_uids: Collection[int],
) -> None:
    """One more, in the place of the oldest where there is none left."""
    if len(waiting) == PENDING_LIMIT:
        oldest = min(waiting, key=lambda each: waiting[each])
        del waiting[oldest]
        oldest.close()
        refused("a silent connection made room for a new one")
    try:
        each = listener.accept(0)
    except Interrupted:
        raise
    except ChannelError:
        return  # it has gone again, or nothing can be accepted just now
    try:
        each.check_user(allow_uids)
    except StrangerRefused as error:
        each.close()
        refused(f"a connection was refused: {error}")
    else:
        waiting[each] = until


def _opening(
    each: Transport, refused: Callable[[str], None], waiting: dict[Transport, float], *, known: tuple[bytes, ...]
) -> bytes:
    """Which of ``known`` the connection opens with; b"" while that cannot be told, or when it was refused."""
    try:
        first = each.peek(len(MAGIC))
    except ChannelLost as error:
        first, reason = b"", str(error)
    else:
        reason = "closed before it sent anything"
    if first is None:
        return b""
    if first in known:
        return first
    if first and any(magic.startswith(first) for magic in known):
        # A part of it is here: poll would report it again at once, so the rest gets a moment.
        time.sleep(0.005)
        return b""
    if first:
        reason = what_is(first) or f"{first!r} is not the start of a migration stream"
    refused(f"a connection was refused: {reason}")
    del waiting[each]
    each.close()
    return b""
