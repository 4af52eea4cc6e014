"""A monitor that is no QEMU's, or one that has been taken over: what it says is an error in words, and never more."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.qemu.process import QemuProcess
from colo.qemu.qmp import LINE_LIMIT_BYTES, QmpConnection, QmpError, QmpLost
from colo.qemu.qmp.errors import QmpReplyError
from tests.faults.processes import ROOT
from tests.qemu.tiny_machine import Machine

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 0}, "package": ""}, "capabilities": ["oob"]}}
WRONG: list[Any] = [
    None, True, -1, 1 << 70, 1e308, float("inf"), "", "\x1b[2J\x07\n\u202ex", "x" * 5000, [], {}, [[]], {"a": 1}, "\ud800"]


class Monitor:
    """Greets as QEMU does, and answers each command with what it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Callable[[dict[str, Any]], bytes] = lambda command: reply(command, {})
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self.peer, _ = self.listener.accept()
            self.peer.sendall(line(GREETING))
            text = ""
            while data := self.peer.recv(1 << 16):
                text += data.decode()
                while text := text.lstrip():  # clients need not end a command's line
                    command, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:]
                    negotiation = command.get("execute") == "qmp_capabilities"
                    self.peer.sendall(reply(command, {}) if negotiation else self.answer(command))

    def close(self) -> None:
        for sock in (self.listener, getattr(self, "peer", self.listener)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.listener.close()


def line(message: Any) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


def reply(command: dict[str, Any], value: Any) -> bytes:
    return line({"return": value, "id": command.get("id")})


@pytest.fixture
def monitor(run_dir: Path) -> Iterator[Monitor]:
    each = Monitor(run_dir / "q")
    yield each
    each.close()


@pytest.fixture
def qmp(monitor: Monitor) -> Iterator[QmpConnection]:
    connection = QmpConnection.connect(monitor.path)
    yield connection
    connection.close()


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: repr(wrong)[:12])
def test_an_answer_of_another_type_names_the_command(monitor: Monitor, qmp: QmpConnection, wrong: Any) -> None:
    for value, ask in (
        (wrong, lambda: qmp.record("query-x").string("y")), ({"y": wrong}, lambda: qmp.record("query-x").record("y")),
        ([wrong], lambda: [each.string("y") for each in qmp.records("query-x")]),
        ({"y": wrong}, lambda: qmp.record("query-x").whole("y")), ({"y": wrong}, lambda: qmp.record("query-x").flag("y")),
    ):
        monitor.answer = lambda command, value=value: reply(command, value)
        try:
            ask()
        except QmpReplyError as error:
            assert "query-x" in str(error) and len(str(error)) < 200


@pytest.mark.parametrize("stamp", [*WRONG, {"seconds": "1"}, {"seconds": [1]}, {"seconds": 1e400}, {"seconds": -1, "microseconds": {}}],
                         ids=lambda stamp: repr(stamp)[:14])
def test_an_event_with_odd_times_or_data_is_still_an_event(monitor: Monitor, qmp: QmpConnection, stamp: Any) -> None:
    odd = line({"event": "STOP", "timestamp": stamp, "data": stamp})
    monitor.answer = lambda command: odd + reply(command, {"y": 1})
    with qmp.subscribe("STOP") as events:
        assert qmp.record("query-x").whole("y") == 1
        event = events.get(5)
        assert isinstance(event.timestamp_us, int) and isinstance(event.data, dict)
    assert not qmp.lost


@pytest.mark.parametrize("said", [
    b"x" * (LINE_LIMIT_BYTES + 10), b"[" * 200_000 + b"\r\n", b"\x1b]0;title\x07\r\n", b"\xff\xfe\r\n", b"3\r\n", b"[]\r\n",
], ids=["endless", "deep", "escapes", "no-text", "number", "list"])
def test_what_is_no_message_ends_the_connection_in_words(monitor: Monitor, qmp: QmpConnection, said: bytes) -> None:
    monitor.answer = lambda command: said
    with pytest.raises(QmpLost, match="query-x"):
        qmp.execute("query-x")
    with pytest.raises(QmpError):
        qmp.execute("query-y")


def garbled(rng: random.Random, value: Any) -> Any:
    """``value`` with one part of it, at any depth, another."""
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            places.append((part, key))
            walk(part[key])

    walk(value)
    if not places:
        return rng.choice(WRONG)
    part, key = rng.choice(places)
    part[key] = rng.choice(WRONG)
    return value


def garbling(listener: socket.socket, path: Path, rng: random.Random) -> None:
    """Between `colo protect` and a real QEMU: what that says, one line in ten not as it said it."""
    with contextlib.suppress(OSError, ValueError):
        client, _ = listener.accept()
        with client, socket.socket(socket.AF_UNIX) as qemu:
            qemu.connect(str(path))

            def up() -> None:
                with contextlib.suppress(OSError):
                    while data := client.recv(1 << 16):
                        qemu.sendall(data)
                    qemu.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=up, daemon=True).start()
            for said in qemu.makefile("rb"):
                message = json.loads(said)
                if rng.random() < 0.1:
                    for key in set(message) & {"return", "data", "timestamp", "QMP"}:
                        message[key] = garbled(rng, message[key])
                client.sendall(line(message))


@pytest.mark.qemu
@pytest.mark.parametrize("seed", range(6))
def test_protect_ends_in_words_whatever_its_monitor_says(machine: Machine, run_dir: Path, seed: int) -> None:
    with QemuProcess.start(machine(), run_dir / "vm") as qemu, socket.socket(socket.AF_UNIX) as listener:
        qemu.qmp.close()  # a monitor has one client
        listener.bind(str(run_dir / "p"))
        listener.listen()
        between = threading.Thread(target=garbling, args=(listener, qemu.qmp_path, random.Random(seed)), daemon=True)
        between.start()
        done = subprocess.run(
            [sys.executable, "-m", "colo", "protect", "--qmp", str(run_dir / "p"), "--to", f"unix:{run_dir}/nobody", "--arbiter",
             "none", "--no-lease", "--set-up-s", "2"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        said = done.stdout + done.stderr
        assert done.returncode in (7, 9, 10) and "Traceback" not in said and "\x1b" not in said and "\x07" not in said, said
