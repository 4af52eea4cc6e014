"""Channels by URI: ``tcp:HOST:PORT``, ``unix:PATH``, ``fd:N``, ``exec:COMMAND``; and ``file:PATH``.

:func:`listen` and :func:`connect` give what :class:`colo.abc.Transport` promises; links take that, and nothing else.
"""

from __future__ import annotations

from colo.transport.channel import begin_connect, check_listening, connect, connect_until, listen
from colo.transport.listener import Listener
from colo.transport.process import ExecTransport, open_file
from colo.transport.socket_transport import SocketTransport
from colo.transport.sockets import TcpOptions
from colo.transport.tcp import check_plaintext
from colo.transport.uri import ExecUri, FdUri, FileUri, TcpUri, TransportUri, UnixUri, parse_uri

__all__ = [
    "ExecTransport",
    "ExecUri",
    "FdUri",
    "FileUri",
    "Listener",
    "SocketTransport",
    "TcpOptions",
    "TcpUri",
    "TransportUri",
    "UnixUri",
    "begin_connect",
    "check_listening",
    "check_plaintext",
    "connect",
    "connect_until",
    "listen",
    "open_file",
    "parse_uri",
]
