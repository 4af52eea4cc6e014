"""A protected VM on two hosts, begun as its operator would begin it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colo.qemu.guest import GuestParams, TornState, make_guest_rom, serial_counters
from tests.faults.one_runner import product
from tests.faults.one_runner.arbiters import Arbiters
from tests.faults.one_runner.hosts import Hosts
from tests.faults.one_runner.output import BEAT_PORT, Output
from tests.faults.one_runner.product import Program

GUEST = GuestParams(pages=300, first_page=0x100, words=4, ticks_hz=1000, steps_per_tick=1, ticks_per_line=100, beat_port=0xE9)
RAM_MIB = 16
START_S = 40.0


class NotBegun(AssertionError):
    """The VM did not come to be protected, so nothing could be tried."""


class World:
    """``vm`` is a QEMU's version, or ``in-process``; ``binary`` is that QEMU. What it makes is in the hosts' folders."""

    def __init__(
        self, hosts: Hosts, arbiters: Arbiters, outputs: dict[str, Output], *, vm: str, arbiter: str, binary: str, lease_ms: int,
    ) -> None:
        self.hosts = hosts
        self.arbiters = arbiters
        self.vm = vm
        self.arbiter = arbiter
        self.binary = binary
        self.lease_ms = lease_ms
        self.primary, self.secondary = hosts["primary"], hosts["secondary"]
        self.outputs = outputs
        self.programs: list[Program] = []
        self.qemu: subprocess.Popen[str] | None = None
        self.guard: Program | None = None
        self.follower: Program | None = None
        self.toy: Program | None = None
        self._monitor: socket.socket | None = None
        self.hung: Path | None = None
        self._unhung: list[int] = []
        self.uri = ""
        self.helpers: list[threading.Thread] = []
        """They do what a failure does later."""
        self.thaws: list[float] = []
        """When something that was frozen was let go on, Unix time."""
        self._away: set[str] = set()

    # -- beginning

    def begin(self) -> None:
        """All of it runs, the VM is protected, and two checkpoints are committed. Raises NotBegun."""
        self.uri = self.arbiters.make(self.arbiter)
        if self.vm == "in-process":
            self._begin_in_process()
        else:
            self._begin_qemu()

    def _begin_qemu(self) -> None:
        folder = self.primary.folder
        make_guest_rom(self.hosts.run_dir / "guest.rom", GUEST)
        self.qemu = self.primary.start(
            [*self.machine("primary"), "-qmp", f"unix:{folder}/qmp,server=on,wait=off",
             "-qmp", f"unix:{folder}/qmp2,server=on,wait=off"],
            stdout=subprocess.DEVNULL, stderr=open(folder / "qemu.err", "wb"))  # noqa: SIM115
        self.start_follower()
        self._until(lambda: self.outputs["primary"].runs_now(), "the guest's first beat")
        self.start_guard()
        follower, guard = self.follower, self.guard
        assert follower is not None and guard is not None
        self._until(
            lambda: bool(guard.said("protecting")) and any(data["number"] >= 2 for data in follower.said("checkpoint")),
            "the second checkpoint")

    def _begin_in_process(self) -> None:
        self.follower = self._toy("secondary")
        follower = self.follower
        self._until(lambda: bool(follower.said("listening")), "the secondary's address")
        self.toy = self._toy("primary")
        toy = self.toy
        self._until(lambda: bool(toy.said("protecting")) and len(toy.said("checkpoint")) >= 3, "the second checkpoint")

    def machine(self, name: str) -> list[str]:
        """The QEMU command line on that host."""
        serial = self.hosts[name].folder / "serial"
        return [self.binary, "-nodefaults", "-display", "none", "-machine", "pc", "-accel", "kvm", "-m", str(RAM_MIB),
                "-name", product.VM_NAME, "-bios", str(self.hosts.run_dir / "guest.rom"), "-serial", f"file:{serial}",
                "-chardev", f"udp,id=beat,host=127.0.0.1,port={BEAT_PORT}", "-device", "isa-debugcon,iobase=0xe9,chardev=beat"]

    def start_follower(self) -> None:
        """``colo secondary``."""
        self.follower = self._program(
            "secondary", product.secondary(self.secondary, self.machine("secondary"), self.uri, self.lease_ms), "follower")
        follower = self.follower
        self._until(lambda: bool(follower.said("listening")), "the secondary's address")

    def start_guard(self) -> None:
        """``colo protect``; one more, if there was one."""
        self.guard = self._program(
            "primary", product.protect(self.primary.folder / "qmp", self.secondary, self.uri, self.lease_ms),
            f"guard{len(self.programs)}")

    def failover(self) -> Program:
        """``colo failover``."""
        return self._program("secondary", product.failover(self.secondary), f"failover{len(self.programs)}")

    def _toy(self, role: str) -> Program:
        argv = [sys.executable, "-m", "tests.faults.one_runner.toy", role, f"tcp:{self.secondary.address}:{product.PORT}",
                "--arbiter", self.uri, "--lease-ms", str(self.lease_ms), "--vm", product.VM_NAME]
        if role == "secondary":
            (self.secondary.folder / "ram").mkdir(mode=0o700, exist_ok=True)
            argv += ["--control", str(self.secondary.folder / "ram" / "control.sock")]
        return self._program(role, argv, f"toy-{role}")

    def _program(self, host: str, argv: list[str], name: str) -> Program:
        program = Program(self.hosts[host], argv, name)
        self.programs.append(program)
        return program

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not holds():
            ended = [p for p in self.programs if p.exit_code() is not None]
            if ended or time.monotonic() > deadline:
                raise NotBegun(f"{what} did not come: {json.dumps({p.name: p.summary() for p in self.programs})[:3000]}")
            time.sleep(0.02)

    # -- processes, by what they are

    def vm_pid(self) -> int:
        """The process whose VM is protected."""
        if self.toy is not None:
            return self.toy.pid
        assert self.qemu is not None
        return self.qemu.pid

    def fence_pid(self) -> int | None:
        """The process beside the QEMU that holds its lease, if there is one."""
        return next((pid for pid in self.primary.pids() if "fence" in command_line(pid) and pid not in self._known()), None)

    def witness_pid(self) -> int | None:
        """The process that tells the end of a program which runs its VM itself, if there is one."""
        return next((pid for pid in self.primary.pids() if "witness_process" in command_line(pid)), None)

    def standby_pid(self) -> int | None:
        """The stand-by QEMU."""
        return next((pid for pid in self.secondary.pids() if "-incoming" in command_line(pid)), None)

    def _known(self) -> set[int]:
        return {program.pid for program in self.programs} | {self.vm_pid()}

    def signal(self, pid: int | None, number: signal.Signals) -> None:
        """Send it, if that process is there."""
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def note_thaw(self) -> None:
        """Now something goes on that was frozen."""
        self.thaws.append(time.time())

    def take_arbiter(self, name: str) -> None:
        """That host does not reach its arbiter."""
        if name not in self._away:
            self._away.add(name)
            self.arbiters.take_away(self.arbiter, name)

    def give_arbiter(self, name: str) -> None:
        """It does again."""
        if name in self._away:
            self._away.remove(name)
            self.arbiters.give_back(self.arbiter, name)

    # -- a QEMU whose main loop hangs

    def hang(self) -> None:
        """The VM's storage does not answer any more: a monitor command that writes to a pipe nobody reads, or a turn that waits."""
        if self.toy is not None:
            self.signal(self.toy.pid, signal.SIGUSR1)
            return
        self.hung = self.primary.folder / f"pipe{len(self.programs)}"
        os.mkfifo(self.hung)
        self._monitor = socket.socket(socket.AF_UNIX)
        self._monitor.settimeout(1)
        command = {"execute": "pmemsave", "arguments": {"val": 0, "size": 4096, "filename": str(self.hung)}}
        with contextlib.suppress(OSError):  # it may be dead, or frozen
            self._monitor.connect(str(self.primary.folder / "qmp2"))
            self._monitor.sendall(b'{"execute":"qmp_capabilities"}\n' + json.dumps(command).encode() + b"\n")

    def unhang(self) -> None:
        """It answers again."""
        if self.toy is not None:
            self.thaws.append(time.time())  # the turn that hung goes on where it was
            self.signal(self.toy.pid, signal.SIGUSR2)
        elif self.hung is not None:
            # Kept open: a QEMU that is stopped opens the pipe only once it goes on.
            self._unhung.append(os.open(self.hung, os.O_RDONLY | os.O_NONBLOCK))

    # -- looking

    def running(self, within_s: float = 0.15) -> list[str]:
        """Where a guest runs now."""
        return [name for name, output in self.outputs.items() if output.runs_now(within_s)]

    def is_asking(self) -> bool:
        """Whether a command that the user gave is still at work."""
        return any(program.exit_code() is None for program in self.programs if program.name.startswith("failover"))

    def is_decided(self) -> bool:
        """Whether exactly one side's VM runs, and the other side's cannot any more: its process is gone, or its session ended."""
        running = self.running()
        follower, guard = self.follower, self.guard
        if len(running) != 1 or follower is None:
            return False
        if running == ["secondary"]:
            vm = self.qemu if self.qemu is not None else self.toy.process if self.toy is not None else None
            return vm is not None and vm.poll() is not None
        return follower.exit_code() is not None and (guard is None or guard.exit_code() is not None)

    def is_protected_since(self, when_s: float) -> bool:
        """Whether the primary's VM runs, and a checkpoint of it was committed after then."""
        if self.running() != ["primary"] or self.follower is None or self.follower.exit_code() is not None:
            return False
        return any(event.get("event") == "checkpoint" and event["time"] > when_s for event in self.follower.events()[-5:])

    def torn(self) -> str:
        """What shows that a guest found its own memory to be of two instants; "" if nothing does."""
        for program in self.programs:
            if program.said("torn"):
                return f"{program.name}: {program.said('torn')[0]}"
        for name in self.outputs:
            serial = self.hosts[name].folder / "serial"
            if serial.exists():
                try:
                    serial_counters(serial.read_bytes())
                except TornState as error:
                    return f"{name}: {error}"
        return ""

    def statements(self) -> list[tuple[str, float, str]]:
        """What the programs said of where the VM runs: the side, when they said it, and their words."""
        found = []
        for program in self.programs:
            for event in program.events():
                data, when_s, kind = event.get("data"), event.get("time"), event.get("event")
                if when_s is None:
                    continue
                ending = data.get("ending") if isinstance(data, dict) else None
                if kind == "ended" and ending in ("alone", "unprotected"):
                    found.append(("primary", when_s, f"{program.name} ended with {ending!r}"))
                elif kind == "ended" and ending == "stopped":
                    found.append(("secondary", when_s, f"{program.name} ended with {ending!r}"))
                elif kind == "running" and program is self.follower:
                    found.append(("secondary", when_s, f"{program.name} said that the VM runs"))
        return found

    def had_lost(self, *sides: str) -> bool:
        """Whether these had lost: the other side had won, or had said that it runs."""
        others = {"primary": "secondary", "secondary": "primary"}
        winner = self.arbiters.winner(self.arbiter, self.uri)
        return all(
            winner == others[side] or any(said == others[side] for said, _, _ in self.statements()) for side in sides)

    def copy_is_kept(self) -> bool:
        """Whether the secondary's folder still has a RAM image."""
        ram = self.secondary.folder / "ram"
        return any(path.stat().st_size >= RAM_MIB << 19 for path in ram.rglob("*") if path.is_file())

    def summary(self) -> dict[str, Any]:
        """What everybody said."""
        return {program.name: program.summary() for program in self.programs}

    def close(self) -> None:
        """Nothing of it runs any more, and the hosts are as new."""
        for helper in self.helpers:
            helper.join(20)
        if self._monitor is not None:
            self._monitor.close()
        while self._unhung:
            os.close(self._unhung.pop())
        for name in list(self._away):
            self.give_arbiter(name)
        self.hosts.reset()
        for program in self.programs:
            program.process.wait(10)
        if self.qemu is not None:
            self.qemu.wait(10)
        for output in self.outputs.values():
            output.clear()
        for host in (self.primary, self.secondary):
            for path in sorted(host.folder.rglob("*"), reverse=True):
                if path.name != "boot_id":
                    path.rmdir() if path.is_dir() else path.unlink()


def command_line(pid: int) -> str:
    """Of that process; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
