"""What an in-process secondary has committed stays within reach, however its session ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import init_arbiter
from colo.errors import ArbitrationLost, ColoError, VmError
from colo.session.primary import Primary, PrimaryConfig
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig, VmTakeover
from tests.session.primary_vm import PageVm, expected

QUIET = {"interval_ms": 10_000.0}


class Side:
    """A secondary whose session is run on a thread, as often as wanted."""

    def __init__(self, arbiter: str, **options: Any) -> None:
        self.vm = PageVm()
        self.secondary = VmSecondary(
            self.vm, VmSecondaryConfig("tcp:127.0.0.1:0", arbiter, resume=False, **options))
        self.outcome: VmTakeover | BaseException | None = None
        self.thread: threading.Thread | None = None

    def run(self) -> None:
        self.outcome = None

        def run() -> None:
            try:
                self.outcome = self.secondary.run()
            except ColoError as error:
                self.outcome = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        until = time.monotonic() + 10
        while self.secondary.state == "failed" and time.monotonic() < until:
            time.sleep(0.005)

    def join(self) -> Any:
        assert self.thread is not None
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome

    def close(self) -> None:
        self.secondary.stop()
        if self.thread is not None:
            self.thread.join(20)
        self.secondary.close()
        self.vm.close()


@pytest.fixture
def arbiter(tmp_path: Path) -> str:
    path = tmp_path / "arbiter"
    path.mkdir(mode=0o700)
    init_arbiter(f"file:{path}", vm="test")
    return f"file:{path}"


@pytest.fixture
def side(arbiter: str) -> Iterator[Side]:
    each = Side(arbiter)
    each.run()
    yield each
    each.close()


@pytest.fixture
def vm() -> Iterator[PageVm]:
    each = PageVm()
    yield each
    each.close()


def memory(side: Side) -> list[bytes]:
    committed = side.secondary.committed
    assert committed is not None
    return [bytes(memoryview(b.memory_buffer)[: b.used_length]) for b in committed.blocks]  # type: ignore[arg-type]


def protect_to(vm: PageVm, side: Side, arbiter: str, turns: int) -> None:
    """A session of a primary that ends with it alone, ``turns`` turns and checkpoints on."""
    with Primary(vm, PrimaryConfig(side.secondary.address, arbiter, **QUIET)) as primary:
        primary.start()
        for _ in range(turns):
            with vm.paused():
                vm.advance()
            primary.checkpoint(10)
        primary.stop()


def test_a_lost_arbitration_leaves_the_copy_and_the_session_may_be_run_again(vm: PageVm, side: Side, arbiter: str) -> None:
    protect_to(vm, side, arbiter, 4)
    assert isinstance(side.join(), ArbitrationLost)
    assert memory(side) == expected(4, vm.pages)
    side.run()
    protect_to(vm, side, arbiter, 3)  # its primary comes back, into other blocks
    assert isinstance(side.join(), ArbitrationLost)
    assert memory(side) == expected(7, vm.pages)
    side.run()
    future = side.secondary.request_failover()
    assert isinstance(side.join(), ArbitrationLost), "the primary runs on: an old copy may not"
    assert isinstance(future.exception(10), ArbitrationLost)
    assert memory(side) == expected(7, vm.pages)


def test_a_vm_that_does_not_load_it_leaves_the_copy_and_it_may_be_tried_again(vm: PageVm, side: Side, arbiter: str) -> None:
    with Primary(vm, PrimaryConfig(side.secondary.address, arbiter, **QUIET)) as primary:
        primary.start()
        with vm.paused():
            vm.advance()
        primary.checkpoint(10)
        load = side.vm.load_state

        def refuses(state: memoryview) -> None:
            raise ValueError("not today")

        side.vm.load_state = refuses  # type: ignore[method-assign]
        side.secondary.request_failover()
        assert isinstance(side.join(), VmError)
        assert memory(side) == expected(1, vm.pages)
        side.vm.load_state = load  # type: ignore[method-assign]
        side.run()
        side.secondary.request_failover()
        assert isinstance(side.join(), VmTakeover), side.outcome
        assert side.vm.turn == 1 and side.vm.image() == expected(1, vm.pages)
