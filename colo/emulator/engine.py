"""The CPU itself: Unicorn, with the machine's memory mapped as it lies, and registers of devices.

Memory is not copied: the guest writes to the VM's own RAM block, through code that Unicorn translates in this process.
A tracker that watches the pages of this process (``pagemap``, ``softdirty``) therefore sees the guest's writes.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colo.emulator.cpu import Cpu
from colo.errors import Unsupported, VmError

if TYPE_CHECKING:
    from typing_extensions import Buffer

NOWHERE = (1 << 64) - 4
"""Unicorn ends silently at an address given to it; no code is here."""
FPEN = 0b11 << 20
"""CPACR_EL1: vector registers are allowed."""


@dataclass(frozen=True, slots=True)
class Registers:
    """A device's registers, of 32 bits at most: ``write(offset, value)``, KeyError for an offset there is none at. None can
    be read."""

    name: str
    address: int
    write: Callable[[int, int], None]


def load_unicorn() -> Any:
    """The module. Raises Unsupported, with the command to install it."""
    try:
        unicorn: Any = importlib.import_module("unicorn")
    except ImportError as error:
        raise Unsupported(
            f"the embedded VM needs the Unicorn CPU emulator: pip install 'colo-vm[demo]' (or: pip install "
            f"'unicorn>=2.1'): {error}"
        ) from error
    version = tuple(unicorn.uc_version()[:2])
    if version < (2, 1):
        raise Unsupported(f"the embedded VM needs Unicorn 2.1; this is {version[0]}.{version[1]}: pip install -U unicorn")
    return unicorn


class Engine:
    """An ARM64 CPU at EL1. ``ram``: a writable buffer of whole pages, mapped at ``ram_address``. One thread at a time.

    Raises Unsupported when Unicorn is missing, or cannot map the memory.
    """

    def __init__(self, ram: Buffer, ram_address: int, devices: list[Registers]) -> None:
        uc = load_unicorn()
        names: Any = importlib.import_module("unicorn.arm64_const")

        self._error = uc.UcError
        self._fault: str | None = None
        self._ram_address = ram_address
        self._held = (ctypes.c_char * len(memoryview(ram).cast("B"))).from_buffer(ram)
        """Keeps the memory where it is: an mmap with such a view cannot be closed or resized."""
        self._x = [getattr(names, f"UC_ARM64_REG_X{n}") for n in range(31)]
        self._system = [
            getattr(names, f"UC_ARM64_REG_{name}") for name in ("SP", "PC", "NZCV", "TPIDR_EL0", "TPIDR_EL1")]
        self._vectors = [getattr(names, f"UC_ARM64_REG_Q{n}") for n in range(32)]
        self._float = [names.UC_ARM64_REG_FPCR, names.UC_ARM64_REG_FPSR]
        self._all = [*self._x, *self._system, *self._float, *self._vectors]
        self._pc = names.UC_ARM64_REG_PC
        self._uc = uc.Uc(uc.UC_ARCH_ARM64, uc.UC_MODE_ARM)
        try:
            self._uc.mem_map_ptr(
                ram_address, len(self._held), uc.UC_PROT_ALL, ctypes.addressof(self._held))
            for device in devices:
                self._uc.mmio_map(device.address, 4096, self._read_of(device), None, self._write_of(device), None)
            self._uc.reg_write(names.UC_ARM64_REG_CPACR_EL1, FPEN)
            self._uc.hook_add(uc.UC_HOOK_MEM_INVALID, self._unmapped)
        except uc.UcError as error:
            raise Unsupported(f"Unicorn cannot make this machine: {error}") from error
        self._kinds = {
            uc.UC_MEM_READ_UNMAPPED: "a read", uc.UC_MEM_WRITE_UNMAPPED: "a write", uc.UC_MEM_FETCH_UNMAPPED: "a fetch"}

    def run(self, instructions: int) -> None:
        """Run so many instructions, or until a WFI or :meth:`stop`. Raises VmError when the guest does what it may not."""
        self._fault = None
        try:
            self._uc.emu_start(self.pc, NOWHERE, count=instructions)
        except self._error as error:
            raise VmError(f"the guest stopped at pc {self.pc:#x}: {self._fault or error}") from error
        if self._fault is not None:
            raise VmError(f"the guest stopped at pc {self.pc:#x}: {self._fault}")

    def stop(self) -> None:
        """From a device's register: run no further. The pc stays at the instruction that wrote it."""
        self._uc.emu_stop()

    def close(self) -> None:
        """Let go of the memory."""
        self._uc.mem_unmap(self._ram_address, len(self._held))
        del self._held

    @property
    def pc(self) -> int:
        return int(self._uc.reg_read(self._pc))

    def save(self, cpu: Cpu) -> None:
        """The registers, into ``cpu``."""
        values = self._uc.reg_read_batch(self._all)
        cpu.x = list(values[:31])
        cpu.sp, cpu.pc, cpu.nzcv, cpu.tpidr_el0, cpu.tpidr_el1, cpu.fpcr, cpu.fpsr = values[31:38]
        cpu.q = [half for q in values[38:] for half in (q & (1 << 64) - 1, q >> 64)]

    def load(self, cpu: Cpu) -> None:
        """The registers, from ``cpu``. What was translated before is forgotten: memory may have changed with them."""
        self._uc.ctl_flush_tb()
        for register, value in zip(self._x, cpu.x, strict=True):
            self._uc.reg_write(register, value)
        for register, value in zip(
            self._system, (cpu.sp, cpu.pc, cpu.nzcv, cpu.tpidr_el0, cpu.tpidr_el1), strict=True
        ):
            self._uc.reg_write(register, value)
        for n, register in enumerate(self._vectors):
            self._uc.reg_write(register, cpu.q[2 * n] | cpu.q[2 * n + 1] << 64)
        for register, value in zip(self._float, (cpu.fpcr, cpu.fpsr), strict=True):
            self._uc.reg_write(register, value)

    def _read_of(self, device: Registers) -> Callable[..., int]:
        def read(_uc: Any, offset: int, size: int, _data: Any) -> int:
            self._refuse(f"a read of {size} bytes at {device.name}+{offset:#x}, where no register can be read")
            return 0

        return read

    def _write_of(self, device: Registers) -> Callable[..., None]:
        def write(_uc: Any, offset: int, size: int, value: int, _data: Any) -> None:
            try:
                device.write(offset, value)
            except KeyError:
                self._refuse(f"a write of {size} bytes at {device.name}+{offset:#x}, where no register is")

        return write

    def _refuse(self, what: str) -> None:
        self._fault = self._fault or what
        self._uc.emu_stop()

    def _unmapped(self, _uc: Any, access: int, address: int, size: int, _value: int, _data: Any) -> bool:
        self._fault = f"{self._kinds.get(access, 'an access')} of {size} bytes at {address:#x}, where nothing is mapped"
        return False
