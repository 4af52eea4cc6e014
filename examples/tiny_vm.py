"""A VM in thirty lines: it fills its memory with a running count, and is followed by its dirty pages."""

import random
import time

from colo.abc import BlockMemory, SteppedMachine
from colo.memory.trackers import open_tracker


class Counter(SteppedMachine):
    """Pausing, resuming and the thread come from the base class; memory, work and state are its own."""

    def __init__(self) -> None:
        super().__init__(BlockMemory.allocate({"ram": 16 << 20}))
        self.ram = self.memory.blocks[0].view()
        self.count = 0

    def step(self) -> None:
        self.count += 1
        at = random.randrange(len(self.ram) // 8) * 8
        self.ram[at : at + 8] = self.count.to_bytes(8, "little")
        time.sleep(0.0001)

    def save_state(self) -> bytes:
        return self.count.to_bytes(8, "little")

    def load_state(self, state: memoryview) -> None:
        self.count = int.from_bytes(state, "little")


def main() -> None:
    vm, copy = Counter(), Counter()
    copy.ram[:] = vm.ram
    with open_tracker("auto", vm.memory) as tracker:
        vm.resume()
        for n in range(10):
            time.sleep(0.1)
            bitmaps = tracker.new_bitmaps()
            with vm.paused():
                pages = tracker.harvest(bitmaps)
                for first, run in bitmaps[0].runs():
                    where = slice(first * 4096, (first + run) * 4096)
                    copy.ram[where] = vm.ram[where]
                copy.load_state(memoryview(vm.save_state()))
                same = copy.ram == vm.ram
            print(f"checkpoint {n}: count {copy.count}, {pages} dirty pages by {tracker.name}, equal: {same}")
    vm.close()


if __name__ == "__main__":
    main()
