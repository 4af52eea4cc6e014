"""A migration that does not come through: the VM runs on where it was."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from colo.abc import BlockMemory
from colo.errors import AddressError, ArbitrationError, ChannelError, ChannelLost, ColoError, StreamError, VmError
from colo.memory.trackers import open_tracker
from colo.protocol.deadlines import Deadlines
from colo.protocol.migration import MigrationStatus
from colo.session.migration import (
    Arrival,
    MigrationDestination,
    MigrationDestinationConfig,
    MigrationSource,
    MigrationSourceConfig,
    VmPlace,
)
from colo.session.primary import Primary, PrimaryConfig
from tests.session.migration.target import PAGES, Target, config, runs_on, tracked_by_nobody, wait_until
from tests.session.primary_vm import PAGE, PageVm, expected


@pytest.mark.parametrize("phase", ["setup", "active", "pre-switchover", "device"])
def test_cancelled_in_any_phase_the_vm_runs_on(phase: str, vm: Any, target: Target) -> None:
    vm.resume()
    wait_until(lambda: vm.turn > 10)
    go_on = threading.Event()
    options: dict[str, Any] = {"auto_converge": True}
    silent = socket.create_server(("127.0.0.1", 0))
    if phase == "setup":
        options["deadlines"] = Deadlines()
    elif phase == "active":
        options |= {"max_bandwidth_bytes_per_s": 20_000}
    elif phase == "pre-switchover":
        options["pause_before_switchover"] = True
    else:
        vm.on_save = lambda: go_on.wait(1) and None
    settings = config(target, **options)
    if phase == "setup":  # a listener that never answers
        settings = MigrationSourceConfig(f"tcp:127.0.0.1:{silent.getsockname()[1]}", **options)
    with MigrationSource(vm, settings) as it:
        it.start()
        wait_until(lambda: it.status()["status"] == phase)
        threading.Timer(0.05, go_on.set).start()
        outcome = it.cancel("test")
        assert outcome.status is MigrationStatus.CANCELLED
        assert outcome.vm is VmPlace.HERE
        assert it.status()["status"] == "cancelled"
        tracked_by_nobody(it)
    runs_on(vm)
    assert vm._throttle_percent == 0
    silent.close()
    if phase != "setup":
        assert isinstance(target.join(), ChannelLost)
        assert not target.vm.running


def test_cancelling_is_too_late_once_the_end_is_handed_out(vm: Any) -> None:
    class Slow(PageVm):  # type: ignore[misc, valid-type]
        loading = threading.Event()
        go_on = threading.Event()

        def load_state(self, state: memoryview) -> None:
            self.loading.set()
            assert self.go_on.wait(10)
            super().load_state(state)

    far = Target(Slow(PAGES))
    vm.resume()
    with MigrationSource(vm, config(far)) as it:
        it.start()
        assert far.vm.loading.wait(10)
        threading.Timer(0.05, far.vm.go_on.set).start()
        assert it.cancel().status is MigrationStatus.COMPLETED
    far.join()
    far.close()
    assert not vm.running


def test_save_state_that_raises_leaves_the_vm_running(vm: Any, target: Target) -> None:
    def refuse() -> None:
        raise OSError("no state today")

    vm.on_save = refuse
    vm.resume()
    with MigrationSource(vm, config(target)) as it:
        with pytest.raises(VmError, match="no state today"):
            it.run()
        assert it.status()["status"] == "failed" and it.status()["vm"] == "here"
        assert "no state today" in it.status()["error-desc"]
        tracked_by_nobody(it)
    vm.on_save = lambda: None
    runs_on(vm)
    assert isinstance(target.join(), ChannelLost)


def test_save_state_that_hangs_is_given_up(vm: Any, target: Target) -> None:
    go_on = threading.Event()
    vm.on_save = lambda: go_on.wait(20) and None
    vm.resume()
    with MigrationSource(vm, config(target, vm_s=0.3)) as it:
        with pytest.raises(VmError, match="did not return within"):
            it.run()
        assert vm.running
        go_on.set()
    assert isinstance(target.join(), ChannelLost)
    runs_on(vm)


def test_a_vm_that_refuses_its_state_gives_it_back(vm: Any) -> None:
    class Refusing(PageVm):  # type: ignore[misc, valid-type]
        def load_state(self, state: memoryview) -> None:
            raise ValueError("not mine")

    far = Target(Refusing(PAGES), resume=True)
    vm.resume()
    with MigrationSource(vm, config(far)) as it:
        with pytest.raises(ChannelError, match="did not take the VM over"):
            it.run()
        assert it.status()["vm"] == "here"
    runs_on(vm)
    assert isinstance(far.join(), VmError)
    assert not far.vm.running
    far.close()


@pytest.mark.parametrize("can_pause", [True, False])
def test_a_vm_that_does_not_resume_gives_it_back_only_if_it_stands_still(vm: Any, can_pause: bool) -> None:
    class Stuck(PageVm):  # type: ignore[misc, valid-type]
        tried = False

        def resume(self) -> None:
            self.tried = True
            raise OSError("no CPU")

        def pause(self) -> None:
            if self.tried and not can_pause:
                raise OSError("no idea")

    far = Target(Stuck(PAGES), resume=True)
    vm.resume()
    with MigrationSource(vm, config(far)) as it:
        with pytest.raises(ChannelError if can_pause else ArbitrationError):
            it.run()
        assert vm.running == can_pause
    assert isinstance(far.join(), VmError)
    far.close()


def test_memory_of_another_shape_is_refused(vm: Any) -> None:
    far = Target(PageVm(PAGES + 1))
    vm.resume()
    with MigrationSource(vm, config(far)) as it, pytest.raises(ChannelError):
        it.run()
    runs_on(vm)
    assert isinstance(far.join(), StreamError)
    far.close()
    far = Target(machine="pc")
    with MigrationSource(vm, config(far)) as it, pytest.raises(ChannelError):
        it.run()
    assert "is 'pc'" in str(far.join())
    far.close()


def test_a_destination_takes_the_next_one_after_a_failure(vm: Any, target: Target) -> None:
    vm.resume()
    with MigrationSource(vm, config(target, max_bandwidth_bytes_per_s=20_000)) as it:
        it.start()
        wait_until(lambda: it.status()["status"] == "active")
    assert isinstance(target.join(), ChannelLost)
    target.thread = threading.Thread(target=target._run, daemon=True)
    target.thread.start()
    with MigrationSource(vm, config(target)) as it:
        it.run()
    assert isinstance(target.join(), Arrival)
    assert target.vm.image() == expected(vm.turn, vm.pages)


def test_one_session_has_a_vm(vm: Any, target: Target) -> None:
    vm.resume()
    with MigrationSource(vm, config(target, pause_before_switchover=True)) as it:
        it.start()
        with pytest.raises(RuntimeError, match="another session"):
            MigrationSource(vm, config(target)).start()
        with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="another session"):
            Primary(vm, PrimaryConfig(target.destination.address, "none")).start()
        with MigrationDestination(vm, MigrationDestinationConfig("tcp:127.0.0.1:0")) as other, \
                pytest.raises(RuntimeError, match="another session"):
            other.run()
    runs_on(vm)


def test_what_cannot_be_asked_is_refused(vm: Any) -> None:
    with pytest.raises(AddressError):
        MigrationSource(vm, MigrationSourceConfig("tcp:192.0.2.1:9"))
    with pytest.raises(ValueError, match="return path"):
        MigrationSource(vm, MigrationSourceConfig("tcp:127.0.0.1:9", arbiter="file:/nowhere", return_path=False))
    with pytest.raises(ValueError, match="downtime"):
        MigrationSource(vm, MigrationSourceConfig("tcp:127.0.0.1:9", downtime_limit_ms=-1))

    class Plain:
        memory = BlockMemory.allocate({"ram": PAGE})

    with pytest.raises(ValueError, match="Throttled"):
        MigrationSource(Plain(), MigrationSourceConfig("tcp:127.0.0.1:9", auto_converge=True))  # type: ignore[arg-type]


def test_a_tracker_that_lost_the_memory_ends_it(vm: Any, target: Target) -> None:
    tracker = open_tracker("explicit", vm.memory)
    vm.resume()
    with MigrationSource(vm, config(target, tracker=tracker, max_bandwidth_bytes_per_s=100_000)) as it:
        it.start()
        wait_until(lambda: it.status()["status"] == "active")
        tracker.stop()
        it.max_bandwidth_bytes_per_s = 0
        with pytest.raises(ColoError):
            it.wait(20)
    runs_on(vm)
