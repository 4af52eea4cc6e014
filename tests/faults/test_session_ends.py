"""However a session ends, it says so, loses nothing that is committed, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from colo.arbiter import arbiter_from_uri
from colo.errors import ArbitrationLost, Interrupted, StandbyError, StorageError
from colo.figures.takeover_report import TakeoverReport
from colo.takeover.kept import kept_status
from tests.faults.processes import SecondaryProcess, colo, gone
from tests.faults.rig import Rig, rig, wait_until
from tests.faults.test_secondary_lost import Watched, secondary_of
from tests.qemu.tiny_machine import Machine
from tests.session.scripted_primary import PAGE, Peer, epoch, initial, page, raw

INTERRUPTED, NOTHING = 130, 3


def standby_pids(ram_dir: Path) -> list[int]:
    """QEMUs that map this RAM image."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if any(f"mem-path={ram_dir}" in word for word in line):
            found.append(process.pid)
    return found


# -- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
@pytest.mark.parametrize("state", ["listening", "at the door", "initial stream"])
def test_a_signal_before_there_is_a_vm(run_dir: Path, state: str, number: signal.Signals) -> None:
    path = run_dir / "listen.sock"
    with SecondaryProcess(run_dir / "ram", listen=f"unix:{path}") as session:
        session.wait_event("listening")
        with socket.socket(socket.AF_UNIX) as sock:
            if state != "listening":
                sock.connect(str(path))
            if state == "initial stream":
                sock.sendall(initial()[:500])
                session.wait_event("announced")
            session.signal(number)
            assert session.wait() == INTERRUPTED, session.errors
    assert list(run_dir.iterdir()) == []


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_a_signal_while_protecting_leaves_the_vm_to_its_primary(machine: Machine, run_dir: Path) -> None:
    session, uri = secondary_of(machine, run_dir)
    with session:
        watched = Watched(machine, run_dir, session.port, uri)
        try:
            session.wait_event("checkpoint", number=2)
            wait_until(lambda: standby_pids(run_dir / "ram"), what="the stand-by")
            check_privacy(session, run_dir)
            children = session.children()
            session.signal(signal.SIGTERM)
            assert session.wait() == INTERRUPTED, session.errors
            assert gone(children)
            assert kept_status(run_dir / "ram")["checkpoint"] >= 2  # type: ignore[index]
            assert watched.finish().ending.name == "ALONE"
        finally:
            watched.close()


def check_privacy(session: SecondaryProcess, run_dir: Path) -> None:
    """Only its user can reach any of it, and no core dump has guest memory."""
    for top in ("ram", "primary"):
        for entry in (run_dir / top, *(run_dir / top).rglob("*")):
            mode = stat.S_IMODE(entry.lstat().st_mode)
            # A socket of QEMU's is made with what the umask leaves of 0777; execution means nothing there.
            wanted = (0o600, 0o700) if entry.is_socket() else (0o700,) if entry.is_dir() else (0o600,)
            assert mode in wanted, f"{entry} has mode {mode:o}"
    for pid in (session.process.pid, *standby_pids(run_dir / "ram")):
        limits = Path(f"/proc/{pid}/limits").read_text()
        [line] = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"], line
    flags: list[str] = []
    inside = False
    try:
        mappings = Path(f"/proc/{session.process.pid}/smaps").read_text()
    except PermissionError:
        assert os.geteuid() != 0
        return  # Not dumpable at all: nobody but root may even look.
    for line in mappings.splitlines():
        if not line.split(":")[0].replace("_", "").isalpha():
            inside = "/blocks/" in line
        elif inside and line.startswith("VmFlags"):
            flags.append(line)
    assert flags and all(" dd" in line for line in flags), flags


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_the_command_line_s_own_way(machine: Machine, run_dir: Path) -> None:
    """Status, failover on request, both again; what a session says of itself is JSON."""
    ram = run_dir / "ram"
    nothing = colo("status", "--ram-dir", str(ram))
    assert nothing.returncode == 1 and "no session answers" in nothing.stderr
    session, uri = secondary_of(machine, run_dir)
    with session:
        session.wait_event("listening")
        early = colo("failover", "--ram-dir", str(ram))
        assert early.returncode == NOTHING and "nothing to resume from" in early.stderr
        watched = Watched(machine, run_dir, session.port, uri)
        try:
            session.wait_event("checkpoint", number=2)
            status = colo("status", "--ram-dir", str(ram), "--json")
            assert status.returncode == 0, status.stderr
            told = json.loads(status.stdout)
            assert told["state"] == "protecting" and told["checkpoint"] >= 2 and told["generation"] == 1
            done = colo("failover", "--ram-dir", str(ram), "--json")
            assert done.returncode == 0, done.stderr
            report = json.loads(done.stdout)
            assert report["checkpoint"] >= told["checkpoint"] and report["reason"] == "request"
            assert report["generation"] == 2
            assert session.wait() == 0, session.errors
            assert psutil.pid_exists(report["pid"]) and Path(report["qmp_path"]).is_socket()
            ended = watched.finish()
            assert ended.ending.name == "STOPPED"
        finally:
            watched.close()


# -- storage


@pytest.fixture
def tmpfs(run_dir: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of a size of one's own."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        path = run_dir / "small"
        path.mkdir(mode=0o700)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(path)],
            capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield make
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def small_tmpfs(tmpfs: Callable[[str], Path]) -> Path:
    return tmpfs("1m")


def fill(directory: Path) -> None:
    """Leave no page free."""
    with open(directory / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            return


def test_what_cannot_be_kept_is_not_acknowledged(small_tmpfs: Path) -> None:
    with Peer(small_tmpfs) as peer:
        peer.send(initial(raw(0, 0)))
        peer.expect((0).to_bytes(4, "big"))
        peer.number = 0
        peer.memory["pc.ram"][:PAGE] = page(0)
        peer.checkpoint(raw(PAGE, 5), {PAGE: page(5)})
        fill(small_tmpfs)
        # Over pages that have storage it still works.
        peer.checkpoint(raw(0, 6), {0: page(6)})
        peer.request()
        peer.send(epoch(raw(0, 7) + raw(2 * PAGE, 7), 3))
        error = peer.finish()
        assert isinstance(error, StorageError) and "pc.ram" in str(error), error
        peer.follower.sock.close()
        assert peer.sock.recv(8) == b"", "acknowledged what could not be kept"
        peer.check()


def test_a_full_disk_in_the_first_copy_is_told(small_tmpfs: Path) -> None:
    with Peer(small_tmpfs) as peer:
        fill(small_tmpfs)
        peer.send(initial())
        assert isinstance(peer.finish(), StorageError)
        assert peer.follower.committed is None
    assert {entry.name for entry in small_tmpfs.iterdir()} == {"filler"}


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_a_full_disk_does_not_take_the_vm_from_a_primary_that_is_well(
    machine: Machine, run_dir: Path, tmpfs: Callable[[str], Path]
) -> None:
    """The fault is ours: the checkpoint is kept, and nobody is fenced. The guest is still in its first pass."""
    small = tmpfs("16m")
    with rig(machine, run_dir, ram_dir=small / "ram") as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 1, what="a checkpoint")
        fill(small)
        wait_until(lambda: case.secondary.state == "holding", what="holding")
        assert case.notices("the fault is on this side")
        assert arbiter_from_uri(f"file:{case.arbiter_dir}", role="primary").current() == 0
        kept = case.secondary.status()["checkpoint"]
        (small / "filler").unlink()
        report = case.secondary.request_failover().result(10)
        case.check_resumed(case.finish(), kept)
        assert report.checkpoint == kept


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_a_session_that_holds_ends_when_the_primary_runs_on(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir, on_loss="hold") as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 1, what="a checkpoint")
        case.kill_primary()
        wait_until(lambda: case.secondary.state == "holding", what="holding")
        arbiter_from_uri(f"file:{case.arbiter_dir}", role="primary").claim(0, reason="the primary is alone")
        assert isinstance(case.finish(), ArbitrationLost)
    assert not standby_pids(case.ram_dir)


# -- the stand-by


def kill_standbys(case: Rig) -> None:
    for pid in standby_pids(case.ram_dir):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_a_standby_that_dies_is_replaced(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir) as case:
        case.start()
        case.protect()
        wait_until(lambda: case.secondary.status()["standby"] == "ready", what="the stand-by")
        kill_standbys(case)
        wait_until(lambda: case.notices("died"), what="the notice")
        wait_until(lambda: case.secondary.status()["standby"] == "ready", what="another stand-by")
        case.kill_primary()
        report = case.finish()
        assert isinstance(report, TakeoverReport), report
        case.check_resumed(report, report.checkpoint)


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_standby_that_dies_in_the_takeover_costs_no_checkpoint(machine: Machine, run_dir: Path, times: int) -> None:
    left = [times]

    def strike(*_: object) -> None:
        # When all that it needs is decided, and again when its successor is about to load.
        if left[0]:
            left[0] -= 1
            kill_standbys(case)

    with rig(machine, run_dir) as case:
        case.on_compose = strike
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 2, what="a checkpoint")
        case.kill_primary()
        if times == 2:
            wait_until(lambda: case.secondary.state == "holding", what="holding")
            assert case.outcome is None
            case.secondary.request_failover()
        report = case.finish()
        assert isinstance(report, TakeoverReport), report
        case.check_resumed(report, report.checkpoint)
        # It gave the VM back when it could not run it, and claimed it anew.
        assert arbiter_from_uri(f"file:{case.arbiter_dir}", role="primary").current() == times


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_a_standby_that_does_not_fit_fences_nobody(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir, standby=machine(accel="kvm", ram_mib=48)) as case:
        case.start()
        case.protect()
        wait_until(lambda: case.notices("cannot be used"), what="the notice")
        assert "failed" in case.secondary.status()["standby"]
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 2, what="a checkpoint")
        case.kill_primary()
        wait_until(lambda: case.secondary.state == "holding", what="holding")
        assert arbiter_from_uri(f"file:{case.arbiter_dir}", role="primary").current() == 0
        case.secondary.stop()
        assert isinstance(case.finish(), StandbyError)


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_a_standby_that_refuses_the_state_leaves_the_image_whole(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir, primary_extra=("-device", "qemu-xhci")) as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 2, what="a checkpoint")
        case.kill_primary()
        wait_until(lambda: case.secondary.state == "holding", what="holding")
        assert len([text for text in case.notices("") if "refused" in text or "failed" in text]) >= 1
        before = case.image
        future = case.secondary.request_failover()
        with pytest.raises(StandbyError):
            future.result(15)
        wait_until(lambda: case.secondary.state == "holding", what="holding again")
        assert case.image == before and not isinstance(case.state, BaseException)
        case.secondary.stop()
        assert isinstance(case.finish(), StandbyError)
    wait_until(lambda: not standby_pids(case.ram_dir), what="the end of the stand-by")
    assert kept_status(case.ram_dir)["state"] == "held"  # type: ignore[index]


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_requests_again_change_nothing(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir, on_loss="hold") as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 2, what="a checkpoint")
        case.kill_primary()
        wait_until(lambda: case.secondary.state == "holding", what="holding")
        futures = [case.secondary.request_failover(f"request {n}") for n in range(5)]
        reports = [future.result(10) for future in futures]
        assert len({report.pid for report in reports}) == 1
        case.check_resumed(case.finish(), reports[0].checkpoint)
        assert case.secondary.request_failover().result(1) is reports[0]
        assert arbiter_from_uri(f"file:{case.arbiter_dir}", role="primary").current() == 1


@pytest.mark.qemu
@pytest.mark.usefixtures("kvm")
def test_stopped_while_holding(machine: Machine, run_dir: Path) -> None:
    with rig(machine, run_dir, on_loss="hold") as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 1, what="a checkpoint")
        case.kill_primary()
        wait_until(lambda: case.secondary.state == "holding", what="holding")
        case.secondary.stop()
        assert isinstance(case.finish(), Interrupted)
    assert not standby_pids(case.ram_dir) and kept_status(case.ram_dir)["state"] == "held"  # type: ignore[index]
