"""What whoever looks after a QEMU waits for, and that nothing of it is missed."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.qemu.endings import EndingWatch
from colo.qemu.news import News
from colo.qemu.primary import QemuPrimary
from colo.qemu.process import Qemu, QemuProcess

pytestmark = pytest.mark.qemu
LONG_S = 60.0


@pytest.fixture
def process(qemu_binary: str, run_dir: Path) -> Iterator[QemuProcess]:
    argv = [qemu_binary, "-nodefaults", "-display", "none", "-machine", "none"]
    started = QemuProcess.start(argv, run_dir)
    yield started
    started.kill()


@pytest.fixture
def news() -> Iterator[News]:
    each = News()
    yield each
    each.close()
    each.ring()  # who hears late that it is over does no harm


def ended_early(news: News, qemu: Qemu) -> bool:
    """Whether a wait ended before its time."""
    until = time.monotonic() + LONG_S
    news.wait(qemu, until)
    return time.monotonic() < until


def test_what_was_rung_for_before_the_wait_ends_it_once(news: News, process: QemuProcess) -> None:
    news.ring()
    news.ring()
    news.wait(process, math.inf)
    until = time.monotonic() + 0.05
    news.wait(process, until)
    assert time.monotonic() >= until


def test_another_thread_ends_a_wait(news: News, process: QemuProcess) -> None:
    threading.Timer(0.05, news.ring).start()
    assert ended_early(news, process)


def test_the_end_of_the_process_ends_every_wait(news: News, process: QemuProcess) -> None:
    with Qemu(process.qmp, process.pid) as qemu:
        assert not qemu.wait_ended(0) and qemu.alive()
        threading.Timer(0.05, process.kill).start()
        assert ended_early(news, qemu) and ended_early(news, qemu)
        assert qemu.wait_ended(0) and not qemu.alive()


def test_a_word_of_its_end_is_there_when_it_was_rung_for(news: News, process: QemuProcess) -> None:
    watch = EndingWatch(process, on_ending=lambda ending: news.ring())
    threading.Timer(0.05, lambda: process.qmp.execute("quit")).start()
    while watch.ending is None and process.alive():
        assert ended_early(news, process)
    ending = watch.verdict()
    assert ending is not None and ending.reason == "host-qmp-quit"


def test_a_meter_knows_since_when_the_vm_stands_still_or_runs(process: QemuProcess) -> None:
    primary = QemuPrimary(process)
    began = time.monotonic()
    meter = primary.measure_pauses()
    stopped, since = meter.standing
    assert not stopped and began <= since <= time.monotonic()
    for command, stands in (("stop", True), ("cont", False), ("stop", True)):
        before = time.monotonic()
        process.qmp.execute(command)
        while meter.standing[0] is not stands:
            assert time.monotonic() < before + LONG_S
            time.sleep(0.002)
        assert before <= meter.standing[1] <= time.monotonic()
    assert meter.count == 1
