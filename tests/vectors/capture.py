"""Captures the streams kept here from real, unmodified QEMUs: ``python tests/vectors/capture.py [NAME...]``.

Every vector's command is in VECTORS. VMs are tiny, their BIOS is 64 KiB of zeros (nothing needs to run), and
files are compressed with xz, so that all of them together stay small. COLO channels hold what the primary
sent, from the file header on: this script plays the secondary, acknowledges some checkpoints, and hangs up.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import shlex
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
INSPECT = "inspect"
UUID = "5a0f1c8e-9b3d-4a57-8c21-0d6e7f4b9a10"
DEVICES = tuple(
    shlex.split("""
    -m 2 -smp 3 -vga std -serial null -parallel null -device virtio-net-pci,romfile= -device
    e1000,romfile= -drive if=none,id=d,file=null-co://,format=raw -device virtio-blk-pci,drive=d -device
    virtio-serial-pci -device virtconsole -device qemu-xhci -device usb-tablet -device usb-hub -device
    lsi53c895a -drive if=none,id=e,file=null-co://,format=raw -device scsi-hd,drive=e -device ich9-ahci
    -device virtio-balloon-pci -device virtio-rng-pci -device virtio-scsi-pci -device virtio-keyboard-pci
    -device rtl8139,romfile= -device piix3-usb-uhci -device vmxnet3,romfile= -device i6300esb -device
    vmcoreinfo
""")
)


@dataclass(frozen=True)
class Vector:
    """One capture: QEMU's release, its arguments, capabilities, and how many COLO checkpoints are
    acknowledged."""

    release: str
    arguments: tuple[str, ...]
    capabilities: tuple[str, ...] = ()
    checkpoints: int = 0
    ram_file: bool = False
    parameters: dict[str, int] = field(default_factory=dict)
    target: str = "x86_64"
    """Of another machine: the BIOS of zeros is given to those that take one."""
    disk: bool = False
    """An empty qcow2 image is the node ``n0``."""
    bitmap: bool = False
    """The disk has the dirty bitmap ``bm0``."""
    how: str = "stream"
    """``file``: by a ``file:`` URI; ``snapshot``: what is kept is the image with an internal snapshot ``snap``."""
    folder: str = ""
    """``inspect``: what `colo inspect` reads, and a session refuses by name."""


def _colo(release: str, *capabilities: str) -> Vector:
    return Vector(
        release,
        ("-accel", "kvm", "-M", "pc", "-m", "1"),
        ("x-colo", *capabilities),
        checkpoints=3,
        parameters={"x-checkpoint-delay": 50},
    )


VECTORS: dict[str, Vector] = {
    "7.2-none": Vector("7.2", ("-accel", "tcg", "-S", "-M", "none", "-m", "1")),
    "7.2-pc": Vector("7.2", (*TCG, "-M", "pc")),
    "7.2-isapc": Vector("7.2", (*TCG, "-M", "isapc")),
    "7.2-microvm": Vector("7.2", (*TCG, "-M", "microvm")),
    "7.2-pc-suppress-vmdesc": Vector("7.2", (*TCG, "-M", "pc,suppress-vmdesc=on")),
    "7.2-pc-ignore-shared": Vector(
        "7.2",
        (*TCG, "-M", "pc,memory-backend=pc.ram", "-uuid", UUID),
        ("x-ignore-shared", "validate-uuid"),
        ram_file=True,
    ),
    "7.2-q35-devices": Vector("7.2", (*TCG, "-M", "q35", *DEVICES)),
    "10.0-q35-devices": Vector("10.0", (*TCG, "-M", "q35", *DEVICES)),
    "11.1-q35-devices": Vector("11.1", (*TCG, "-M", "q35", *DEVICES)),
    # Pages of 1 KiB: the first two say so in the vmdesc only, the fourth has 4 KiB and says so up front.
    "7.2-mps2": Vector("7.2", ("-accel", "tcg", "-S", "-M", "mps2-an385"), target="arm", folder=INSPECT),
    "7.2-virt-2.6": Vector(
        "7.2", ("-accel", "tcg", "-S", "-m", "64", "-M", "virt-2.6", "-cpu", "cortex-a57"), target="aarch64", folder=INSPECT
    ),
    "7.2-virt": Vector(
        "7.2", ("-accel", "tcg", "-S", "-m", "64", "-M", "virt", "-cpu", "cortex-a57"), target="aarch64", folder=INSPECT
    ),
    # Live sections beside ram.
    "7.2-s390": Vector("7.2", ("-accel", "tcg", "-S", "-m", "16", "-M", "s390-ccw-virtio"), target="s390x", folder=INSPECT),
    "7.2-pseries": Vector("7.2", ("-accel", "tcg", "-S", "-m", "256", "-M", "pseries"), target="ppc64", folder=INSPECT),
    "7.2-dirty-bitmap": Vector(
        "7.2",
        (*TCG, "-M", "pc", "-device", "virtio-blk-pci,drive=n0"),
        ("dirty-bitmaps",),
        disk=True,
        bitmap=True,
        parameters={"max-bandwidth": 1 << 20},  # else it has 70,000 empty parts
        folder=INSPECT,
    ),
    # Neither CONFIGURATION nor footers.
    "7.2-pc-2.3": Vector("7.2", (*TCG, "-M", "pc-i440fx-2.3"), folder=INSPECT),
    "10.0-mapped-ram": Vector("10.0", (*TCG, "-M", "microvm"), ("mapped-ram",), how="file", folder=INSPECT),
    "11.1-mapped-ram": Vector("11.1", (*TCG, "-M", "microvm"), ("mapped-ram",), how="file", folder=INSPECT),
    "11.1-mapped-ram-multifd": Vector(
        "11.1", (*TCG, "-M", "microvm"), ("mapped-ram", "multifd"), how="file", folder=INSPECT
    ),
    "7.2-snapshot": Vector(
        "7.2", (*TCG, "-M", "pc", "-device", "virtio-blk-pci,drive=n0"), disk=True, how="snapshot", folder=INSPECT
    ),
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
    if "none" not in arguments and vector.target in ("x86_64", "ppc64"):
        arguments += ["-bios", str(bios)]
    disk = directory / "disk.qcow2"
    if vector.disk:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
        arguments += ["-blockdev", f"driver=qcow2,node-name=n0,file.driver=file,file.filename={disk}"]
    if vector.ram_file:
        arguments += [
            "-object",
            f"memory-backend-file,id=pc.ram,size=1M,share=on,mem-path={directory / 'ram'}",
        ]
    process = subprocess.Popen(
        [
            QEMUS[vector.release].replace("x86_64", vector.target),
            "-nodefaults",
            "-display",
            "none",
            "-qmp",
            f"unix:{monitor_path},server=on,wait=off",
            *arguments,
        ]
    )
    try:
        monitor = Monitor(monitor_path)
        monitor(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in vector.capabilities],
        )
        if vector.parameters:
            monitor("migrate-set-parameters", **vector.parameters)
        if vector.checkpoints:
            with socket.create_server(("127.0.0.1", 0)) as server:
                monitor("migrate", uri=f"tcp:127.0.0.1:{server.getsockname()[1]}")
                channel, _ = server.accept()
            with channel:
                return follow(channel, vector)
        if vector.bitmap:
            monitor("block-dirty-bitmap-add", node="n0", name="bm0")
        if vector.how == "snapshot":
            save_snapshot(monitor)
            monitor("quit")
            process.wait(20)
            return disk.read_bytes()
        uri = f"file:{stream_path}" if vector.how == "file" else f"exec:cat > {stream_path}"
        monitor("migrate", uri=uri)
        while (status := monitor("query-migrate").get("status")) != "completed":
            if status == "failed":
                raise RuntimeError("the migration failed")
            time.sleep(0.05)
        return stream_path.read_bytes()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def save_snapshot(monitor: Monitor) -> None:
    """An internal snapshot of the VM in its disk image."""
    monitor("snapshot-save", **{"job-id": "save", "tag": "snap", "vmstate": "n0", "devices": ["n0"]})
    while (job := monitor("query-jobs")[0])["status"] != "concluded":
        time.sleep(0.05)
    if "error" in job:
        raise RuntimeError(job["error"])


def follow(channel: socket.socket, vector: Vector) -> bytes:
    """Play the secondary of a COLO channel for some checkpoints and return what the primary sent."""
    from colo._fast.kernels.ramblock import RamBlock
    from colo._fast.receive.buffers import ReadBuffer
    from colo._fast.receive.pagedecoder import EOS, PageDecoder
    from colo._fast.receive.staging import Staging
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
        (HERE / VECTORS[name].folder / f"{name}.stream.xz").write_bytes(packed)
        print(f"{name}: {len(data)} bytes, {len(packed)} compressed")


if __name__ == "__main__":
    main(sys.argv[1:])
