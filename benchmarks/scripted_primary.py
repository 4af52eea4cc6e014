"""A primary without a VM: sends checkpoint after checkpoint over a real socket, as fast as the secondary takes them.

Its RAM is an array; each checkpoint changes some pages (a few bytes, all bytes, or to zero), which go out as XBZRLE,
raw and zero records. Device state is of the size and the devices that QEMU 7.2's ``pc`` has.
"""

from __future__ import annotations

import random
import socket
import struct
from typing import Self

import numpy as np

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.send.pagecache import ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo.stream import RamBlockInfo, writer
from colo.wire import ColoMessage, Command

PAGE_BYTES = 4096
RAM_SECTION_ID = 2
TIMEOUT_S = 60.0
DEVICES = (
    ("timer", 0, 2, 24), ("slirp", 0, 4, 190), ("cpu_common", 0, 1, 8), ("cpu", 0, 12, 6200), ("kvm-tpr-opt", 0, 1, 420),
    ("apic", 0, 3, 190), ("kvmclock", 0, 1, 9), ("fw_cfg", 0, 2, 32), ("PCIBUS", 0, 1, 24), ("0000:00:00.0/I440FX", 0, 3, 320),
    ("0000:00:01.0/PIIX3", 0, 3, 300), ("i8259", 0, 1, 30), ("i8259", 1, 1, 30), ("ioapic", 0, 3, 240), ("hpet", 0, 2, 140),
    ("mc146818rtc", 0, 3, 180), ("i8254", 0, 3, 120), ("pcspk", 0, 1, 4), ("dma", 0, 1, 80), ("dma", 1, 1, 80),
    ("port92", 0, 1, 2), ("0000:00:01.1/ide", 0, 3, 2900), ("i2c_bus", 0, 1, 2), ("0000:00:01.3/piix4_pm", 0, 3, 600),
    ("acpi_build", 0, 1, 1), ("globalstate", 0, 1, 110),
)
"""(idstr, instance, version, body bytes)."""


class ScriptedPrimary:
    """Connects to the secondary at ``address`` and sends it the first copy of ``ram_bytes`` of RAM."""

    def __init__(self, address: tuple[str, int], ram_bytes: int, *, seed: int = 1) -> None:
        self.pages = ram_bytes // PAGE_BYTES
        self.random = random.Random(seed)
        self._bytes = np.random.default_rng(seed)
        self.ram = self._bytes.integers(0, 256, (self.pages, PAGE_BYTES), np.uint8)
        self.checkpoints = 0
        self._blocks = [RamBlockInfo("pc.ram", ram_bytes)]
        self._shadow = ShadowCache(self.pages)
        self._socket = socket.create_connection(address, timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(True)
        self._encoder = PageEncoder(self._socket)
        self._send_first_copy()

    def _send_first_copy(self) -> None:
        encoder = self._encoder
        encoder.write(writer.file_header() + writer.configuration("pc-i440fx-7.2") + writer.command(Command.ENABLE_COLO))
        self._send_ram(None)
        encoder.write(self._device_state(), flush=True)
        self._expect(ColoMessage.CHECKPOINT_READY)

    def _send_ram(self, bitmap: DirtyBitmap | None) -> None:
        encoder = self._encoder
        encoder.write(writer.ram_start_section(RAM_SECTION_ID, self._blocks) + writer.section_end(RAM_SECTION_ID))
        encoder.begin_block("pc.ram", self.ram.reshape(-1), bitmap, self._shadow)
        encoder.encode(flush=False)
        encoder.end_section(flush=False)
        encoder.write(writer.section_footer(RAM_SECTION_ID))

    def _device_state(self) -> bytes:
        sections = (
            writer.device_section(
                RAM_SECTION_ID + 1 + nth, idstr, self.random.randbytes(size), instance_id=instance, version_id=version)
            for nth, (idstr, instance, version, size) in enumerate(DEVICES)
        )
        return b"".join(sections) + writer.end_of_stream()

    def change(self, pages: int) -> DirtyBitmap:
        """Change about ``pages`` pages: half of them in a few bytes, most others wholly, some to zero."""
        numbers = np.unique(self._bytes.integers(0, self.pages, pages))
        bitmap = DirtyBitmap(self.pages)
        bitmap.set_pages(numbers.astype(np.uint64))
        self._bytes.shuffle(numbers)
        few, whole, zero = np.split(numbers, [len(numbers) // 2, len(numbers) * 9 // 10])
        self.ram[few, self._bytes.integers(0, PAGE_BYTES, len(few))] += np.uint8(1)
        self.ram[whole] = self._bytes.integers(0, 256, (len(whole), PAGE_BYTES), np.uint8)
        self.ram[zero] = 0
        return bitmap

    def checkpoint(self, bitmap: DirtyBitmap) -> None:
        """Send one checkpoint with the pages in ``bitmap`` and see it acknowledged."""
        self._socket.sendall(message(ColoMessage.CHECKPOINT_REQUEST))
        self._expect(ColoMessage.CHECKPOINT_REPLY)
        self._encoder.write(message(ColoMessage.VMSTATE_SEND))
        self._send_ram(bitmap)
        blob = self._device_state()
        size = message(ColoMessage.VMSTATE_SIZE) + struct.pack(">Q", len(blob))
        self._encoder.write(writer.end_of_stream() + size + blob, flush=True)
        self._expect(ColoMessage.VMSTATE_RECEIVED)
        self._expect(ColoMessage.VMSTATE_LOADED)
        self.checkpoints += 1

    def _expect(self, kind: ColoMessage) -> None:
        got = self._socket.recv(4, socket.MSG_WAITALL)
        if got != message(kind):
            raise RuntimeError(f"the secondary answered {got.hex() or 'EOF'}, not {kind.name}")

    def close(self) -> None:
        self._encoder.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def message(kind: ColoMessage) -> bytes:
    """A COLO message without its value."""
    return struct.pack(">I", kind)
