"""The embedded VM: RAM, a CPU, a console and a timer.

::

    0x0900_0000  console   +0 DATA (w)
    0x0901_0000  timer     +0 WAIT (w), +8 OFF (w)
    0x4000_0000  RAM

What it computes and prints depends on its state alone: not on the clock, nor on where steps end.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import Self

from colo.abc import BlockMemory, SteppedMachine
from colo.emulator import console, timer
from colo.emulator.console import CONSOLE, Console
from colo.emulator.cpu import CPU, Cpu
from colo.emulator.engine import Engine, Registers, load_unicorn
from colo.emulator.timer import TIMER, Timer
from colo.errors import StreamError
from colo.vmstate import Registry

RAM_ADDRESS = 0x4000_0000
CONSOLE_ADDRESS = 0x0900_0000
TIMER_ADDRESS = 0x0901_0000
RAM_MAX_BYTES = 1 << 40
STEP_INSTRUCTIONS = 50_000
"""About a millisecond: a pause waits so long at most."""
FULL_WAIT_S = 0.001
LATE_S = 0.25
"""A machine that is later than this does not try to catch up."""


class Devices:
    """All device state of one machine, and its sections: ``cpu``, ``console``, ``timer``."""

    def __init__(self) -> None:
        self.cpu = Cpu()
        self.console = Console()
        self.timer = Timer()
        self.registry = Registry()
        self.registry.register(CPU, self.cpu)
        self.registry.register(CONSOLE, self.console)
        self.registry.register(TIMER, self.timer)

    @classmethod
    def from_state(cls, state: memoryview) -> Self:
        """Devices in that state. Raises ValueError."""
        devices = cls()
        try:
            loaded = devices.registry.load(state)
        except StreamError as error:
            raise ValueError(f"this is no state of an embedded VM: {error}") from error
        missing = {s.idstr for s in devices.registry} - {s.idstr for s in loaded}
        if missing:
            raise ValueError(f"this is no state of an embedded VM: it has no section {', '.join(sorted(missing))}")
        return devices


class EmbeddedVm(SteppedMachine):
    """A VM of ``ram_bytes`` of memory (whole pages of 4096 bytes), one RAM block ``ram``, made switched off and paused.

    ``tick_s``: how long a tick of its timer lasts; 0: it never waits. ``on_load`` is called when a state was loaded, before
    the machine runs. Once the guest has done what it may not, the machine stands still, :attr:`failure` is the VmError that
    says what, and :meth:`resume` raises. Raises Unsupported when Unicorn is missing.
    """

    memory: BlockMemory

    def __init__(self, ram_bytes: int, *, tick_s: float = 0.0, on_load: Callable[[], None] = lambda: None) -> None:
        if not 0 < ram_bytes <= RAM_MAX_BYTES or ram_bytes % 4096:
            raise ValueError(f"{ram_bytes} bytes of RAM: a multiple of 4096, at most {RAM_MAX_BYTES}")
        load_unicorn()
        super().__init__(BlockMemory.allocate({"ram": ram_bytes}))
        self.ram_bytes = ram_bytes
        self.tick_s = tick_s
        self.on_load = on_load
        self._devices = Devices()
        self._pausing = threading.Event()
        self._due_s = 0.0
        self._open = True
        self._engine = Engine(self.memory.blocks[0].buffer, RAM_ADDRESS, [
            Registers("console", CONSOLE_ADDRESS, self._write_console),
            Registers("timer", TIMER_ADDRESS, self._write_timer),
        ])
        atexit.register(self.close)  # the guest must not run on while the interpreter goes

    @property
    def console(self) -> Console:
        return self._devices.console

    @property
    def timer(self) -> Timer:
        return self._devices.timer

    @property
    def off(self) -> bool:
        """Whether the guest has switched the machine off."""
        return self._devices.timer.off

    def boot(self, program: bytes, arguments: list[int], *, stack_bytes: int = 8192) -> None:
        """Put a program at the start of RAM, with its arguments in x0 and up, and a stack that ends ``stack_bytes`` into
        RAM. Memory must be zeros, and the machine never have run. Raises ValueError when it does not fit."""
        if not 0 < len(program) <= stack_bytes // 2 or stack_bytes > self.ram_bytes or len(arguments) > 8:
            raise ValueError(f"a program of {len(program)} bytes with {len(arguments)} arguments does not fit")
        self.memory["ram"][: len(program)] = program
        cpu = self._devices.cpu
        cpu.x = [*arguments, *[0] * (31 - len(arguments))]
        cpu.pc, cpu.sp = RAM_ADDRESS, RAM_ADDRESS + stack_bytes
        self._engine.load(cpu)

    # -- the machine's thread

    def step(self) -> bool:
        """Run for about a millisecond, or wait for a tick, for as long."""
        devices = self._devices
        devices.console.settle()
        devices.console.flush()
        if devices.timer.off:
            return False
        if devices.console.full:
            self._pausing.wait(FULL_WAIT_S)
            return True
        if devices.timer.waiting and not self._tick():
            return True
        try:
            self._engine.run(STEP_INSTRUCTIONS)
        finally:
            devices.console.flush()
        return not devices.timer.off

    def _tick(self) -> bool:
        """Wait for the tick; False: a pause is wanted before it."""
        if self.tick_s > 0:
            now = time.monotonic()
            if now - self._due_s > LATE_S:
                self._due_s = now
            if self._due_s > now and self._pausing.wait(self._due_s - now):
                return False
            self._due_s += self.tick_s
        self._devices.timer.tick()
        return True

    def _write_console(self, offset: int, value: int) -> None:
        if offset != console.DATA:
            raise KeyError(offset)
        self._devices.console.put(value & 0xFF)

    def _write_timer(self, offset: int, _value: int) -> None:
        if offset == timer.WAIT:
            self._devices.timer.waiting = True  # the CPU stops at its WFI
        elif offset == timer.OFF:
            self._devices.timer.off = True
            self._engine.stop()
        else:
            raise KeyError(offset)

    # -- what a session asks for

    def pause(self) -> None:
        self._pausing.set()
        super().pause()

    def resume(self) -> None:
        self._pausing.clear()
        super().resume()

    def close(self) -> None:
        """Stop for good, and let go of the memory. Any number of times."""
        if self._open:
            self._open = False
            atexit.unregister(self.close)
            self._pausing.set()
            super().close()
            self._engine.close()

    def save_state(self) -> bytes:
        """The sections ``cpu``, ``console`` and ``timer``."""
        self._engine.save(self._devices.cpu)
        return self._devices.registry.save()

    def load_state(self, state: memoryview) -> None:
        """Nothing here changes before all of ``state`` was understood. Raises ValueError."""
        devices = Devices.from_state(state)
        devices.console.output = self._devices.console.output
        self._devices = devices
        self._engine.load(devices.cpu)
        self.on_load()

    def registers(self) -> Cpu:
        """The CPU's registers now; the machine must stand still."""
        self._engine.save(self._devices.cpu)
        return self._devices.cpu
