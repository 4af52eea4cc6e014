"""A stand-by that cannot load what the primary has is found out while the primary is well."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from colo.arbiter import init_arbiter
from colo.errors import StandbyError
from colo.qemu.guest import make_guest_image
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from colo.takeover.keeper import check_room_for_sockets
from tests.faults.rig import Rig, rig, wait_until
from tests.interop.binaries import binary
from tests.qemu.tiny_machine import GUEST, Machine

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]
VERSIONS = ("7.2", "10.0", "11.1")


def of_version(machine: Machine, version: str) -> Machine:
    path = binary(version)

    def command(*extra: str, **named: object) -> list[str]:
        return [path, *machine(*extra, **named)[1:]]  # type: ignore[arg-type]

    return command


def state(case: Rig) -> str:
    return str(case.secondary.status()["standby"])


def verdict(case: Rig) -> str:
    """The stand-by's state once the trial is over."""
    deadline = time.monotonic() + 120
    while not state(case).startswith(("ready", "refused")) or "pending" in state(case) or "not loaded" in state(case):
        assert time.monotonic() < deadline, f"no verdict: {case.secondary.status()} {case.events[-5:]}"
        time.sleep(0.02)
    return state(case)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_that_fits_is_tried_and_takes_over(machine: Machine, run_dir: Path, version: str) -> None:
    disk = run_dir / "disk"  # the primary holds its lock
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    extra = ("-device", "virtio-rng-pci", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n",
             "-chardev", f"socket,id=c,path={run_dir}/theirs,server=on,wait=off", "-device", "virtio-serial-pci",
             "-device", "virtconsole,chardev=c", "-drive", f"if=none,id=d,format=qcow2,file={disk}",
             "-device", "virtio-blk-pci,drive=d")
    with rig(of_version(machine, version), run_dir, primary_extra=extra,
             standby=of_version(machine, version)(*extra, accel="kvm", serial=run_dir / "standby.log")) as case:
        case.start()
        case.protect()
        assert verdict(case) == "ready"
        assert ("verdict", "tried: the stand-by can load this VM") in case.events
        assert case.notices("") == [] or all("refuse" not in text for text in case.notices(""))
        # Nothing of the twin is left: no process, no file; the socket in use is still the primary's.
        standby_dir = case.ram_dir / "standby"
        wait_until(lambda: [path.name for path in standby_dir.iterdir()] == ["1"], what="the twin's end")
        before = case.secondary.status()["checkpoint"]
        wait_until(lambda: case.secondary.status()["checkpoint"] > before + 2, what="more checkpoints")
        case.kill_primary()
        report = case.finish()
        case.check_resumed(report, report.checkpoint)  # type: ignore[union-attr]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("primary", "standby", "words"),
    [
        (["-device", "virtio-rng-pci"], [], "virtio-rng"),
        (["-device", "virtio-rng-pci,addr=5"], ["-device", "virtio-rng-pci,addr=6"], "virtio-rng"),
        (["-usb", "-device", "usb-tablet"], ["-usb"], "usb"),
        (["-smp", "2"], ["-smp", "1"], "apic|cpu"),
        (["-cpu", "host"], ["-cpu", "qemu64,-apic"], None),
        (["-device", "virtio-serial-pci,max_ports=4"], ["-device", "virtio-serial-pci,max_ports=8"], None),
        ([], ["-smp", "2"], None),
    ],
    ids=["device missing", "another slot", "usb device missing", "fewer processors", "another processor",
         "another property", "more processors"],
)
def test_what_the_trial_says_is_what_a_takeover_would(
    machine: Machine, run_dir: Path, version: str, primary: list[str], standby: list[str], words: str | None,
) -> None:
    """``words`` None: QEMU may take it or not, by version; the trial must be right about it."""
    versioned = of_version(machine, version)
    argv = versioned(*standby, accel="kvm", serial=run_dir / "standby.log")
    with rig(versioned, run_dir, primary_extra=tuple(primary), standby=argv) as case:
        case.start()
        case.protect()
        found = verdict(case)
        if words is not None:
            assert found.startswith("refused: ")
            assert re.search(words, found)
        if found.startswith("refused: "):
            assert len(case.notices("no takeover is possible")) == 1
            assert ("verdict", found.removeprefix("refused: ")) in case.events
        before = case.secondary.status()["checkpoint"]
        wait_until(lambda: case.secondary.status()["checkpoint"] > before + 2, what="more checkpoints")
        case.kill_primary()
        if found.startswith("refused: "):
            wait_until(lambda: case.notices("the takeover failed"), 30.0, what="the takeover's failure")
        else:
            report = case.finish()
            case.check_resumed(report, report.checkpoint)  # type: ignore[union-attr]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_device_that_was_plugged_in_meanwhile_is_missed(machine: Machine, run_dir: Path, version: str) -> None:
    with rig(of_version(machine, version), run_dir,
             standby=of_version(machine, version)(accel="kvm", serial=run_dir / "standby.log")) as case:
        case.start()
        case.process.qmp.execute("device_add", {"driver": "virtio-rng-pci", "id": "late"})
        case.protect()
        assert "virtio-rng" in verdict(case)


def test_another_machine_version_is_refused_before_any_trial(machine: Machine, run_dir: Path) -> None:
    argv = machine("-machine", "type=pc-i440fx-7.1", accel="kvm", serial=run_dir / "standby.log")
    with rig(machine, run_dir, standby=argv) as case:
        case.start()
        case.protect()
        wait_until(lambda: state(case).startswith("failed"), what="the stand-by's refusal")
        assert "its machine is pc-i440fx-7.1" in state(case)
        assert case.notices("its machine is pc-i440fx-7.1")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("share_ram", [True, False], ids=["shared RAM", "all pages"])
def test_rings_in_the_guest_s_ram_are_no_reason_to_refuse(
    machine: Machine, run_dir: Path, version: str, share_ram: bool,
) -> None:
    """The twin's RAM is empty: a device whose queues the guest (here its BIOS) has set up must be loaded all the same."""
    image = run_dir / "boot.img"
    make_guest_image(image, GUEST)
    extra = ("-bios", "bios-256k.bin", "-drive", f"if=none,id=d,format=raw,file={image}",
             "-device", "virtio-blk-pci,drive=d")
    versioned = of_version(machine, version)
    with rig(versioned, run_dir, primary_extra=extra, share_ram=share_ram,
             standby=versioned(*extra, accel="kvm", serial=run_dir / "standby.log")) as case:
        case.start()
        case.protect()
        assert verdict(case) == "ready"
        case.kill_primary()
        report = case.finish()
        case.check_resumed(report, report.checkpoint)  # type: ignore[union-attr]


def test_without_a_trial_that_is_said(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir, trial=False, standby=machine(accel="kvm", serial=run_dir / "standby.log")) as case:
        case.start()
        case.protect()
        assert verdict(case) == "ready (untried: --no-trial)"
        assert not [data for kind, data in case.events if kind == "verdict"]


def test_what_only_one_qemu_can_have_keeps_no_trial_from_running(machine: Machine, run_dir: Path) -> None:
    """Ports and sockets that the stand-by has taken are left out of its twin."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    card = ("-device", "virtio-net-pci,netdev=n")
    with rig(machine, run_dir, primary_extra=("-netdev", "user,id=n", *card), standby=machine(
            "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", *card, "-serial", f"unix:{run_dir}/line,server=on,wait=off",
            accel="kvm", serial=run_dir / "standby.log")) as case:
        case.start()
        case.protect()
        assert verdict(case) == "ready"
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(run_dir / "line"))


def test_a_takeover_does_not_wait_for_a_trial(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir, standby=machine(accel="kvm", serial=run_dir / "standby.log")) as case:
        case.start()
        case.protect()
        wait_until(lambda: case.secondary.status()["checkpoint"] is not None, what="the first checkpoint")
        case.kill_primary()
        report = case.finish()
        case.check_resumed(report, report.checkpoint)  # type: ignore[union-attr]
        wait_until(lambda: [p.name for p in (case.ram_dir / "standby").iterdir()] == ["1"], what="the twin's end")


def test_a_directory_too_long_for_sockets_is_refused_at_the_start(machine: Machine, run_dir: Path) -> None:
    (run_dir / "a").mkdir(mode=0o700)
    init_arbiter(f"file:{run_dir}/a", vm="test")
    for length in range(60, 110):
        directory = run_dir / ("d" * (length - len(str(run_dir)) - 1))
        assert len(str(directory)) == length
        config = QemuSecondaryConfig(
            f"unix:{run_dir}/s", directory, standby=machine(accel="kvm"), arbiter=f"file:{run_dir}/a")
        if length <= 91:
            check_room_for_sockets(directory / "standby")
        else:
            with pytest.raises(StandbyError, match=f"--ram-dir is {length - 91} bytes too long"):
                QemuSecondary(config)


def test_the_longest_directory_takes_over(machine: Machine, run_dir: Path) -> None:
    directory = run_dir / ("d" * (91 - len(str(run_dir)) - 1))
    with rig(machine, run_dir, ram_dir=directory) as case:
        case.start()
        case.protect()
        assert verdict(case) == "ready"
        case.kill_primary()
        report = case.finish()
        case.check_resumed(report, report.checkpoint)  # type: ignore[union-attr]
