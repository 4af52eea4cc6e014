"""Rounds over RAM: how fast, how many, and what slows the VM down."""

from __future__ import annotations

import os
import struct
import threading
import time
from typing import Any

from colo.errors import ChannelLost
from colo.protocol.migration import MigrationStatus
from colo.session.migration import MigrationSource
from tests.session.migration.target import PAGES, Target, config, wait_until
from tests.session.primary_vm import PAGE, PageVm


class BusyVm(PageVm):  # type: ignore[misc, valid-type]
    """Writes all of its memory over and over."""

    def __init__(self) -> None:
        super().__init__(512)
        self.throttled: list[int] = []

    def step(self) -> None:
        self.turn += 1
        self.views[0][:] = struct.pack(">Q", self.turn) * (len(self.views[0]) // 8)
        threading.Event().wait(0.0005)

    def throttle(self, percent: int) -> None:
        self.throttled.append(percent)
        super().throttle(percent)


class AllDirty:
    """A tracker of such a VM, however rarely the machine lets it run."""

    name, atomic, by_content = "all", True, False
    parts = ()

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def give_back(self, bitmaps: Any) -> None: ...

    def harvest(self, bitmaps: Any) -> int:
        for bitmap in bitmaps:
            bitmap.set(0, bitmap.pages)
        return sum(bitmap.pages for bitmap in bitmaps)


def test_without_auto_converge_it_goes_on_and_with_it_it_ends(target: Target) -> None:
    vm = BusyVm()
    far = Target(BusyVm())
    vm.resume()
    options: dict[str, Any] = {
        "downtime_limit_ms": 0.001, "max_bandwidth_bytes_per_s": 64 << 20, "tracker": AllDirty()}
    with MigrationSource(vm, config(far, **options)) as it:
        it.start()
        wait_until(lambda: it.progress.rounds >= 6)
        assert it.status()["status"] == "active"
        assert not vm.throttled
        assert it.cancel().status is MigrationStatus.CANCELLED
    assert isinstance(far.join(), ChannelLost)
    far.close()
    far = Target(BusyVm())
    with MigrationSource(vm, config(far, **options, auto_converge=True)) as it:
        it.start()
        wait_until(lambda: len(vm.throttled) >= 3)
        assert vm.throttled[:3] == [20, 30, 40]
        # Even at 99 % all of this VM's memory is written: what it takes to be done is known now.
        it.downtime_limit_ms = 10_000
        assert it.wait(20).status is MigrationStatus.COMPLETED
        assert vm.throttled[-1] == 0
        assert it.status()["cpu-throttle-percentage"] == 0
    far.join()
    assert far.vm.image()[0] == vm.image()[0]
    far.close()
    vm.close()


class SparseVm(PageVm):  # type: ignore[misc, valid-type]
    """Writes some pages a step, and so fewer pages in a round the more it is throttled."""

    def __init__(self) -> None:
        super().__init__(512)

    def step(self) -> None:
        for _ in range(8):
            self.turn += 1
            at = self.turn * 7 % 512 * PAGE
            self.views[0][at : at + PAGE] = struct.pack(">Q", self.turn) * (PAGE // 8)
        threading.Event().wait(0.001)


def test_throttling_makes_the_rounds_shorter_until_the_rest_fits() -> None:
    vm, far = SparseVm(), Target(SparseVm())
    vm.resume()
    wait_until(lambda: vm.turn > 600)  # no page is zero any more
    rounds: list[Any] = []
    # At 8 MB/s the 2 MiB take a quarter of a second, in which all of them are written again.
    with MigrationSource(
        vm, config(far, auto_converge=True, throttle_initial_percent=60, throttle_increment_percent=39,
                   downtime_limit_ms=60, max_bandwidth_bytes_per_s=8 << 20),
        on_event=lambda kind, data: rounds.append(data) if kind == "round" else None,
    ) as it:
        assert it.run().status is MigrationStatus.COMPLETED
    assert rounds[0].dirty_pages > 400
    assert rounds[-1].dirty_pages < rounds[0].dirty_pages
    far.join()
    assert far.vm.image() == vm.image()
    far.close()
    vm.close()


def test_bandwidth_is_limited_and_may_be_changed_meanwhile(target: Target) -> None:
    vm = PageVm(PAGES)
    for view in vm.views:
        view[:] = os.urandom(len(view))
    limit = 200_000
    with MigrationSource(vm, config(target, max_bandwidth_bytes_per_s=limit)) as it:
        it.start()
        wait_until(lambda: it.progress.sent_bytes > 40_000)
        elapsed = (time.monotonic_ns() - it.progress.round_began_ns) / 1e9
        # One batch may be ahead of its time.
        assert it.progress.sent_bytes <= limit * elapsed + it._pacer.batch_bytes + 10_000
        assert it.status()["eta-ms"] > 0
        it.max_bandwidth_bytes_per_s = 0
        assert it.wait(20).status is MigrationStatus.COMPLETED
    target.join()
