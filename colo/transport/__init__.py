"""Channels by URI: ``tcp:HOST:PORT``, ``unix:PATH``, ``fd:N``, ``exec:COMMAND``; and ``file:PATH``.

:func:`listen` and :func:`connect` give sockets, with the options that a checkpoint channel needs already set.
"""

from __future__ import annotations

from colo.transport.channel import Listener, check_listening, connect, listen
from colo.transport.peers import check_peer, peer_uid
from colo.transport.process import ExecSocket, open_file
from colo.transport.sockets import TcpOptions, abort, tune
from colo.transport.tcp import check_plaintext
from colo.transport.uri import ExecUri, FdUri, FileUri, TcpUri, TransportUri, UnixUri, parse_uri

__all__ = [
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
    "check_listening",
    "check_peer",
    "check_plaintext",
    "connect",
    "listen",
    "open_file",
    "parse_uri",
    "peer_uid",
    "tune",
]
