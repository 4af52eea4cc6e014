"""The stand-by's command line: derived from the primary's, and really started."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import QemuError
from colo.qemu.capabilities import capability_list
from colo.qemu.command_line import default_ram_id, derive_standby
from colo.qemu.guest import check_guest_memory
from colo.qemu.options import Properties, split_options
from colo.qemu.process import QemuProcess
from colo.qemu.standby import Standby
from tests.qemu.tiny_machine import GUEST, Machine, saved, saving_to, wait_for_lines

BLOCKS = [("pc.ram", 32 << 20), ("pc.bios", 65536)]


def derived(line: str, **options: object) -> list[str]:
    return list(derive_standby(line, **options).argv)  # type: ignore[arg-type]


def after(argv: list[str], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def test_main_memory_goes_behind_the_file() -> None:
    files = {"pc.ram": "/dev/shm/vm,1/pc.ram", "pc.bios": "/dev/shm/vm,1/pc.bios"}
    command = derive_standby("qemu -M q35,smm=off -m 32 -cpu host", ram_files=files, blocks=BLOCKS)
    argv = list(command.argv)
    assert after(argv, "-machine") == ["q35,smm=off,memory-backend=pc.ram"]
    assert after(argv, "-object") == [
        "memory-backend-file,id=pc.ram,size=33554432,mem-path=/dev/shm/vm,,1/pc.ram,share=on,dump=off"
    ]
    assert after(argv, "-m") == ["32"]
    assert after(argv, "-cpu") == ["host"]
    assert after(argv, "-incoming") == ["defer"]
    assert command.shared == {"pc.ram": Path("/dev/shm/vm,1/pc.ram")}


def test_own_backends_are_put_over_the_files_without_preallocation() -> None:
    line = (
        "qemu -machine pc,memory-backend=mem0 -m 32,slots=2,maxmem=1G "
        "-object memory-backend-memfd,id=mem0,size=32M,prealloc=on,host-nodes=0,policy=bind,share=off "
        "-object memory-backend-ram,size=16M,id=dimm1 -device pc-dimm,memdev=dimm1 -object iothread,id=io0"
    )
    files = {"mem0": "/ram/mem0", "dimm1": "/ram/dimm1"}
    command = derive_standby(line, ram_files=files, blocks=[("mem0", 32 << 20), ("dimm1", 16 << 20)])
    assert after(list(command.argv), "-object") == [
        "memory-backend-file,id=mem0,size=33554432,share=on,mem-path=/ram/mem0,dump=off",
        "memory-backend-file,size=16777216,id=dimm1,mem-path=/ram/dimm1,share=on,dump=off",
        "iothread,id=io0",
    ]
    assert set(command.shared) == {"mem0", "dimm1"}


def test_json_objects_and_canonical_ids_are_understood() -> None:
    backend = (
        '{"qom-type":"memory-backend-ram","id":"pc.ram","size":33554432,'
        '"x-use-canonical-path-for-ramblock-id":true}'
    )
    line = ["qemu", "-machine", "pc,memory-backend=pc.ram", "-object", backend]
    command = derive_standby(
        line, ram_files={"/objects/pc.ram": "/ram/a"}, blocks=[("/objects/pc.ram", 1 << 25)]
    )
    (text,) = after(list(command.argv), "-object")
    properties = Properties(text, "qom-type")
    assert properties.json
    assert properties.get("qom-type") == "memory-backend-file"
    assert properties.get("share") == "on"
    assert set(command.shared) == {"/objects/pc.ram"}


def test_numa_backends_need_no_main_backend() -> None:
    line = "qemu -M pc -m 32 -object memory-backend-ram,id=n0,size=32M -numa node,memdev=n0"
    argv = derived(line, ram_files={"n0": "/ram/n0"}, blocks=[("n0", 32 << 20)])
    assert after(argv, "-M") == ["pc"]
    assert "mem-path=/ram/n0" in after(argv, "-object")[0]


def test_what_belongs_to_the_process_is_removed() -> None:
    argv = derived(
        "qemu -daemonize -pidfile /run/p -S -qmp unix:/q,server -monitor stdio -loadvm snap "
        "-incoming tcp:0:1 -chardev socket,id=m,path=/m,server=on,wait=off -mon chardev=m,mode=control "
        "--gdb tcp::1 -s -D /log "
        "-qtest unix:/t -mem-path /hugepages -mem-prealloc -object filter-mirror,id=f,netdev=n,outdev=c0 "
        "-chardev socket,id=c0,host=10.0.0.2,port=9003 -name vm -nodefaults"
    )
    assert argv == ["qemu", "-name", "vm", "-nodefaults", "-monitor", "none", "-incoming", "defer"]


def test_serial_lines_do_not_fight_with_the_primary_s(run_dir: Path) -> None:
    taken = run_dir / "taken"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(taken))
        command = derive_standby(
            f"qemu -nodefaults -serial file:/log/a -serial stdio -serial unix:{taken},server,nowait "
            f"-chardev socket,id=c,path={taken},server=on -chardev file,id=d,path=/log/d "
            "-chardev stdio,id=e,mux=on -serial tcp:localhost:4000,server=on -serial chardev:d"
        )
    argv = list(command.argv)
    assert after(argv, "-chardev") == [
        "file,id=colo-serial-0,path=/log/a,append=on",
        f"socket,id=c,path={taken}.standby,server=on,wait=off",
        "file,id=d,path=/log/d,append=on",
        "null,id=e",
    ]
    assert after(argv, "-serial") == [
        "chardev:colo-serial-0",
        "null",
        f"unix:{taken}.standby,server=on,wait=off",
        "tcp:localhost:4000,server=on,wait=off",
        "chardev:d",
    ]
    assert any("in use on this host" in note for note in command.notes)


def test_a_terminal_s_display_is_not_asked_for() -> None:
    assert "-nographic" not in derived("qemu -nographic")
    assert after(derived("qemu -nographic"), "-display") == ["none"]
    assert after(derived("qemu -nographic"), "-serial") == ["null"]
    assert after(derived("qemu -display gtk,gl=on"), "-display") == ["none"]
    assert after(derived("qemu -vnc :3"), "-vnc") == [":3"]


def test_an_alias_gives_way_to_the_stream_s_machine() -> None:
    assert after(derived("qemu -M pc,usb=on", machine_type="pc-i440fx-7.2"), "-machine") == [
        "pc-i440fx-7.2,usb=on"
    ]
    assert after(derived("qemu", machine_type="pc-i440fx-7.2"), "-machine") == ["type=pc-i440fx-7.2"]


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("-chroot /var/empty", "outside"),
        ("-runas nobody", "that user"),
        ("-run-with user=nobody", "that user"),
        ("-readconfig vm.cfg", "write its options out"),
        ("-netdev tap,id=n,fd=33", "descriptor"),
        ("-chardev socket,id=c,fd=5", "descriptor"),
        ("-snapshot", "temporary"),
        ("-device nvdimm,memdev=m", "NVDIMM"),
    ],
)
def test_what_cannot_be_derived_is_refused_with_the_reason(option: str, why: str) -> None:
    with pytest.raises(QemuError, match=why) as refused:
        derived(f"qemu -nodefaults {option}")
    assert option.split(maxsplit=1)[0] in str(refused.value)


def test_broken_lines_are_refused() -> None:
    with pytest.raises(QemuError, match="needs a value"):
        derived("qemu -m")
    with pytest.raises(QemuError, match="empty"):
        derived("")
    with pytest.raises(QemuError, match="not JSON"):
        derived(shlex.join(["qemu", "-object", '{"qom-type":']))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "path"]), st.text("x,=y/", min_size=1)), min_size=1, max_size=5
    )
)
def test_comma_lists_survive(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs)
    assert str(Properties(text, "")) == text
    assert Properties(text, "").values() == [value for _key, value in pairs]


def test_options_come_apart_and_together() -> None:
    words = ["-m", "1G", "disk.img", "--enable-kvm", "-drive", "file=a,if=ide", "-S"]
    options = split_options(words)
    assert [option.name for option in options] == ["m", "", "enable-kvm", "drive", "S"]
    joined = [word for option in options for word in option.words()]
    assert joined == [word.replace("--", "-") for word in words]


@pytest.mark.qemu
def test_qemu_tells_its_main_block(qemu_binary: str) -> None:
    assert default_ram_id(qemu_binary, "q35") == "pc.ram"
    assert default_ram_id(qemu_binary) == "pc.ram"
    assert default_ram_id(qemu_binary, "microvm") == "microvm.ram"


@pytest.mark.qemu
def test_a_derived_standby_takes_over_with_and_without_shared_memory(machine: Machine, run_dir: Path) -> None:
    argv = machine("-device", "virtio-rng-pci", "-monitor", "null", serial=run_dir / "serial")
    with QemuProcess.start(argv, run_dir / "source") as source:
        wait_for_lines(run_dir / "serial", 3)
        source.qmp.execute("migrate-set-capabilities", {"capabilities": capability_list({"events": True})})
        source.qmp.execute("stop")
        source.qmp.execute("pmemsave", {"val": 0, "size": 32 << 20, "filename": str(run_dir / "image")})
        counter = check_guest_memory(run_dir / "image", GUEST).counter
        with source.qmp.subscribe("MIGRATION") as events:
            source.qmp.execute("cont")
            source.qmp.execute("migrate", {"uri": saving_to(run_dir / "stream")})
            while events.get(10.0).data["status"] != "completed":
                pass
        machine_type = source.machine_type
    command = derive_standby(
        argv, ram_files={"pc.ram": run_dir / "image"}, blocks=BLOCKS, machine_type=machine_type
    )
    alone = derive_standby(argv, share_ram=False, machine_type=machine_type)
    with Standby(command, run_dir / "sb").start() as standby:
        blocks = [(block.idstr, block.used_bytes) for block in standby.ram_blocks()]
        standby.check(machine_type, blocks)
        standby.prepare()
        assert standby.shared_blocks == ("pc.ram",)
        assert check_guest_memory(run_dir / "image", GUEST).counter == counter, (
            "the waiting stand-by wrote to its RAM"
        )
    with Standby(alone, run_dir / "sb").start() as standby:
        standby.check(machine_type, blocks)
        standby.prepare()
        assert standby.shared_blocks == ()
        lines = len(wait_for_lines(run_dir / "serial", 0))
        with standby.connect() as channel:
            channel.sendall(saved(run_dir / "stream"))
            channel.shutdown(socket.SHUT_WR)
        standby.finish(10.0)
        assert wait_for_lines(run_dir / "serial", lines + 3)[lines] >= counter
