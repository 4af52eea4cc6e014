"""A VM's methods as a session calls them, and what a lease that ends does in between."""

from __future__ import annotations

import pytest

from colo.abc import BlockMemory
from colo.errors import VmError
from colo.vm.calls import call_vm
from colo.vm.handle import VmHandle
from colo.vm.source_vm import SourceVm


class Machine:
    """Notes what is called; raises at what is in ``broken``."""

    def __init__(self) -> None:
        self.memory = BlockMemory.allocate({"ram": 4096})
        self.calls: list[str] = []
        self.broken: set[str] = set()
        self.running = True

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise RuntimeError("no power")

    def pause(self) -> None:
        self._note("pause")
        self.running = False

    def resume(self) -> None:
        self._note("resume")
        self.running = True

    def save_state(self) -> bytes:
        self._note("save_state")
        return b"state"

    def load_state(self, state: memoryview) -> None:
        self._note("load_state")

    def throttle(self, percent: int) -> None:
        self._note(f"throttle {percent}")


def test_it_is_paused_saved_and_resumed_and_resumed_only_once() -> None:
    vm = Machine()
    handle = VmHandle(vm)
    handle.resume()
    assert vm.calls == [] and not handle.paused
    handle.pause()
    assert handle.paused and handle.paused_ns > 0
    assert handle.save() == b"state"
    handle.resume()
    handle.resume()
    assert vm.calls == ["pause", "save_state", "resume"] and not handle.paused


@pytest.mark.parametrize("name", ["pause", "save_state", "resume"])
def test_what_a_method_raises_is_the_vms_error_and_says_which(name: str) -> None:
    vm = Machine()
    heard: list[str | None] = []
    handle = VmHandle(vm, guard=heard.append)
    vm.broken = {name}
    steps = {"pause": handle.pause, "save_state": handle.save, "resume": handle.resume}
    handle.paused = name == "resume"
    with pytest.raises(VmError, match=rf"the VM's {name}\(\) raised RuntimeError: no power") as caught:
        steps[name]()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert heard == [name, None]
    assert handle.paused == (name == "resume"), "it is not known to have stopped, or to have gone on"


def test_the_guard_hears_each_call_begin_and_end() -> None:
    heard: list[str | None] = []
    handle = VmHandle(Machine(), guard=heard.append)
    handle.pause()
    handle.save()
    handle.resume()
    assert heard == ["pause", None, "save_state", None, "resume", None]


def test_a_call_that_was_given_up_ends_with_the_guards_error_and_not_with_its_own() -> None:
    def guard(doing: str | None) -> None:
        if doing is None:
            raise VmError("given up")

    def raises() -> None:
        raise OSError("late")

    for method in (lambda: None, raises):
        with pytest.raises(VmError, match="given up"):
            call_vm("pause", method, guard)


def test_a_lease_that_ends_stops_it_and_one_that_begins_again_lets_it_go_on() -> None:
    vm = Machine()
    handle = VmHandle(vm)
    handle.lease_over()
    handle.lease_over()
    assert vm.calls == ["pause"] and handle.unleased and not handle.paused
    handle.leased()
    handle.leased()
    assert vm.calls == ["pause", "resume"] and not handle.unleased


def test_without_a_lease_a_checkpoint_is_made_of_a_vm_that_stands_still_and_does_not_let_it_go_on() -> None:
    vm = Machine()
    handle = VmHandle(vm)
    handle.lease_over()
    handle.pause()
    handle.save()
    handle.resume()
    assert vm.calls == ["pause", "save_state"] and not vm.running
    handle.leased()
    assert vm.running


def test_a_lease_that_ends_and_begins_within_a_pause_leaves_it_paused() -> None:
    vm = Machine()
    handle = VmHandle(vm)
    handle.pause()
    handle.lease_over()
    handle.leased()
    assert vm.calls == ["pause"] and handle.paused
    handle.resume()
    assert vm.running


def test_a_vm_that_cannot_be_stopped_when_its_lease_ends_is_not_counted_as_stopped() -> None:
    vm = Machine()
    handle = VmHandle(vm)
    vm.broken = {"pause"}
    with pytest.raises(RuntimeError):
        handle.lease_over()
    assert not handle.unleased


def test_a_migrations_vm_is_left_as_it_was_found() -> None:
    vm = Machine()
    source = SourceVm(vm, lambda doing: None)
    vm.running = False
    source.note_running()
    source.pause()
    source.pause()
    source.run_on()
    assert vm.calls == ["pause"] and not source.paused
    vm.running = True
    source.note_running()
    source.pause()
    source.run_on()
    assert vm.calls == ["pause", "pause", "resume"]


def test_what_throttling_raises_is_the_vms_error() -> None:
    vm = Machine()
    heard: list[str | None] = []
    source = SourceVm(vm, heard.append)
    source.throttle(20)
    assert source.throttle_percent == 20
    vm.broken = {"throttle 40"}
    with pytest.raises(VmError, match=r"throttle\(\) raised RuntimeError: no power"):
        source.throttle(40)
    assert heard == ["throttle", None] * 2
