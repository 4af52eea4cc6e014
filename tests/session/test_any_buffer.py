"""A RAM block is any writable buffer, of any items, wherever it begins: the core must not count on more."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colo import Primary, PrimaryConfig, VmSecondary, VmSecondaryConfig
from colo._fast.kernels.codec_libraries import usable_methods
from colo.abc import BlockMemory
from colo.arbiter import init_arbiter
from colo.memory.trackers import open_tracker, probe

PAGE = 4096
PAGES = 300


def array_at(offset: int) -> Callable[[], Any]:
    """A NumPy array that begins so many bytes behind the begin of a page."""
    def make() -> Any:
        room = np.zeros((PAGES + 2) * PAGE, dtype="u1")
        start = -room.ctypes.data % PAGE + offset
        return room[start : start + PAGES * PAGE]

    return make


def memfd() -> mmap.mmap:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, PAGES * PAGE)
    made = mmap.mmap(fd, PAGES * PAGE)
    os.close(fd)
    return made


BUFFERS: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(PAGES * PAGE),
    "mmap": lambda: mmap.mmap(-1, PAGES * PAGE),
    "memfd": memfd,
    "words": lambda: np.zeros(PAGES * PAGE // 8, dtype="u8"),
    "rows": lambda: np.zeros((PAGES, PAGE // 4), dtype=">i4"),
    "ctypes": lambda: (ctypes.c_uint64 * (PAGES * PAGE // 8))(),
    **{f"array+{offset}": array_at(offset) for offset in (0, 1, 8, 16, 33)},
}
SHARED = ("mmap", "memfd")
"""Others could change these: here nobody does."""


class BufferVm:
    def __init__(self, buffer: Any) -> None:
        self.memory = BlockMemory({"ram": buffer})
        self.view = self.memory["ram"]

    def pause(self) -> None: ...
    def resume(self) -> None: ...

    def save_state(self) -> bytes:
        return b"state"

    def load_state(self, state: memoryview) -> None: ...

    def write(self, draw: random.Random) -> None:
        """Runs of whole pages, of zero pages, and pages changed a little or in many places."""
        for _ in range(6):
            first, count = draw.randrange(PAGES - 20), draw.randrange(1, 20)
            run = slice(first * PAGE, (first + count) * PAGE)
            kind = draw.randrange(4)
            if kind == 0:
                self.view[run] = draw.randbytes(count * PAGE)
            elif kind == 1:
                self.view[run] = bytes(count * PAGE)
            elif kind == 2:
                self.view[run.start + 17 : run.start + 41] = draw.randbytes(24)
            else:
                self.view[run.start : run.stop : 16] = draw.randbytes(count * PAGE // 16)


@pytest.mark.parametrize("tracker", [result.name for result in probe() if result.available and result.name != "explicit"])
@pytest.mark.parametrize("kind", BUFFERS)
def test_it_arrives_whatever_the_buffer_is(tmp_path: Path, kind: str, tracker: str) -> None:
    arbiter = tmp_path / "arbiter"
    arbiter.mkdir(mode=0o700)
    init_arbiter(f"file:{arbiter}", vm="test")
    draw = random.Random(f"{kind} {tracker}")
    methods = usable_methods()
    vm, other = BufferVm(BUFFERS[kind]()), BufferVm(BUFFERS[kind]())
    other.view[:] = b"\x07" * len(other.view)
    options: dict[str, Any] = {
        "sending": draw.choice(("copy", "direct")), "xbzrle": draw.choice((None, "shadow", 1 << 20)),
        "compress": draw.choice((None, *methods)),
    }
    with VmSecondary(other, VmSecondaryConfig("tcp:127.0.0.1:0", f"file:{arbiter}", resume=False)) as secondary:
        thread = threading.Thread(target=secondary.run, daemon=True)
        thread.start()
        watch: Any = tracker
        if kind in SHARED and tracker in ("pagemap", "softdirty"):
            watch = open_tracker(tracker, vm.memory, sole_writer=True)
        config = PrimaryConfig(secondary.address, f"file:{arbiter}", interval_ms=10_000, tracker=watch, **options)
        with Primary(vm, config) as primary:
            primary.start()
            for _ in range(6):
                vm.write(draw)
                primary.checkpoint(20)
            secondary.request_failover("test")
            thread.join(20)
            assert not thread.is_alive()
    assert other.view == vm.view, options
