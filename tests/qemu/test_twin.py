"""A stand-by's twin takes nothing that the primary or the stand-by has, and what a guest sees of it is the same."""

from __future__ import annotations

import shlex
import stat
from pathlib import Path

import pytest

from colo.errors import QemuUnsupported
from colo.qemu.command_line import StandbyCommand, derive_standby
from colo.qemu.twin import LOW_BYTES, disks_taken_at_activation, rehearsal_command, twin_command

RAM_BYTES = 64 << 20


def twin(line: str, directory: Path) -> str:
    return shlex.join(twin_command(StandbyCommand(tuple(shlex.split(line))), directory).argv).partition("qemu ")[2]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("-serial file:/tmp/x", "-serial null"),
        ("-serial unix:/tmp/x,server=on", "-serial null"),
        ("-serial chardev:c", "-serial chardev:c"),
        ("-chardev socket,id=c,path=/x,server=on,mux=on", "-chardev null,id=c,mux=on"),
        ("-chardev spicevmc,id=c,name=vdagent", "-chardev null,id=c"),
        ("-netdev user,id=n,hostfwd=tcp::2222-:22,net=10.1.0.0/24", "-netdev user,id=n,net=10.1.0.0/24"),
        ("-netdev tap,id=n,ifname=tap0,script=/up,vhost=on,queues=4",
         "-netdev tap,id=n,vhost=on,queues=4,script=no,downscript=no"),
        ("-netdev bridge,id=n,br=br0", "-netdev tap,id=n,script=no,downscript=no"),
        ("-netdev socket,id=n,listen=:1234", "-netdev hubport,id=n,hubid=0"),
        ("-nic tap,ifname=t,model=e1000,mac=1:2:3:4:5:6", "-nic tap,model=e1000,mac=1:2:3:4:5:6,script=no,downscript=no"),
        ("-nic none", "-nic none"),
        ("-vnc :0", ""),
        ("-spice port=5900", ""),
        ("-overcommit mem-lock=on", ""),
        ("-audiodev pa,id=a,server=x", "-audiodev none,id=a"),
        ("-object input-linux,id=i,evdev=/dev/input/event0", ""),
        ("-object memory-backend-ram,id=m,size=1G,prealloc=on,host-nodes=0", "-object memory-backend-ram,id=m,size=1G"),
        ("-device virtio-net-pci,netdev=n", "-device virtio-net-pci,netdev=n"),
    ],
)
def test_what_is_the_host_s_is_left_out(option: str, expected: str, tmp_path: Path) -> None:
    assert twin(f"qemu {option} -incoming defer", tmp_path) == f"{expected} -incoming defer -display none -S".lstrip()


@pytest.mark.parametrize(
    "option",
    ["-netdev vhost-user,id=n,chardev=c", "-device vhost-vsock-pci,guest-cid=3", "-device vfio-pci,host=01:00.0",
     "-tpmdev emulator,id=t,chardev=c", "-device usb-host,vendorid=1"],
)
def test_what_only_one_qemu_can_have_is_said(option: str, tmp_path: Path) -> None:
    with pytest.raises(QemuUnsupported, match=option.split(maxsplit=1)[0]):
        twin(f"qemu {option}", tmp_path)


def test_its_ram_is_a_hole_but_for_the_lowest_mib(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(b"\xaa" * (2 * LOW_BYTES))
        file.truncate(RAM_BYTES)
    before = image.stat()
    standby = derive_standby(["qemu-system-x86_64", "-m", "64"], ram_files={"pc.ram": image}, blocks=[("pc.ram", RAM_BYTES)])
    command = twin_command(standby, tmp_path)
    path = command.shared["pc.ram"]
    facts = path.stat()
    assert (facts.st_size, stat.S_IMODE(facts.st_mode)) == (RAM_BYTES, 0o600)
    assert facts.st_blocks * 512 <= 2 * LOW_BYTES
    with path.open("rb") as file:
        assert file.read(LOW_BYTES) == b"\xaa" * LOW_BYTES
        assert file.read(4096) == bytes(4096)
    assert not any(str(image) in word for word in command.argv)
    assert any(f"mem-path={path}" in word and "share=on" in word for word in command.argv)
    after = image.stat()
    assert (after.st_blocks, after.st_mtime_ns) == (before.st_blocks, before.st_mtime_ns)


def test_a_rehearsal_takes_no_memory(tmp_path: Path) -> None:
    line = ("qemu -m 4G -object memory-backend-file,id=m,size=4G,mem-path=/dev/hugepages,prealloc=on "
            "-machine pc,memory-backend=m -overcommit mem-lock=on -vnc :0")
    words = rehearsal_command(StandbyCommand(tuple(shlex.split(line)))).argv
    assert shlex.join(words) == (
        "qemu -m 4G -object memory-backend-ram,id=m,size=4G,reserve=off -machine pc,memory-backend=m -vnc :0 -S")


def test_a_rehearsal_makes_no_unix_sockets() -> None:
    line = ("qemu -chardev socket,id=c,path=/x,server=on,wait=off -chardev socket,id=d,path=/y -chardev "
            "socket,id=e,host=h,port=1,server=on -serial unix:/z,server=on -serial tcp::1,server=on")
    words = rehearsal_command(StandbyCommand(tuple(shlex.split(line)))).argv
    assert shlex.join(words) == (
        "qemu -chardev null,id=c -chardev socket,id=d,path=/y -chardev socket,id=e,host=h,port=1,server=on -serial null "
        "-serial tcp::1,server=on -S")


def test_disks_that_are_locked_only_at_a_takeover_are_named() -> None:
    line = ("qemu -drive file=/a,if=virtio -blockdev driver=qcow2,node-name=b,file.driver=file,file.filename=/b "
            "-drive file=/iso,media=cdrom -drive file=/ro,readonly=on -hda /c -drive if=none,file=null-co:// /d")
    assert disks_taken_at_activation(shlex.split(line)) == ["/a", "/b", "/c", "/d"]
