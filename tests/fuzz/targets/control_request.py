"""What a client writes to a session's control socket: each whole line has one answer, and the server goes on."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from colo.control.server import LINE_LIMIT_BYTES, ControlServer
from colo.errors import ColoError


def refuse() -> None:
    raise ColoError("no")


@cache
def server() -> tuple[ControlServer, Path]:
    import atexit

    directory = Path(tempfile.mkdtemp(prefix="colo-fuzz-"))
    atexit.register(shutil.rmtree, directory)
    control = ControlServer(directory / "control.sock", {"status": lambda: {"checkpoint": 3}, "failover": refuse})
    return control, control.path


def seeds() -> Iterator[bytes]:
    yield b'{"command": "status"}\n{"command": "failover"}\n'
    yield b'{"command": ["status"]}\n[]\n"x"\n'
    yield b'{"command": {"a": 1}}\n[[[[\n'


def fuzz_one(data: bytes) -> None:
    _, path = server()
    data = data[:60_000]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answers = client.makefile("rb").read().splitlines()
    lines = [line for part in data.split(b"\n") for line in [part]]
    if data.endswith(b"\n") or not data:
        lines.pop()
    assert len(answers) == sum(max(1, -(-(len(line) + 1) // LINE_LIMIT_BYTES)) for line in lines[:-1]) + (
        max(1, -(-(len(lines[-1]) + data.endswith(b"\n")) // LINE_LIMIT_BYTES)) if lines else 0
    ), (len(answers), len(lines))
    for answer in answers:
        found = json.loads(answer)
        assert len({"return", "error"} & set(found)) == 1
