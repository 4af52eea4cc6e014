"""Captures the streams kept here from real, unmodified QEMUs: ``python tests/vectors/capture.py [NAME...]``.

Every vector's command is in VECTORS. VMs are tiny, their BIOS is 64 KiB of zeros (nothing needs to run), and files are
compressed with xz, so that all of them together stay small. COLO channels hold what the primary sent, from the file header
on: this script plays the secondary, acknowledges some checkpoints, and hangs up.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QEMU_DIR = Path(os.environ.get("COLO_QEMU_DIR", HERE.parents[1] / ".qemu"))
QEMUS = {
    "7.2": "qemu-system-x86_64",
    "10.0": str(QEMU_DIR / "10.0/qemu-system-x86_64"),
    "11.1": str(QEMU_DIR / "11.1/qemu-system-x86_64"),
}
TCG = ("-accel", "tcg", "-S", "-m", "1")
UUID = "5a0f1c8e-9b3d-4a57-8c21-0d6e7f4b9a10"
DEVICES = ["-m", "2", "-smp", "3", "-vga", "std", "-serial", "null", "-parallel", "null", "-device", "virtio-net-pci,romfile=", "-device", "e1000,romfile=", "-drive", "if=none,id=d,file=null-co://,format=raw", "-device", "virtio-blk-pci,drive=d", "-device", "virtio-serial-pci", "-device", "virtconsole", "-device", "qemu-xhci", "-device", "usb-tablet", "-device", "usb-hub", "-device", "lsi53c895a", "-drive", "if=none,id=e,file=null-co://,format=raw", "-device", "scsi-hd,drive=e", "-device", "ich9-ahci", "-device", "virtio-balloon-pci", "-device", "virtio-rng-pci", "-device", "virtio-scsi-pci", "-device", "virtio-keyboard-pci", "-device", "rtl8139,romfile=", "-device", "piix3-usb-uhci", "-device", "vmxnet3,romfile=", "-device", "i6300esb", "-device", "vmcoreinfo"]


@dataclass(frozen=True)
class Vector:
    """One capture: QEMU's release, its arguments, capabilities, and how many COLO checkpoints are acknowledged."""

    release: str
    arguments: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    checkpoints: int = 0
    ram_file: bool = False
    parameters: dict[str, int] = field(default_factory=dict)


def _colo(release: str, *capabilities: str) -> Vector:
    return Vector(
        release, ("-accel", "kvm", "-M", "pc", "-m", "1"), ("x-colo", *capabilities), checkpoints=3,
        parameters={"x-checkpoint-delay": 50},
    )


VECTORS: dict[str, Vector] = {
    "7.2-none": Vector("7.2", ("-accel", "tcg", "-S", "-M", "none", "-m", "1")),
    "7.2-pc": Vector("7.2", (*TCG, "-M", "pc")),
    "7.2-isapc": Vector("7.2", (*TCG, "-M", "isapc")),
    "7.2-microvm": Vector("7.2", (*TCG, "-M", "microvm")),
    "7.2-pc-suppress-vmdesc": Vector("7.2", (*TCG, "-M", "pc,suppress-vmdesc=on")),
    "7.2-pc-ignore-shared": Vector(
        "7.2", (*TCG, "-M", "pc,memory-backend=pc.ram", "-uuid", UUID), ("x-ignore-shared", "validate-uuid"), ram_file=True),
    "7.2-q35-devices": Vector("7.2", (*TCG, "-M", "q35", *DEVICES)),
    "10.0-q35-devices": Vector("10.0", (*TCG, "-M", "q35", *DEVICES)),
    "11.1-q35-devices": Vector("11.1", (*TCG, "-M", "q35", *DEVICES)),
    "7.2-colo": _colo("7.2"),
    "7.2-colo-xbzrle": _colo("7.2", "xbzrle"),
    "10.0-colo": _colo("10.0"),
    "11.1-colo": _colo("11.1", "return-path"),
}


class Monitor:
    """QMP, as much of it as is needed here."""

    def __init__(self, path: Path) -> None:
        for _ in range(200):
            try:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.connect(str(path))
                break
            except OSError:
                self._socket.close()
                time.sleep(0.05)
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


def capture(vector: Vector, directory: Path) -> bytes:
    """Run the QEMU and return what it sent."""
    bios = directory / "bios"
    bios.write_bytes(bytes(1 << 16))
    monitor_path, stream_path = directory / "qmp", directory / "stream"
    arguments = list(vector.arguments)
    if "none" not in arguments:
        arguments += ["-bios", str(bios)]
    if vector.ram_file:
        arguments += ["-object", f"memory-backend-file,id=pc.ram,size=1M,share=on,mem-path={directory / 'ram'}"]
    process = subprocess.Popen([
        QEMUS[vector.release], "-nodefaults", "-display", "none", "-qmp", f"unix:{monitor_path},server=on,wait=off",
        *arguments,
    ])
    try:
        monitor = Monitor(monitor_path)
        monitor("migrate-set-capabilities",
                capabilities=[{"capability": name, "state": True} for name in vector.capabilities])
        if vector.parameters:
            monitor("migrate-set-parameters", **vector.parameters)
        if vector.checkpoints:
            with socket.create_server(("127.0.0.1", 0)) as server:
                monitor("migrate", uri=f"tcp:127.0.0.1:{server.getsockname()[1]}")
                channel, _ = server.accept()
            with channel:
                return follow(channel, vector)
        monitor("migrate", uri=f"exec:cat > {stream_path}")
        while (status := monitor("query-migrate").get("status")) != "completed":
            if status == "failed":
                raise RuntimeError("the migration failed")
            time.sleep(0.05)
        return stream_path.read_bytes()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def follow(channel: socket.socket, vector: Vector) -> bytes:
    """Play the secondary of a COLO channel for some checkpoints and return what the primary sent."""
    from colo._fast.buffers import ReadBuffer
    from colo._fast.pagedecoder import EOS, PageDecoder
    from colo._fast.ramblock import RamBlock
    from colo._fast.staging import Staging
    from colo.stream import LiveSection, StreamReader, parse_mem_size
    from colo.wire import ColoMessage, ReturnPath

    got = bytearray()
    inner, outer = socket.socketpair()
    buf = ReadBuffer(inner.fileno())
    decoder = PageDecoder(Staging(), immediate=True)
    reader = StreamReader(buf)

    def pump() -> None:
        with contextlib.suppress(OSError):
            while data := channel.recv(1 << 16):
                got.extend(data)
                outer.sendall(data)

    threading.Thread(target=pump, daemon=True).start()

    def read(items: StreamReader) -> None:
        for item in items:
            if isinstance(item, LiveSection):
                while (total := decoder.decode(buf)) != EOS:
                    decoder.set_blocks([RamBlock(i.idstr, i.used_length) for i in parse_mem_size(buf, total)])

    def say(message: ColoMessage) -> None:
        channel.sendall(message.to_bytes(4, "big"))

    read(reader)
    if "return-path" in vector.capabilities:
        channel.sendall(ReturnPath.SHUT.to_bytes(2, "big") + (4).to_bytes(2, "big") + bytes(4))
    say(ColoMessage.CHECKPOINT_READY)
    started = reader.live_sections
    for _ in range(vector.checkpoints):
        assert buf.read_u32() == ColoMessage.CHECKPOINT_REQUEST
        say(ColoMessage.CHECKPOINT_REPLY)
        assert buf.read_u32() == ColoMessage.VMSTATE_SEND
        read(StreamReader.live_state(buf, started=started))
        assert buf.read_u32() == ColoMessage.VMSTATE_SIZE
        buf.skip(buf.read_u64())
        end = buf.position
        say(ColoMessage.VMSTATE_RECEIVED)
        say(ColoMessage.VMSTATE_LOADED)
    channel.shutdown(socket.SHUT_RDWR)
    return bytes(got[:end])


def main(names: list[str]) -> None:
    """Capture the named vectors, or all."""
    for name in names or VECTORS:
        with tempfile.TemporaryDirectory(prefix="colo-vector-") as directory:
            data = capture(VECTORS[name], Path(directory))
        packed = lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)
        (HERE / f"{name}.stream.xz").write_bytes(packed)
        print(f"{name}: {len(data)} bytes, {len(packed)} compressed")


if __name__ == "__main__":
    main(sys.argv[1:])
