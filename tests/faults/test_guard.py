"""`colo protect` beside a real QEMU: killed, ended, asked to leave; and what becomes of the VM each time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from colo.arbiter import Runner, arbiter_from_uri, init_arbiter
from colo.control.client import ask
from colo.errors import ColoError, QemuError
from colo.fence.processes import thread_states
from colo.qemu.process import QemuProcess
from tests.faults.processes import ROOT, SecondaryProcess, colo, gone
from tests.faults.rig import wait_until
from tests.qemu.tiny_machine import Machine, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]
LEASE_MS = "1000"


class Host:
    """A QEMU, a secondary for it, and whatever guards it."""

    def __init__(self, machine: Machine, run_dir: Path, *more: str, arbiter: str = "") -> None:
        self.run_dir = run_dir
        self.serial, self.standby_serial = run_dir / "primary.log", run_dir / "standby.log"
        self.vm = f"vm-{os.getpid()}-{run_dir.name}"
        self.uri = arbiter or f"file:{run_dir}/arbiter"
        if not arbiter:
            (run_dir / "arbiter").mkdir(mode=0o700)
            init_arbiter(self.uri, vm=self.vm)
        self.secondary = SecondaryProcess(
            run_dir / "ram", standby=machine(*more, accel="kvm", serial=self.standby_serial), arbiter=self.uri,
            listen=f"unix:{run_dir}/s", options=("--lease-ms", LEASE_MS))
        self.qemu = QemuProcess.start(
            machine(*more, "-qmp", f"unix:{run_dir}/q,server=on,wait=off", accel="kvm", serial=self.serial), run_dir / "primary")
        wait_for_lines(self.serial, 1)
        self.secondary.wait_event("listening")
        self.guards: list[subprocess.Popen[str]] = []

    def protect(self, *options: str) -> subprocess.Popen[str]:
        guard = subprocess.Popen(
            [sys.executable, "-m", "colo", "protect", "--qmp", f"{self.run_dir}/q", "--to", f"unix:{self.run_dir}/s",
             "--arbiter", self.uri, "--lease-ms", LEASE_MS, "--checkpoint-delay-ms", "20", "--json", *options],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.guards.append(guard)
        return guard

    def await_checkpoints(self, number: int = 3) -> None:
        self.secondary.wait_event("checkpoint", number=number)

    def goes_on(self, serial: Path) -> bool:
        return self.goes_on_within(serial, 5)

    def goes_on_within(self, serial: Path, seconds: float) -> bool:
        shown = len(wait_for_lines(serial, 0)) if serial.exists() else 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if serial.exists() and len(wait_for_lines(serial, 0)) > shown:
                return True
            time.sleep(0.05)
        return False

    def state(self) -> str:
        """What the guard says of itself; "" while there is none."""
        for control in Path("/run/colo").glob(f"vm-{self.qemu.pid}-*/control.sock"):
            with contextlib.suppress(ColoError):
                return str(ask(control, "status")["state"])
        return ""

    def said(self, guard: subprocess.Popen[str]) -> list[dict[str, Any]]:
        out, _ = guard.communicate(timeout=30)
        self.output = out
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def close(self) -> None:
        for guard in self.guards:
            if guard.poll() is None:
                guard.kill()
            guard.communicate()
        with contextlib.suppress(Exception):
            self.qemu.kill()
        self.secondary.close()


@pytest.fixture
def host(machine: Machine, run_dir: Path) -> Iterator[Host]:
    each = Host(machine, run_dir)
    yield each
    each.close()


def test_a_killed_guard_is_followed_by_another_and_the_vm_stays_protected(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    guard.kill()
    guard.wait()
    time.sleep(2 * float(LEASE_MS) / 1000)
    assert host.goes_on(host.serial), "the fence goes on renewing"
    again = host.protect()
    wait_until(lambda: host.state() == "protecting", what="the next guard")
    number = host.secondary.events[-1]["data"].get("number", 0)
    host.secondary.wait_event("checkpoint", number=number + 5)
    host.qemu.kill()
    report = host.secondary.wait_event("running")
    assert report["generation"] == 2 and host.goes_on(host.standby_serial)
    events = host.said(again)
    assert again.returncode == 9
    assert any("protection goes on where the guard left it" in str(e["data"]) for e in events), host.output


def test_without_its_guard_a_failover_still_leaves_one_that_runs(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    guard.kill()
    guard.wait()
    done = colo("failover", "--ram-dir", str(host.run_dir / "ram"), "--json")
    assert done.returncode == 0, done.stderr
    host.secondary.wait_event("running")
    wait_until(lambda: not host.qemu.alive(), what="the end of the loser's QEMU")
    assert host.goes_on(host.standby_serial)


@pytest.mark.parametrize("arbiter", ["file", "exec"])
def test_a_vm_that_its_fence_has_stopped_runs_on_with_a_new_guard(machine: Machine, run_dir: Path, arbiter: str) -> None:
    """With guard and secondary gone nobody asks the arbiter, and a stopped QEMU answers nobody: the new guard begins there."""
    host = Host(machine, run_dir, arbiter="exec:/bin/true" if arbiter == "exec" else "")
    try:
        guard = host.protect()
        host.await_checkpoints()
        guard.kill()
        guard.wait()
        host.secondary.signal(signal.SIGKILL)
        host.secondary.wait()
        wait_until(lambda: set(thread_states(host.qemu.pid or 0)) <= {"T"}, what="the lease's end")
        events = host.said(host.protect())
        assert [e["data"]["ending"] for e in events if e["event"] == "ended"] == ["alone"], host.output
        assert host.goes_on(host.serial)
    finally:
        host.close()


def test_a_new_guard_goes_on_also_where_the_arbiter_keeps_no_generations(machine: Machine, run_dir: Path) -> None:
    host = Host(machine, run_dir, arbiter="exec:/bin/true")
    try:
        guard = host.protect()
        host.await_checkpoints()
        guard.kill()
        guard.wait()
        again = host.protect()
        wait_until(lambda: host.state() == "protecting", what="the next guard")
        number = host.secondary.events[-1]["data"].get("number", 0)
        host.secondary.wait_event("checkpoint", number=number + 5)
        host.secondary.signal(signal.SIGKILL)
        host.secondary.wait()
        events = host.said(again)
        assert [e["data"]["ending"] for e in events if e["event"] == "ended"] == ["alone"], host.output
        assert host.goes_on(host.serial)
    finally:
        host.close()


def test_a_vm_that_a_guard_has_stopped_in_its_fences_stead_goes_on_with_the_next(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    guard.kill()
    guard.wait()
    host.qemu.send_signal(signal.SIGSTOP)
    host.protect()
    wait_until(lambda: host.state() == "protecting", what="the next guard")
    number = host.secondary.events[-1]["data"].get("number", 0)
    host.secondary.wait_event("checkpoint", number=number + 5)
    assert host.goes_on(host.serial)


@pytest.mark.parametrize("secondary", ["follows", "is lost"])
def test_a_guard_killed_between_its_claim_and_saying_so_leaves_the_vm_to_the_next(host: Host, secondary: str) -> None:
    """What the killed guard had won at the arbiter, it had won for this QEMU, whoever guards that."""
    guard = host.protect()
    host.await_checkpoints()
    guard.kill()
    guard.wait()
    if secondary == "is lost":
        host.secondary.signal(signal.SIGKILL)
        host.secondary.wait()
    arbiter_from_uri(host.uri, role="primary").claim(1, reason="as that guard did", runner=Runner.of(host.qemu.pid))
    again = host.protect()
    events = host.said(again)
    assert again.returncode == 12 and events[-1]["data"]["ending"] == "alone", host.output
    assert host.qemu.status() == "running" and host.goes_on(host.serial)
    if secondary == "follows":
        assert host.secondary.wait() == 4
    assert arbiter_from_uri(host.uri).holder().generation == 2


@pytest.mark.parametrize("how", ["SIGTERM", "unprotect"])
def test_protection_ends_in_order_and_the_vm_runs_on_here(host: Host, how: str) -> None:
    guard = host.protect()
    host.await_checkpoints()
    if how == "SIGTERM":
        guard.send_signal(signal.SIGTERM)
    else:
        done = colo("unprotect", "--vm", host.vm)
        assert (done.returncode, done.stdout.strip()) == (0, "protection has ended, the VM runs on alone"), done.stderr
    events = host.said(guard)
    assert guard.returncode == 0 and events[-1]["data"]["ending"] == "unprotected"
    assert host.secondary.wait() == 4
    assert host.qemu.status() == "running" and host.goes_on(host.serial)
    held = arbiter_from_uri(host.uri).holder()
    assert held.generation == 2 and held.role == "primary"


def test_a_vm_is_stopped_on_purpose_on_both_sides(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    done = colo("stop", "--qmp", f"{host.run_dir}/q")
    assert (done.returncode, done.stdout.strip()) == (0, "the VM was ended, it runs nowhere"), done.stderr
    host.said(guard)
    assert guard.returncode == 0 and not host.qemu.alive()
    assert host.secondary.wait() == 11, host.secondary.errors
    assert not host.standby_serial.exists() or b"colo guest" not in host.standby_serial.read_bytes()
    assert arbiter_from_uri(host.uri).holder().closed


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_fence_that_is_killed_or_frozen_is_replaced(host: Host, how: signal.Signals) -> None:
    host.protect()
    host.await_checkpoints()
    status = json.loads(colo("status", "--json", "--socket", str(next(Path("/run/colo").glob(
        f"vm-{host.qemu.pid}-*/control.sock")))).stdout)
    fence = psutil.Process(status["lease"]["fence_pid"])
    fence.send_signal(how)
    assert gone([fence])
    number = host.secondary.events[-1]["data"].get("number", 0)
    host.secondary.wait_event("checkpoint", number=number + 30)
    assert host.goes_on(host.serial)
    host.qemu.kill()
    host.secondary.wait_event("running")


def test_a_guard_that_is_not_there_is_named(host: Host) -> None:
    host.protect()
    host.await_checkpoints()
    done = colo("unprotect", "--vm", "nobody")
    assert done.returncode == 1 and "no guard of VM nobody" in done.stderr and host.vm in done.stderr


def test_a_hanging_qemu_whose_secondary_dies_runs_on_once_it_answers(host: Host) -> None:
    """Nobody else has the VM: it is neither ended nor left in COLO, however long its storage takes."""
    guard = host.protect()
    host.await_checkpoints()
    pipe = host.run_dir / "pipe"
    os.mkfifo(pipe)

    def hang() -> None:
        with contextlib.suppress(QemuError):
            host.qemu.qmp.execute("pmemsave", {"val": 0, "size": 4096, "filename": str(pipe)}, timeout_s=60)

    threading.Thread(target=hang, daemon=True).start()
    wait_until(lambda: not host.goes_on_within(host.serial, 0.3), what="the guest, which waits for the main loop")
    host.secondary.signal(signal.SIGKILL)
    host.secondary.wait()
    arbiter = arbiter_from_uri(host.uri)
    wait_until(lambda: arbiter.current() == 2, what="the claim")
    time.sleep(0.5)
    assert guard.poll() is None and host.qemu.alive()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        events = host.said(guard)
    finally:
        os.close(reader)
    assert events[-1]["data"]["ending"] == "alone", host.output
    assert host.goes_on(host.serial)


def test_a_guest_that_powers_off_ends_its_vm_on_both_sides(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    deadline = time.monotonic() + 10
    while guard.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(QemuError):  # a key that comes while the VM stands still, QEMU drops
            host.qemu.qmp.execute("send-key", {"keys": [{"type": "qcode", "data": "p"}]}, timeout_s=0.5)
        time.sleep(0.05)
    events = host.said(guard)
    assert guard.returncode == 0 and events[-1]["data"]["ending"] == "ended", host.output
    assert host.secondary.wait() == 11, host.secondary.errors
    assert not host.qemu.alive()
    assert not host.standby_serial.exists() or b"colo guest" not in host.standby_serial.read_bytes()
    assert arbiter_from_uri(host.uri).holder().closed


@pytest.mark.parametrize("how", ["SIGTERM", "quit"])
def test_a_qemu_that_is_ended_by_its_host_moves_its_vm_over(host: Host, how: str) -> None:
    guard = host.protect()
    host.await_checkpoints()
    if how == "SIGTERM":
        host.qemu.send_signal(signal.SIGTERM)
    else:
        with contextlib.suppress(QemuError):
            host.qemu.qmp.execute("quit", timeout_s=2)
    host.secondary.wait_event("running")
    host.said(guard)
    assert guard.returncode == 9
    assert host.goes_on(host.standby_serial) and not host.qemu.alive()


UUID = "0b1e5f8e-6d2a-4b57-9d0c-4ad3d1e3a111"


@pytest.mark.parametrize("loser", ["secondary", "primary"])
def test_a_fencing_script_is_told_which_vm_it_is_about_by_whichever_side_asks(
    machine: Machine, run_dir: Path, loser: str
) -> None:
    told = run_dir / "told"
    host = Host(machine, run_dir, "-uuid", UUID, "-name", "guest=vm one", arbiter=f"exec:env > {told}")
    with contextlib.closing(host):
        guard = host.protect()
        host.await_checkpoints()
        (host.secondary.process if loser == "secondary" else host.qemu).kill()
        wait_until(lambda: told.exists() and "COLO_UUID" in told.read_text(), what="the script")
        environment = dict(line.split("=", 1) for line in told.read_text().splitlines() if line.startswith("COLO_"))
        assert (environment["COLO_VM"], environment["COLO_UUID"]) == ("vm one", UUID)
        assert environment["COLO_ROLE"] == {"secondary": "primary", "primary": "secondary"}[loser]
        assert host.goes_on(host.serial if loser == "secondary" else host.standby_serial), "the one that won runs"
        host.said(guard)


def test_a_vm_whose_uuid_is_not_the_arbiters_is_refused(machine: Machine, run_dir: Path) -> None:
    host = Host(machine, run_dir, "-uuid", UUID)
    with contextlib.closing(host):
        other = run_dir / "other"
        other.mkdir(mode=0o700)
        host.uri = f"file:{other}"
        init_arbiter(host.uri, vm="another", uuid=UUID[:-1] + "2")
        guard = host.protect()
        host.said(guard)
        assert guard.returncode == 5 and f"not to the VM with UUID {UUID}" in host.output


def status_of(host: Host, *options: str) -> dict[str, Any]:
    done = colo("status", *(options or ("--vm", host.vm)), "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_guard_is_asked_listed_and_watched_by_its_vms_name(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    for options in (("--vm", host.vm), ("--qmp", f"{host.run_dir}/q")):
        found = status_of(host, *options)
        assert (found["vm"], found["pid"], found["state"], found["over"]) == (host.vm, host.qemu.pid, "protecting", False)
        assert 0 < found["lease"]["left_ms"] <= 1000 and found["statistics"]["pause_ms"]["count"] >= 1
    listed = [each for each in json.loads(colo("status", "--json").stdout) if each["vm"] == host.vm]
    assert [(each["pid"], each["state"]) for each in listed] == [(host.qemu.pid, "protecting")]
    assert f"{host.vm}: protecting, pid {host.qemu.pid}, to unix:{host.run_dir}/s" in colo("status").stdout
    watching = subprocess.Popen(
        [sys.executable, "-m", "colo", "status", "--vm", host.vm, "--watch", "0.1"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    assert watching.stdout is not None
    lines = [watching.stdout.readline() for _ in range(3)]
    assert all("protecting; checkpoint" in line and "pause" in line and "ms left" in line for line in lines), lines
    assert not any("pages" in line for line in lines), "a guard sees none"
    assert colo("unprotect", "--vm", host.vm).returncode == 0
    out, _ = watching.communicate(timeout=20)
    assert watching.returncode == 0 and "protection ended as asked for, the VM runs on alone" in out
    host.said(guard)
    done = colo("status", "--vm", host.vm)
    assert done.returncode == 1 and f"no guard of VM {host.vm} runs here" in done.stderr and "`colo protect`" in done.stderr


def test_of_a_killed_guard_its_fence_is_told_and_not_disturbed(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    watching = subprocess.Popen(
        [sys.executable, "-m", "colo", "status", "--vm", host.vm, "--watch", "0.1", "--json"], cwd=ROOT,
        stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None and watching.stdout.readline()
    guard.kill()
    guard.wait()
    last = json.loads(watching.communicate(timeout=20)[0].splitlines()[-1])["ended"]
    assert watching.returncode == 7 and "still runs, under its fence" in last["text"]
    for _ in range(5):
        found = status_of(host)
    assert (found["state"], found["lease"]["fence"], found["over"]) == ("unguarded", "leased", False)
    assert f"`colo protect` is gone); the VM still runs, under its fence (pid {found['lease']['fence_pid']})" in found["text"]
    assert "without another promise until " in found["text"] and 0 < found["lease"]["left_ms"] <= 1000
    command = f"colo protect --qmp {host.run_dir}/q --to unix:{host.run_dir}/s --arbiter {host.uri}"
    assert found["text"].endswith(f"A new `colo protect` takes it over, with the arguments of before: {command}")
    for arguments in (("unprotect", "--vm", host.vm), ("stop", "--vm", host.vm), ("status", "--vm", host.vm, "--watch")):
        done = colo(*arguments)
        assert done.returncode == 1 and "has no guard any more" in done.stderr and command in done.stderr, done.stderr
    assert f"{host.vm}: unguarded, pid {host.qemu.pid}" in colo("status").stdout
    assert host.goes_on(host.serial), "who asked was no guard, and left the fence as it was"
    again = host.protect()
    wait_until(lambda: host.state() == "protecting", what="the next guard")
    assert status_of(host)["lease"]["fence_pid"] == found["lease"]["fence_pid"]
    again.kill()
    again.wait()
    host.secondary.process.kill()
    wait_until(lambda: status_of(host)["lease"]["fence"] == "over", what="the end of the lease")
    assert "the VM stands still, stopped by its fence" in status_of(host)["text"]


def test_a_vm_that_lost_its_guard_and_its_fence_is_told(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    fence = status_of(host)["lease"]["fence_pid"]
    guard.kill()
    guard.wait()
    os.kill(fence, signal.SIGSTOP)
    assert "its fence is there and hangs" in status_of(host)["text"]
    os.kill(fence, signal.SIGKILL)
    wait_until(lambda: status_of(host)["state"] == "unfenced", what="the fence's end")
    assert "no fence is beside it either" in status_of(host)["text"]


def test_a_guard_that_hangs_is_told_from_one_that_is_gone(host: Host) -> None:
    guard = host.protect()
    host.await_checkpoints()
    guard.send_signal(signal.SIGSTOP)
    try:
        done = colo("status", "--vm", host.vm)
        assert done.returncode == 1 and f"pid {guard.pid}) does not answer" in done.stderr, done.stderr
        assert f"{host.vm}: not answering" in colo("status").stdout
    finally:
        guard.send_signal(signal.SIGCONT)
    assert status_of(host)["state"] == "protecting"


def test_a_guard_that_looks_for_another_secondary_is_not_over(host: Host) -> None:
    guard = host.protect("--reconnect")
    host.await_checkpoints()
    host.secondary.process.kill()
    wait_until(lambda: host.state() == "alone", what="running alone")
    assert not status_of(host)["over"]
    done = colo("unprotect", "--vm", host.vm)
    assert (done.returncode, done.stdout.strip()) == (0, "protection has ended, the VM runs on alone"), done.stderr
    host.said(guard)
    assert guard.returncode == 0 and host.goes_on(host.serial)


def test_a_vm_is_known_by_its_arbiters_name_before_qemus(machine: Machine, run_dir: Path) -> None:
    host = Host(machine, run_dir, "-name", "guest-of-qemu")
    with contextlib.closing(host):
        host.protect()
        host.await_checkpoints()
        assert status_of(host)["vm"] == host.vm


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("observer", ["reader-gone", "terminal-closed", "disk-full"])
def test_a_guard_outlives_whoever_reads_it(host: Host, observer: str, options: tuple[str, ...]) -> None:
    if observer == "terminal-closed":
        ours, theirs = os.openpty()
    elif observer == "disk-full":
        ours, theirs = -1, os.open("/dev/full", os.O_WRONLY)
    else:
        ours, theirs = os.pipe()
    guard = subprocess.Popen(
        [sys.executable, "-m", "colo", "protect", "--qmp", f"{host.run_dir}/q", "--to", f"unix:{host.run_dir}/s",
         "--arbiter", host.uri, "--lease-ms", LEASE_MS, "--checkpoint-delay-ms", "20", *options],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs if observer == "terminal-closed" else subprocess.PIPE,
        preexec_fn=(lambda: os.login_tty(theirs)) if observer == "terminal-closed" else None)
    try:
        os.close(theirs)
        host.await_checkpoints(1)
        if ours >= 0:
            os.read(ours, 100)
            os.close(ours)
        host.await_checkpoints(100)
        guard.send_signal(signal.SIGTERM)
        _, errors = guard.communicate(timeout=20)
        assert (guard.returncode, errors or b"") == (0, b"") and host.goes_on(host.serial)
    finally:
        guard.kill()
        guard.wait()
