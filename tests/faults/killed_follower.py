"""A follower in a process of its own, to be killed."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from colo.errors import ColoError
from colo.link.follower import Follower
from colo.memory import RamImage
from colo.protocol.deadlines import Deadlines
from colo.stream import StreamLimits
from colo.transport import SocketTransport


def follow(listener: socket.socket, directory: str) -> None:
    """Follow the first primary that connects, until its end or this process's."""
    sock, _ = listener.accept()
    with RamImage(Path(directory)) as image, contextlib.suppress(ColoError):
        Follower(SocketTransport(sock), image, deadlines=Deadlines(), limits=StreamLimits()).run()
