"""A VM that moves arrives as it was, whatever tracks it and whatever carries it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from colo.errors import ChannelError
from colo.protocol.migration import MigrationStatus
from colo.session.migration import Arrival, MigrationSource, MigrationSourceConfig, VmPlace
from tests.session.migration.target import PAGES, TRACKERS, Target, config, runs_on, tracked_by_nobody, wait_until
from tests.session.primary_vm import PAGE, PageVm, expected


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("xbzrle", [None, "shadow", 4 << 20])
@pytest.mark.parametrize("return_path", [True, False])
def test_memory_and_state_arrive_as_they_were_at_the_pause(
    vm: Any, target: Target, tracker: str, xbzrle: Any, return_path: bool
) -> None:
    for view in target.vm.views:
        view[:] = b"\xff" * len(view)
    vm.resume()
    wait_until(lambda: vm.turn > 20)
    # A limit that is not reached at once makes further rounds.
    with MigrationSource(vm, config(target, tracker=tracker, xbzrle=xbzrle, return_path=return_path, downtime_limit_ms=2)) as it:
        outcome = it.run()
        tracked_by_nobody(it)
    assert outcome.status is MigrationStatus.COMPLETED
    assert outcome.vm is VmPlace.THERE
    assert isinstance(target.join(), Arrival), target.outcome
    assert target.outcome.confirmed == return_path
    assert not vm.running
    assert vm.turn == target.vm.turn
    assert vm.image() == target.vm.image() == expected(vm.turn, vm.pages)
    if return_path:  # without, the source may be done before the destination
        target.vm.free_running = True
        target.vm.resume()
        runs_on(target.vm)


def test_over_a_unix_socket(vm: Any, tmp_path: Path) -> None:
    far = Target(listen=f"unix:{tmp_path}/socket")
    vm.resume()
    for return_path in (True, False):
        with MigrationSource(vm, config(far, max_bandwidth_bytes_per_s=4 << 20, return_path=return_path)) as it:
            assert it.run().vm is VmPlace.THERE
        assert isinstance(far.join(), Arrival)
        assert far.vm.image() == expected(vm.turn, vm.pages)
        vm.resume()
        far.thread = threading.Thread(target=far._run, daemon=True)
        far.thread.start()
    far.close()


def test_figures_have_the_names_of_query_migrate(vm: Any, target: Target) -> None:
    seen: list[Any] = []
    vm.resume()
    wait_until(lambda: vm.turn > 20)
    with MigrationSource(vm, config(target, xbzrle="shadow"), on_event=lambda kind, data: seen.append((kind, data))) as it:
        assert it.status() == {"status": "none", "vm": "here"}
        it.run()
        status = it.status()
    assert [data for kind, data in seen if kind == "status"] == ["setup", "active", "device", "completed"]
    ram = status["ram"]
    assert status["status"] == "completed" and status["vm"] == "there"
    assert ram["total"] == (PAGES + 2) * PAGE
    assert ram["remaining"] == 0
    assert ram["duplicate"] + ram["normal"] >= PAGES + 2
    assert ram["normal-bytes"] == ram["normal"] * ram["page-size"]
    assert ram["transferred"] == target.join().stream_bytes == ram["precopy-bytes"] + ram["downtime-bytes"]
    assert ram["dirty-sync-count"] >= 3
    assert 0 < status["downtime"] < status["total-time"] and status["setup-time"] <= status["total-time"]
    assert set(status["xbzrle-cache"]) == {
        "cache-size", "bytes", "pages", "cache-miss", "cache-miss-rate", "encoding-rate", "overflow"}
    arrived = target.destination.status()
    assert arrived["status"] == "completed"
    assert arrived["ram"]["normal"] == ram["normal"] and arrived["ram"]["duplicate"] == ram["duplicate"]


def test_a_vm_that_stood_still_is_migrated_as_it_stands(target: Target) -> None:
    vm = PageVm(PAGES)
    vm.advance()
    with MigrationSource(vm, config(target)) as it:
        it.run()
    target.join()
    assert target.vm.image() == expected(1, vm.pages)
    with MigrationSource(vm, MigrationSourceConfig("tcp:127.0.0.1:9", connect_s=0.05)) as it, pytest.raises(ChannelError):
        it.run()
    assert not vm.running


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_page_changed_and_changed_back_while_it_is_sent_arrives_as_it_is(target: Target, tracker: str) -> None:
    """A tracker that goes by content does not see that it changed at all."""
    vm = PageVm(PAGES)
    for view in vm.views:
        view[:] = os.urandom(len(view))
    page = slice(30 * PAGE, 31 * PAGE)
    before = bytes(vm.views[0][page])
    with MigrationSource(vm, config(target, tracker=tracker, max_bandwidth_bytes_per_s=400_000)) as it:
        it.start()
        wait_until(lambda: it.progress.sent_bytes > PAGE)
        assert it.progress.sent_bytes < 25 * PAGE
        vm.views[0][page] = bytes(reversed(before))
        wait_until(lambda: it.progress.sent_bytes > 45 * PAGE)
        vm.views[0][page] = before
        it.wait(20)
    target.join()
    assert target.vm.image() == vm.image()


def test_it_waits_before_the_switchover_until_told(vm: Any, target: Target) -> None:
    vm.resume()
    with MigrationSource(vm, config(target, pause_before_switchover=True)) as it:
        it.start()
        with pytest.raises(RuntimeError, match="not pre-switchover"):
            it.continue_()
        wait_until(lambda: it.status()["status"] == "pre-switchover")
        assert not vm.running
        with vm.lock:
            vm.advance()  # as a disk that is flushed now may
        assert target.destination.status()["status"] == "active"
        it.continue_()
        assert it.wait(20).status is MigrationStatus.COMPLETED
    target.join()
    assert target.vm.image() == expected(vm.turn, vm.pages) and target.vm.turn == vm.turn
