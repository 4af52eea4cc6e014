"""A VM's method that does not return is noticed, once, and nothing of it counts when it returns after all."""

from __future__ import annotations

import threading
import time

import pytest

from colo.errors import VmError
from colo.vm.watch import LOOK_S, VmWatch


class Given:
    """What the watch said."""

    def __init__(self) -> None:
        self.up: list[tuple[str, VmError]] = []
        self.said = threading.Event()

    def __call__(self, doing: str, error: VmError) -> None:
        self.up.append((doing, error))
        self.said.set()


def test_a_method_that_hangs_is_given_up_once_and_raises_when_it_returns() -> None:
    given = Given()
    watch = VmWatch(0.01, given)
    watch.start()
    watch.guard("save_state")
    assert given.said.wait(10)
    with pytest.raises(VmError, match=r"the VM's save_state\(\) did not return within 0.01 s"):
        watch.guard(None)
    with pytest.raises(VmError):
        watch.guard("resume")
    time.sleep(3 * LOOK_S)
    assert [doing for doing, _ in given.up] == ["save_state"]
    assert watch.hung is given.up[0][1]
    watch.close()


def test_methods_that_return_are_never_given_up_however_many_there_are() -> None:
    given = Given()
    watch = VmWatch(30.0, given)
    watch.start()
    until = time.monotonic() + 4 * LOOK_S
    while time.monotonic() < until:
        watch.guard("pause")
        watch.guard(None)
    assert watch.hung is None and given.up == []
    watch.close()


def test_between_two_methods_nothing_is_timed() -> None:
    given = Given()
    watch = VmWatch(0.001, given)
    watch.guard("pause")
    watch.guard(None)
    watch.start()
    time.sleep(3 * LOOK_S)
    assert watch.hung is None
    watch.close()


def test_closed_it_gives_nothing_up() -> None:
    given = Given()
    watch = VmWatch(0.001, given)
    watch.start()
    watch.close()
    time.sleep(2 * LOOK_S)
    watch.guard("pause")
    assert not given.said.wait(3 * LOOK_S)
    watch.guard(None)
