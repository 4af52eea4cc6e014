"""The monitor for blocking code, against a real QEMU."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.qemu.process import QemuProcess
from colo.qemu.qmp import (
    QmpCommandError,
    QmpConnection,
    QmpError,
    QmpEvent,
    QmpLost,
    QmpTimeout,
)

pytestmark = pytest.mark.qemu


@pytest.fixture
def qemu(qemu_binary: str, run_dir: Path) -> Iterator[QemuProcess]:
    argv = [qemu_binary, "-nodefaults", "-display", "none", "-machine", "none", "-S"]
    process = QemuProcess.start(argv, run_dir)
    yield process
    if process.alive():
        process.send_signal(signal.SIGCONT)
    process.kill()


def test_greeting_tells_the_version(qemu: QemuProcess) -> None:
    assert qemu.qmp.version >= (4, 0, 0)
    assert qemu.status() in ("prelaunch", "paused")


def test_refusal_carries_qemu_s_words_and_class(qemu: QemuProcess) -> None:
    with pytest.raises(QmpCommandError, match="make-coffee") as refused:
        qemu.qmp.execute("make-coffee")
    assert refused.value.error_class == "CommandNotFound"
    assert refused.value.command == "make-coffee"
    assert qemu.status()


def test_events_come_in_order_with_qemu_s_timestamps(qemu: QemuProcess) -> None:
    seen: list[QmpEvent] = []
    end = qemu.qmp.on_event(seen.append, "STOP", "RESUME")
    with qemu.qmp.subscribe("STOP", "RESUME") as events, qemu.qmp.subscribe() as everything:
        for _ in range(3):
            qemu.qmp.execute("cont")
            qemu.qmp.execute("stop")
        got = [events.get(2.0) for _ in range(6)]
        assert [event.name for event in got] == ["RESUME", "STOP"] * 3
        stamps = [event.timestamp_us for event in got]
        assert stamps == sorted(stamps)
        assert stamps[0] > 1_600_000_000_000_000
        assert [event.name for event in everything.drain()] == ["RESUME", "STOP"] * 3
        assert events.drain() == []
        end()
        qemu.qmp.execute("cont")
        events.get(2.0)
    assert seen == got
    with pytest.raises(QmpTimeout):
        qemu.qmp.wait_event("STOP", 0.05)


def test_a_subscription_takes_nothing_after_its_end(qemu: QemuProcess) -> None:
    with qemu.qmp.subscribe("RESUME") as events:
        pass
    qemu.qmp.execute("cont")
    assert events.drain() == []


def test_many_threads_share_one_connection(qemu: QemuProcess) -> None:
    answers: list[str] = []

    def ask() -> None:
        for _ in range(20):
            answers.append(qemu.qmp.execute("query-name").get("name", "nameless"))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["nameless"] * 100


def test_a_frozen_qemu_times_out_and_answers_again_after(qemu: QemuProcess) -> None:
    qemu.send_signal(signal.SIGSTOP)
    with pytest.raises(QmpTimeout, match="query-status"):
        qemu.qmp.execute("query-status", timeout_s=0.1)
    qemu.send_signal(signal.SIGCONT)
    assert qemu.qmp.execute("query-status")["running"] is False


def test_a_killed_qemu_is_noticed_everywhere(qemu: QemuProcess) -> None:
    lost = threading.Event()
    qemu.qmp.on_lost(lost.set)
    events = qemu.qmp.subscribe("STOP")
    assert qemu.pid is not None
    os.kill(qemu.pid, signal.SIGKILL)
    assert qemu.qmp.wait_lost(5.0)
    assert lost.wait(5.0)
    with pytest.raises(QmpLost):
        events.get(5.0)
    with pytest.raises(QmpLost):
        qemu.qmp.execute("query-status")
    assert list(events) == []
    late = threading.Event()
    qemu.qmp.on_lost(late.set)
    assert late.is_set()


def test_our_own_close_is_not_a_loss(qemu: QemuProcess) -> None:
    lost = threading.Event()
    qemu.qmp.on_lost(lost.set)
    qemu.qmp.close()
    qemu.qmp.close()
    assert not lost.is_set()
    with pytest.raises(QmpError, match="closed"):
        qemu.qmp.execute("query-status")
    assert qemu.alive()


def test_a_second_client_of_one_monitor_times_out(qemu: QemuProcess) -> None:
    with pytest.raises(QmpTimeout, match="another client"):
        QmpConnection.connect(qemu.qmp_path, timeout_s=0.2)


def test_callbacks_may_not_call_qemu(qemu: QemuProcess) -> None:
    caught: list[Exception] = []
    done = threading.Event()

    def call(_event: QmpEvent) -> None:
        try:
            qemu.qmp.execute("query-status")
        except QmpError as error:
            caught.append(error)
        done.set()

    qemu.qmp.on_event(call, "RESUME")
    qemu.qmp.execute("cont")
    assert done.wait(5.0)
    assert "another thread" in str(caught[0])


def test_what_is_no_monitor_is_refused(run_dir: Path) -> None:
    with pytest.raises(QmpError, match="No such file"):
        QmpConnection.connect(run_dir / "nothing.sock")
    with pytest.raises(QmpError, match="longer than 107"):
        QmpConnection.connect(run_dir / ("x" * 120))
    path = run_dir / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(QmpError, match="refused"):
            QmpConnection.connect(path)
        listener.listen()

        def babble() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"220 smtp.example ESMTP\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(QmpError, match="not a QMP monitor"):
            QmpConnection.connect(path, timeout_s=2.0)
        thread.join()
