"""Channels by URI: ``tcp:HOST:PORT``, ``unix:PATH``, ``fd:N``, ``exec:COMMAND``; and ``file:PATH``.

:func:`listen` and :func:`connect` give sockets, with the options that a checkpoint channel needs already set.
"""

from __future__ import annotations

from colo.transport.admission import Admission
from colo.transport.channel import Listener, connect, listen
from colo.transport.process import ExecSocket, open_file
from colo.transport.sockets import TcpOptions, abort
from colo.transport.uri import ExecUri, FdUri, FileUri, TcpUri, TransportUri, UnixUri, parse_uri

__all__ = [
    "Admission",
    "ExecSocket",
    "ExecUri",
    "FdUri",
    "FileUri",
    "Listener",
    "TcpOptions",
    "TcpUri",
    "TransportUri",
    "UnixUri",
    "abort",
    "connect",
    "listen",
    "open_file",
    "parse_uri",
]
