"""A follower in a process of its own, to be killed."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from colo.epoch.last_committed import LastCommitted
from colo.epoch.ram_sink import RamSink
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
        ram = RamSink(image)
        Follower(SocketTransport(sock), ram, LastCommitted(ram, [ram]), deadlines=Deadlines(), limits=StreamLimits()).run()
