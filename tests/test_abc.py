"""The promises, and the base classes that keep them."""

from __future__ import annotations

import array
import contextlib
import mmap
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from colo.abc import BlockMemory, GuestBlock, GuestMemory, SteppedMachine, Throttled, VirtualMachine

PAGE = 4096
ROOT = Path(__file__).parents[1]


class Ticker(SteppedMachine):
    def __init__(self, halt_at: int = 1 << 60, fail_at: int = 1 << 60) -> None:
        super().__init__(BlockMemory.allocate({"ram": PAGE}))
        self.ticks = 0
        self.halt_at = halt_at
        self.fail_at = fail_at

    def step(self) -> bool:
        self.ticks += 1
        if self.ticks >= self.fail_at:
            raise ValueError("bad instruction")
        time.sleep(0.0005)
        return self.ticks < self.halt_at

    def save_state(self) -> bytes:
        return b"%d" % self.ticks

    def load_state(self, state: memoryview) -> None:
        self.ticks = int(bytes(state))


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(
    "buffer",
    [bytearray(PAGE), np.zeros((2, PAGE)), array.array("Q", [0]) * 512, mmap.mmap(-1, PAGE)],
    ids=["bytearray", "numpy", "array", "mmap"],
)
def test_any_writable_buffer_of_whole_pages_is_a_block(buffer: object) -> None:
    block = GuestBlock("ram", buffer)  # type: ignore[arg-type]
    assert block.length_bytes == memoryview(buffer).nbytes  # type: ignore[arg-type]
    block.view()[5] = 7
    assert bytes(memoryview(buffer).cast("B")[5:6]) == b"\x07"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "buffer", "error", "says"),
    [
        ("", bytearray(PAGE), ValueError, "1 to 255 bytes"),
        ("x" * 256, bytearray(PAGE), ValueError, "1 to 255 bytes"),
        ("a\0b", bytearray(PAGE), ValueError, "none NUL"),
        ("ram", bytes(PAGE), BufferError, "read-only"),
        ("ram", bytearray(PAGE + 1), ValueError, "no whole number of pages"),
        ("ram", bytearray(), ValueError, "no whole number of pages"),
        ("ram", np.zeros((PAGE, 2), np.uint8)[:, 0], BufferError, "not contiguous"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(
    name: str, buffer: object, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        GuestBlock(name, buffer)  # type: ignore[arg-type]


def test_memory_is_found_by_name() -> None:
    memory = BlockMemory.allocate({"pc.ram": 4 * PAGE, "vga.vram": PAGE})
    assert isinstance(memory, GuestMemory)
    assert memory.total_bytes == 5 * PAGE
    memory["vga.vram"][0] = 9
    assert memory.blocks[1].view()[0] == 9
    with pytest.raises(KeyError):
        memory["rom"]
    with pytest.raises(ValueError, match="at least one"):
        BlockMemory({})
    with pytest.raises(ValueError, match="-1 bytes"):
        GuestBlock.allocate("ram", -1)


def test_a_plain_class_is_a_vm_without_subclassing() -> None:
    class Plain:
        memory = BlockMemory({"ram": bytearray(PAGE)})

        def pause(self) -> None: ...
        def resume(self) -> None: ...
        def save_state(self) -> bytes:
            return b""

        def load_state(self, state: memoryview) -> None: ...

    assert isinstance(Plain(), VirtualMachine)
    assert not isinstance(object(), VirtualMachine)


class TestSteppedMachine:
    def test_it_stands_still_while_paused(self) -> None:
        vm = Ticker()
        assert isinstance(vm, VirtualMachine)
        assert vm.ticks == 0
        vm.resume()
        wait_until(lambda: vm.ticks > 3)
        for _ in range(20):
            vm.pause()
            seen = vm.ticks
            time.sleep(0.002)
            assert vm.ticks == seen
            assert not vm.running
            vm.pause()
            vm.resume()
            vm.resume()
        wait_until(lambda: vm.ticks > seen)
        vm.close()
        seen = vm.ticks
        time.sleep(0.005)
        assert vm.ticks == seen
        with pytest.raises(RuntimeError, match="closed"):
            vm.resume()

    def test_paused_puts_it_back_as_it_was(self) -> None:
        vm = Ticker()
        with vm.paused():
            pass
        assert not vm.running
        vm.resume()
        stood_still = []
        with contextlib.suppress(KeyError), vm.paused():
            stood_still.append(not vm.running)
            raise KeyError
        assert stood_still == [True]
        assert vm.running
        vm.close()

    def test_it_halts_when_a_step_says_so(self) -> None:
        vm = Ticker(halt_at=5)
        vm.resume()
        wait_until(lambda: not vm.running)
        assert vm.ticks == 5
        vm.close()

    def test_a_step_that_raises_stops_it_and_is_told(self) -> None:
        vm = Ticker(fail_at=3)
        vm.resume()
        wait_until(lambda: vm.failure is not None)
        vm.pause()
        with pytest.raises(RuntimeError, match="a step raised") as caught:
            vm.resume()
        assert isinstance(caught.value.__cause__, ValueError)
        vm.close()

    def test_throttling_slows_it_down_and_a_pause_need_not_wait(self) -> None:
        vm = Ticker()
        assert isinstance(vm, Throttled)
        vm.throttle(99)
        vm.resume()
        wait_until(lambda: vm.ticks >= 2)
        vm.pause()
        vm.throttle(0)
        vm.resume()
        before = vm.ticks
        wait_until(lambda: vm.ticks > before + 20)
        vm.close()
        for bad in (-1, 100):
            with pytest.raises(ValueError, match="0 to 99"):
                vm.throttle(bad)

    def test_a_step_may_pause_itself(self) -> None:
        class Once(Ticker):
            def step(self) -> bool:
                self.pause()
                return super().step()

        vm = Once()
        vm.resume()
        wait_until(lambda: vm.ticks == 1 and not vm.running)
        vm.close()
        assert threading.active_count() < 50


def test_the_example_works() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "tiny_vm.py")],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 10
    assert all(line.endswith("equal: True") for line in lines)
