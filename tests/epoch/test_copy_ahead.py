"""Pages copied before the pause: nothing that the VM writes meanwhile is lost, and it is done only where it pays."""

from __future__ import annotations

import ctypes
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colo._fast.kernels.codec_libraries import usable_methods
from colo.abc import BlockMemory
from colo.arbiter import init_arbiter
from colo.epoch.copy_ahead import FEW_PAGES, ROUNDS_MAX, SKIPPED_MAX, SPARED_PAGES_MIN, CopyAhead
from colo.epoch.primary_pages import PrimaryPages
from colo.link import primary_link
from colo.link.link_rate import LinkRate
from colo.memory.trackers import open_tracker, probe
from colo.session.primary import Primary, PrimaryConfig
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig

PAGE = 4096
PAGES = 8192
METHODS = usable_methods()
RUNNING_TRACKERS = [result.name for result in probe() if result.available and result.name == "pagemap"]


class BusyVm:
    """Native code writes to its memory all the time, without the interpreter's lock; its state is its memory's digest."""

    def __init__(self, pages_per_ms: int = 0) -> None:
        self.memory = BlockMemory.allocate({"ram": PAGES * PAGE})
        self.buffer = self.memory["ram"]
        self.address = ctypes.addressof((ctypes.c_char * len(self.buffer)).from_buffer(self.buffer))
        self.words = np.frombuffer(self.buffer, dtype="u4")
        self.words[:] = np.random.default_rng(3).integers(0, 1 << 32, len(self.words), dtype="u4")
        self.pages_per_ms = pages_per_ms
        self.state = b""
        self._may_run = threading.Event()
        self._stands = threading.Event()
        self._over = False
        self.thread = threading.Thread(target=self._write, daemon=True)
        if pages_per_ms:
            self.thread.start()

    def _write(self) -> None:
        draw = random.Random(5)
        while not self._over:
            self._stands.set()
            self._may_run.wait()
            self._stands.clear()
            if not self._may_run.is_set():
                continue
            for _ in range(self.pages_per_ms):
                length = draw.choice((8, 300, 4000, 0))
                page = draw.randrange(PAGES) * PAGE
                if length:
                    ctypes.memset(self.address + page + draw.randrange(PAGE - length), draw.randrange(256), length)
                else:  # as arrays of floats change: many short runs; always the same pages
                    first = draw.choice((0, 1, 2)) * PAGE // 4
                    self.words[first : first + PAGE // 4 : 4] += 1
            time.sleep(0.001)

    def pause(self) -> None:
        self._may_run.clear()
        if self.pages_per_ms:
            assert self._stands.wait(10)

    def resume(self) -> None:
        self._may_run.set()

    def save_state(self) -> bytes:
        return hashlib.sha256(self.buffer).digest()

    def load_state(self, state: memoryview) -> None:
        self.state = bytes(state)

    def close(self) -> None:
        self._over = True
        self._may_run.set()
        if self.pages_per_ms:
            self.thread.join(10)


@pytest.fixture
def arbiter(tmp_path: Path) -> str:
    path = tmp_path / "arbiter"
    path.mkdir(mode=0o700)
    init_arbiter(f"file:{path}", vm="test")
    return f"file:{path}"


class SlowLink(LinkRate):
    """One that all compression pays on, whatever is measured."""

    def __init__(self) -> None:
        self.bytes_per_s = 1e6

    def took(self, sent_bytes: int, ms: float) -> None:
        pass


@pytest.mark.skipif(not RUNNING_TRACKERS, reason="no tracker here finds the writes of a running VM")
@pytest.mark.parametrize("xbzrle", [None, "shadow", 8 << 20])
@pytest.mark.parametrize("compress", [None, *METHODS])
def test_what_is_written_while_pages_are_copied_ahead_arrives(
    arbiter: str, xbzrle: Any, compress: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primary_link, "LinkRate", SlowLink)
    vm, other = BusyVm(pages_per_ms=60), BusyVm()
    secondary = VmSecondary(other, VmSecondaryConfig("tcp:127.0.0.1:0", arbiter, resume=False))
    thread = threading.Thread(target=secondary.run, daemon=True)
    thread.start()
    vm.resume()
    reports = []
    with Primary(vm, PrimaryConfig(
        secondary.address, arbiter, interval_ms=10_000, tracker="pagemap", xbzrle=xbzrle, compress=compress)) as primary:
        primary.start()
        for _ in range(12):
            time.sleep(0.01)
            reports.append(primary.checkpoint(20))
        secondary.request_failover("test")
        thread.join(20)
        assert not thread.is_alive()
    vm.close()
    secondary.close()
    assert len(other.state) == 32
    assert hashlib.sha256(other.buffer).digest() == other.state
    if compress is not None and xbzrle is not None:
        assert any(report.pages[f"{compress}_delta"] for report in reports)
    ahead = [report for report in reports if report.ahead_pages]
    assert ahead
    for report in ahead:
        assert max(report.ahead_pages, report.paused_pages) <= report.dirty_pages * ROUNDS_MAX
        assert report.dirty_pages <= report.ahead_pages + report.paused_pages
        assert sum(report.pages.values()) == report.ahead_pages + report.paused_pages
        assert report.ahead_ms > 0
    assert any(report.ahead_pages + report.paused_pages > report.dirty_pages for report in ahead), "no page twice"


@pytest.mark.parametrize("tracker", ["shadow", "hash"])
def test_a_tracker_that_needs_the_pause_copies_nothing_ahead(arbiter: str, tracker: str) -> None:
    vm, other = BusyVm(), BusyVm()
    with VmSecondary(other, VmSecondaryConfig("tcp:127.0.0.1:0", arbiter, resume=False)) as secondary:
        thread = threading.Thread(target=secondary.run, daemon=True)
        thread.start()
        with Primary(vm, PrimaryConfig(secondary.address, arbiter, interval_ms=10_000, tracker=tracker)) as primary:
            primary.start()
            primary.checkpoint(20)
            vm.buffer[5 * PAGE] = 1
            report = primary.checkpoint(20)
            assert (report.dirty_pages, report.ahead_pages, report.paused_pages) == (1, 0, 1)
            secondary.request_failover("test")
            thread.join(20)
    assert hashlib.sha256(other.buffer).digest() == other.state


@pytest.fixture
def pages() -> Iterator[PrimaryPages]:
    memory = BlockMemory.allocate({"ram": PAGES * PAGE})
    made = PrimaryPages(memory, tracker=open_tracker("explicit", memory))
    made.start()
    yield made
    made.stop()


class Writes:
    """Before the n-th harvest of ``pages``, so many pages from 0 on are written."""

    def __init__(self, pages: PrimaryPages, counts: list[int]) -> None:
        self.pages, self.counts = pages, counts
        self.harvests = 0
        self._harvest = pages.harvest_more
        pages.harvest_more = self  # type: ignore[method-assign]

    def __call__(self) -> int:
        count = self.counts[self.harvests] if self.harvests < len(self.counts) else 0
        self.harvests += 1
        if count:
            self.pages.tracker["ram"].report(0, count * PAGE)  # type: ignore[attr-defined]
        return self._harvest()


@pytest.mark.parametrize(("counts", "rounds"), [
    ([10], 1),
    ([FEW_PAGES], 1),
    ([4000, 900], 2),
    ([4000, 1900, 100], 3),
    ([4000, 2100, 100], 2),      # more than half as many again: more rounds would not help
    ([8000, 4000, 2000, 1001, 500], ROUNDS_MAX),
])
def test_rounds_go_on_while_they_shrink(pages: PrimaryPages, counts: list[int], rounds: int) -> None:
    writes, copy_ahead = Writes(pages, counts), CopyAhead()
    copy_ahead.copy(pages, 1)
    assert writes.harvests == rounds
    assert copy_ahead.pages == sum(counts[:rounds])
    assert pages.owned_pages() == counts[0]  # all began at page 0
    pages.give_back()
    assert pages.harvest() == counts[0]


def checkpoint(pages: PrimaryPages, copy_ahead: CopyAhead, running: int, paused: int) -> bool:
    """One with so many pages written before it, and from the same ones so many again before the pause. Whether it copied
    ahead."""
    tracker: Any = pages.tracker
    tracker["ram"].report(0, running * PAGE)
    copy_ahead.copy(pages, 1)
    tracker["ram"].report(0, max(1, paused * PAGE))
    found = pages.harvest_more()
    pages.stable.make_ready(pages.total_bytes)
    copy_ahead.took(found, pages.owned_pages())
    pages.commit()
    return copy_ahead.pages > 0


def test_it_is_left_out_while_it_spares_little_and_tried_again(pages: PrimaryPages) -> None:
    copy_ahead = CopyAhead()
    done = [checkpoint(pages, copy_ahead, 500, 480) for _ in range(40)]
    tried = [n for n, ahead in enumerate(done) if ahead]
    assert tried == [0, 2, 6, 14, 30]
    assert SKIPPED_MAX == 15
    while not checkpoint(pages, copy_ahead, 500, 10):
        pass
    assert all(checkpoint(pages, copy_ahead, 500, 10) for _ in range(10))


@pytest.mark.parametrize(("running", "paused", "worth"), [
    (SPARED_PAGES_MIN - 1, 0, False), (SPARED_PAGES_MIN + 1, 0, True), (1000, 600, False), (1000, 400, True)])
def test_what_is_worth_it(pages: PrimaryPages, running: int, paused: int, worth: bool) -> None:
    copy_ahead = CopyAhead()
    assert checkpoint(pages, copy_ahead, running, paused)
    assert checkpoint(pages, copy_ahead, running, paused) is worth
