"""When the other end of a connection was heard of last, by its kernel, whatever its program does."""

from __future__ import annotations

import contextlib
import socket
import struct

_TCP_INFO = struct.Struct("=8x13I")


def probe_soon(sock: socket.socket) -> None:
    """Have the other end's kernel asked after a second of silence: acknowledged probes are how a host without a fence is told
    from a dead one. Does nothing where there is no TCP."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)


def heard_ms(sock: socket.socket) -> float:
    """How long ago the kernel at the other end was heard of last, in ms; infinite where that cannot be told."""
    try:
        info = _TCP_INFO.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    except (OSError, struct.error):
        return float("inf")
    return float(min(info[11], info[12]))  # tcpi_last_data_recv, tcpi_last_ack_recv
