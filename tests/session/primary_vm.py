"""A VM whose every state can be told apart, stepped by the test."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

from colo.abc import BlockMemory, SteppedMachine

PAGE = 4096


class PageVm(SteppedMachine):
    """Each turn writes its number to pages chosen by it; the state is the number. Memory follows from the number alone."""

    def __init__(self, pages: int = 8, *, second_pages: int = 2, free_running: bool = False) -> None:
        super().__init__(BlockMemory.allocate({"ram": pages * PAGE, "rom/aux": second_pages * PAGE}))
        self.views = [block.view() for block in self.memory.blocks]
        self.pages = [pages, second_pages]
        self.turn = 0
        self.free_running = free_running
        self.lock = threading.Lock()
        self.on_save: Callable[[], None] = lambda: None
        self.on_turn: Callable[[int], None] = lambda turn: None

    def step(self) -> None:
        if self.free_running:
            self.advance()
        threading.Event().wait(0.0005)

    def advance(self) -> None:
        self.turn += 1
        write(self.views, self.pages, self.turn)
        self.on_turn(self.turn)

    def save_state(self) -> bytes:
        self.on_save()
        return struct.pack(">Q", self.turn)

    def load_state(self, state: memoryview) -> None:
        if len(state) != 8:
            raise ValueError(f"{len(state)} bytes of state, 8 are")
        self.turn = struct.unpack(">Q", state)[0]

    def image(self) -> list[bytes]:
        return [bytes(view) for view in self.views]


def write(views: list[memoryview], pages: list[int], turn: int) -> None:
    mixed = turn * 2654435761 & 0xFFFFFFFF
    for n in range(1 + mixed % 3):
        at = (mixed >> 4 * n) % pages[0]
        start = at * PAGE + (mixed >> 8) % 500 * 8
        views[0][start : start + 8] = struct.pack(">Q", turn) if mixed & 0x70 else bytes(8)
    if turn % 3 == 0:
        start = (turn // 3) % pages[1] * PAGE
        views[1][start : start + PAGE] = (b"%8d" % turn) * (PAGE // 8) if turn % 6 else bytes(PAGE)


def expected(turn: int, pages: list[int]) -> list[bytes]:
    """The memory after so many turns, computed anew."""
    memory = [bytearray(n * PAGE) for n in pages]
    for each in range(1, turn + 1):
        write([memoryview(m) for m in memory], pages, each)
    return [bytes(m) for m in memory]
