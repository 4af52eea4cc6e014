"""What does a checkpoint cost at the secondary, and what is that made of?

A scripted primary (no QEMU) sends checkpoints over TCP loopback to ``colo secondary`` in a process of its own. The limit
beside the whole checkpoint is the same conversation with nothing behind it: as many bytes and turns between two
processes that only read and answer.
"""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paired import seconds
from benchmarks.scripted_primary import PAGE_BYTES, ScriptedPrimary
from benchmarks.session_vm import ColoSecondary

MIB = 1 << 20
PARTS = ("ram_ms", "device_ms", "validate_ms")


def answer(listener: socket.socket) -> None:
    """Read so many bytes as the length before them says, answer four, again and again."""
    with listener.accept()[0] as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target = memoryview(bytearray(MIB))
        while head := sock.recv(8, socket.MSG_WAITALL):
            (left,) = struct.unpack(">Q", head)
            while left:
                left -= sock.recv_into(target, min(left, MIB))
            sock.sendall(b"done")


class Echo:
    """The other end of the limit: a process that only reads and answers."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.process = multiprocessing.get_context("fork").Process(target=answer, args=(listener,), daemon=True)
        self.process.start()
        self.socket = socket.create_connection(listener.getsockname())
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.close()

    def __call__(self, data: bytes) -> None:
        """Two turns, as a checkpoint has."""
        for part in (b"", data):
            self.socket.sendall(struct.pack(">Q", len(part)) + part)
            self.socket.recv(4, socket.MSG_WAITALL)

    def close(self) -> None:
        self.socket.close()
        self.process.join(10)


@pytest.mark.parametrize("pages", [10, 1000])
def test_checkpoint(
    figure: Callable[..., Any], ram_dir: Path, quick: bool, pages: int
) -> None:
    rounds = 100 if quick else 300
    echo = Echo()
    payload = bytes(pages * PAGE_BYTES)
    taken: list[float] = []
    limit: list[float] = []
    with ColoSecondary(ram_dir / "image") as secondary:
        host, _, port = secondary.uri.removeprefix("tcp:").rpartition(":")
        with ScriptedPrimary((host, int(port)), 64 * MIB) as primary:
            for _ in range(rounds):
                bitmap = primary.change(pages)
                taken.append(seconds(partial(primary.checkpoint, bitmap)) * 1e3)
                limit.append(seconds(partial(echo, payload)) * 1e3)
        reports = secondary.checkpoints[1:]
    echo.close()
    figure(
        f"checkpoint of {pages} pages, seen by the primary", statistics.median(taken), "ms",
        limit=statistics.median(limit), limit_name="the same bytes and turns, only read",
        ratio=statistics.median(a / b for a, b in zip(taken, limit, strict=True)), samples=taken, limit_samples=limit,
    )
    held = statistics.median(report["held_ms"] for report in reports)
    parts = {name.removesuffix("_ms"): statistics.median(report[name] for report in reports) for name in PARTS}
    parts["acknowledge"] = max(0.0, held - sum(parts.values()))
    figure(f"of it held, {pages} pages", held, "ms", parts=parts, samples=[report["held_ms"] for report in reports])
