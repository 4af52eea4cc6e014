"""The last committed checkpoint outlives its session, whatever ends that, and can be run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import arbiter_from_uri, init_arbiter
from colo.control.client import ask
from colo.control.server import SOCKET_NAME
from colo.errors import ColoError, QemuError, StandbyRefused
from colo.figures.takeover_report import TakeoverReport
from colo.memory import KeptCopy, Phase, RamImage
from colo.qemu.guest import check_guest_memory
from colo.qemu.primary import QemuPrimary
from colo.qemu.process import QemuProcess
from colo.takeover.kept import kept_status
from tests.faults.processes import SecondaryProcess, colo, gone
from tests.faults.rig import LINE_STEPS, SETTINGS, rig, wait_until
from tests.faults.test_session_ends import standby_pids
from tests.qemu.tiny_machine import GUEST, Machine, wait_for_lines

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]
SEED = 20261125


class Pair:
    """A primary that nobody guards, and ``colo secondary`` as a process, started as often as wanted."""

    def __init__(self, machine: Machine, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.ram_dir = run_dir / "ram"
        self.machine = machine
        (run_dir / "arbiter").mkdir(mode=0o700)
        self.arbiter = f"file:{run_dir / 'arbiter'}"
        init_arbiter(self.arbiter, vm="vm1")
        self.sessions: list[SecondaryProcess] = []
        self.primaries: list[QemuProcess] = []
        self.vm_pids: list[int] = []
        self.serial = run_dir / "standby.log"

    def start_primary(self) -> QemuPrimary:
        number = len(self.primaries)
        process = QemuProcess.start(
            self.machine(accel="kvm", serial=self.run_dir / f"primary-{number}.log"), self.run_dir / f"primary-{number}")
        self.primaries.append(process)
        wait_for_lines(self.run_dir / f"primary-{number}.log", 1)
        return QemuPrimary(process)

    def secondary(self, *options: str, standby: bool = True) -> SecondaryProcess:
        command = self.machine(accel="kvm", serial=self.serial) if standby else None
        session = SecondaryProcess(
            self.ram_dir, standby=command, arbiter=self.arbiter, options=("--no-lease", "--deadline-ms", "2000", *options))
        self.sessions.append(session)
        session.wait_event("listening")
        return session

    def protect(self, primary: QemuPrimary, session: SecondaryProcess) -> threading.Thread:
        def set_up() -> None:
            with contextlib.suppress(QemuError):
                primary.set_up(f"tcp:127.0.0.1:{session.port}", SETTINGS, timeout_s=30)

        thread = threading.Thread(target=set_up, daemon=True)
        thread.start()
        return thread

    def killed_session(self, rng: random.Random) -> int:
        """A session under checkpoints, killed with SIGKILL at some moment, its primary with it. The last checkpoint it told."""
        session = self.secondary()
        self.protect(self.start_primary(), session)
        session.wait_event("checkpoint", number=2)
        wait_until(lambda: standby_pids(self.ram_dir), what="the stand-by")
        time.sleep(rng.random() * 0.15)
        children = session.children()
        session.signal(signal.SIGKILL)
        session.wait()
        self.primaries[-1].kill()
        assert gone(children), "a stand-by outlives the session that was killed"
        return max(event["data"]["number"] for event in session.events if event["event"] == "checkpoint")

    def failover(self, *options: str) -> tuple[int, dict[str, Any], str]:
        done = colo("failover", "--dir", str(self.ram_dir), "--json", *options)
        report: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        if report:
            self.vm_pids.append(report["pid"])
        return done.returncode, report, done.stderr

    def status(self) -> dict[str, Any]:
        """As `colo status --dir` has it, without a process for it."""
        try:
            found = ask(self.ram_dir / SOCKET_NAME, "status")
        except ColoError:
            found = kept_status(self.ram_dir)
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        for session in self.sessions:
            session.close()
        for process in self.primaries:
            process.kill()
        for pid in self.vm_pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def pair(machine: Machine, run_dir: Path) -> Iterator[Pair]:
    each = Pair(machine, run_dir)
    yield each
    each.close()


def guest_counter(ram_dir: Path) -> int:
    """The guest's counter in the committed checkpoint, whose memory must be of one instant."""
    with RamImage(ram_dir) as image:
        return check_guest_memory(image.path("pc.ram").read_bytes(), GUEST).counter


def check_goes_on(serial: Path, counter: int) -> None:
    counters = wait_for_lines(serial, 1)
    assert counter <= counters[0] <= counter + LINE_STEPS, (counter, counters)
    assert counters == sorted(counters)


# -- SIGKILL


def kill_and_take_over(pair: Pair, rng: random.Random) -> None:
    told = pair.killed_session(rng)
    shown = colo("status", "--dir", str(pair.ram_dir), "--json")
    assert shown.returncode == 0, shown.stderr
    status = json.loads(shown.stdout)
    assert status["state"] == "held" and status["checkpoint"] >= told
    assert status["vm"] == "vm1" and status["machine"].startswith("pc")
    assert "holds a committed checkpoint" in (pair.ram_dir / "COPY.txt").read_text()
    counter = guest_counter(pair.ram_dir)
    code, report, errors = pair.failover()
    assert code == 0, errors
    assert report["checkpoint"] == status["checkpoint"]
    check_goes_on(pair.serial, counter)
    assert not (pair.ram_dir / "copy").exists(), "the VM runs: its copy is no copy any more"
    assert colo("status", "--dir", str(pair.ram_dir)).returncode == 1


def test_a_secondary_killed_under_checkpoints_leaves_a_copy_that_runs(pair: Pair) -> None:
    kill_and_take_over(pair, random.Random(SEED))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(40))
def test_a_secondary_killed_at_any_moment_leaves_a_copy_that_runs(pair: Pair, seed: int) -> None:
    kill_and_take_over(pair, random.Random(SEED + seed))


def test_a_secondary_started_again_holds_its_copy_and_takes_over_when_asked(pair: Pair) -> None:
    pair.killed_session(random.Random(SEED + 1))
    held = KeptCopy(pair.ram_dir).record
    assert held is not None
    counter = guest_counter(pair.ram_dir)
    again = pair.secondary()
    words = f"checkpoint {held.checkpoint} of vm1"
    wait_until(lambda: any(words in str(event["data"]) for event in again.events), what="what it holds being said")
    status = pair.status()
    assert status["state"] == "holding" and status["recovered"] and status["checkpoint"] == held.checkpoint
    code, report, errors = pair.failover()
    assert code == 0, errors
    assert report["checkpoint"] == held.checkpoint
    assert again.wait() == 0, again.errors
    check_goes_on(pair.serial, counter)
    assert arbiter_from_uri(pair.arbiter, role="primary").current() == 1


def test_a_secondary_started_again_takes_over_by_itself_when_its_primary_does_not_come_back(pair: Pair) -> None:
    pair.killed_session(random.Random(SEED + 2))
    counter = guest_counter(pair.ram_dir)
    again = pair.secondary("--return-s", "0.5")
    report = again.wait_event("running")
    assert "did not come back" in report["reason"]
    assert again.wait() == 0, again.errors
    check_goes_on(pair.serial, counter)


def test_a_primary_that_comes_back_takes_the_copy_s_place_only_with_a_whole_one(pair: Pair) -> None:
    pair.killed_session(random.Random(SEED + 3))
    held = KeptCopy(pair.ram_dir).record
    again = pair.secondary()
    wait_until(lambda: standby_pids(pair.ram_dir), what="the stand-by of what is held")
    # A stream that ends too early changes nothing.
    with socket.create_connection(("127.0.0.1", again.port)) as stream:
        stream.sendall(b"QEVM\0\0\0\3" + bytes(100))
        again.wait_event("connected")  # whose it is can be told only while it is there
    wait_until(lambda: pair.status()["state"] == "holding", what="holding")
    now = KeptCopy(pair.ram_dir).record
    assert held is not None and now is not None and now.checkpoint == held.checkpoint
    pair.protect(pair.start_primary(), again)
    again.wait_event("checkpoint", number=2)
    assert pair.status()["recovered"] is False
    children = again.children()
    again.signal(signal.SIGKILL)
    again.wait()
    pair.primaries[-1].kill()
    assert gone(children)
    counter = guest_counter(pair.ram_dir)
    code, _, errors = pair.failover()
    assert code == 0, errors
    check_goes_on(pair.serial, counter)


# -- other ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_leaves_the_copy_and_says_so(pair: Pair, number: signal.Signals) -> None:
    session = pair.secondary()
    pair.protect(pair.start_primary(), session)
    session.wait_event("checkpoint", number=2)
    session.signal(number)
    assert session.wait() == 130, session.errors
    pair.primaries[-1].kill()
    said = [str(e["data"]) for e in session.events if e["event"] == "notice"]
    assert any(f"colo discard {pair.ram_dir}" in text and "MiB" in text for text in said), said
    status = pair.status()
    assert status["state"] == "held"
    log = sum((pair.ram_dir / "copy" / name).stat().st_blocks for name in ("log", "log.pages"))
    assert log == 0, "the redo log's memory is not given back"
    counter = guest_counter(pair.ram_dir)
    code, _, errors = pair.failover()
    assert code == 0, errors
    check_goes_on(pair.serial, counter)


def test_a_lost_arbitration_keeps_the_copy_which_then_is_stale(pair: Pair) -> None:
    session = pair.secondary()
    pair.protect(pair.start_primary(), session)
    session.wait_event("checkpoint", number=2)
    arbiter_from_uri(pair.arbiter, role="primary").claim(0, reason="the primary is alone")
    pair.primaries[-1].kill()
    assert session.wait() == 4, session.errors
    status = pair.status()
    assert status["state"] == "stale" and status["lost_generation"] == 1, status
    assert "other side holds generation 1" in status["text"]
    code, _, errors = pair.failover()
    assert code == 4, errors
    assert pair.status()["state"] == "stale"
    again = pair.secondary("--return-s", "0.1")
    time.sleep(0.5)
    assert pair.status()["state"] == "holding", "it must not ask for a VM that runs elsewhere"
    assert arbiter_from_uri(pair.arbiter, role="primary").current() == 1
    again.signal(signal.SIGTERM)
    again.wait()
    # The user says that whoever holds it is no more: the copy, old as it is, may run.
    arbiter = arbiter_from_uri(pair.arbiter)
    arbiter.release(1, reason="that host burned down")
    counter = guest_counter(pair.ram_dir)
    code, report, errors = pair.failover()
    assert code == 0, errors
    assert report["generation"] == 3
    check_goes_on(pair.serial, counter)


def test_another_vm_s_arguments_do_not_overwrite_a_copy(pair: Pair, run_dir: Path) -> None:
    pair.killed_session(random.Random(SEED + 4))
    other = run_dir / "other"
    other.mkdir(mode=0o700)
    init_arbiter(f"file:{other}", vm="vm2")
    done = colo("secondary", "tcp:127.0.0.1:0", "--ram-dir", str(pair.ram_dir), "--standby", "qemu-system-x86_64",
                "--arbiter", f"file:{other}")
    assert done.returncode == 8 and "--discard" in done.stderr and "vm1" in done.stderr, done.stderr
    assert pair.status()["state"] == "held"
    with SecondaryProcess(pair.ram_dir, standby=["qemu-system-x86_64"], arbiter=f"file:{other}",
                          options=("--no-lease", "--discard")) as session:
        session.wait_event("listening")
        assert pair.status()["checkpoint"] is None


def test_a_copy_is_discarded_by_a_user_s_word(pair: Pair) -> None:
    pair.killed_session(random.Random(SEED + 5))
    done = colo("discard", str(pair.ram_dir), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["freed_bytes"] > 1 << 20
    assert not any((pair.ram_dir / name).exists() for name in ("copy", "blocks", "COPY.txt"))
    assert colo("discard", str(pair.ram_dir)).returncode == 3
    assert pair.failover()[0] == 1


def test_a_session_killed_while_its_stand_by_begins_to_run_leaves_the_vm_running(pair: Pair) -> None:
    """From the moment that the stand-by is told to run it may be the VM: it outlives the session, and the next one sees it."""
    pair.killed_session(random.Random(SEED + 6))
    script = (
        "import os, signal, sys\n"
        "import colo.takeover.resume as resume\n"
        "before = resume.mark_telling\n"
        "def killed(kept, standby, told):\n"
        "    before(kept, standby, told)\n"
        "    if told: os.kill(os.getpid(), signal.SIGKILL)\n"
        "resume.mark_telling = killed\n"
        "from colo.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n")
    done = subprocess.run(
        [sys.executable, "-c", script, "failover", "--dir", str(pair.ram_dir)],
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    record = KeptCopy(pair.ram_dir).record
    assert record is not None and record.phase is Phase.RUNNING
    pair.vm_pids.append(record.pid)
    assert pair.status()["state"] == "running"
    code, report, errors = pair.failover()
    assert code == 0, errors
    assert report["pid"] == record.pid and Path(report["qmp_path"]).is_socket()
    wait_for_lines(pair.serial, 2)
    assert not (pair.ram_dir / "copy").exists()


def test_a_session_killed_after_it_won_takes_over_when_it_is_started_again(pair: Pair) -> None:
    pair.killed_session(random.Random(SEED + 7))
    counter = guest_counter(pair.ram_dir)
    script = (
        "import os, signal, sys\n"
        "from colo.session.qemu_secondary import QemuSecondary\n"
        "QemuSecondary._resume = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from colo.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n")
    done = subprocess.run(
        [sys.executable, "-c", script, "failover", "--dir", str(pair.ram_dir)],
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert pair.status()["won"] is True
    again = pair.secondary("--return-s", "1000")
    report = again.wait_event("running")
    assert "had won generation 1" in report["reason"]
    check_goes_on(pair.serial, counter)


# -- a disk that the other QEMU still holds


@pytest.fixture(params=["raw", "qcow2"])
def disk(request: pytest.FixtureRequest, run_dir: Path) -> tuple[str, ...]:
    """One image that both QEMUs open, as in the README; its lock is on by default."""
    path = run_dir / "disk"
    if request.param == "raw":
        path.write_bytes(bytes(1 << 20))
    else:
        if shutil.which("qemu-img") is None:
            pytest.skip("no qemu-img: apt-get install qemu-utils")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    return ("-drive", f"file={path},format={request.param},if=ide")


def test_a_disk_that_the_loser_still_holds_is_waited_for(machine: Machine, run_dir: Path, disk: tuple[str, ...]) -> None:
    with rig(machine, run_dir, primary_extra=disk, standby=machine(*disk, accel="kvm", serial=run_dir / "standby.log")) as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 2, what="a checkpoint")
        future = case.secondary.request_failover()
        wait_until(lambda: case.secondary.image.kept.record.phase is Phase.LOADED, what="the refusal")  # type: ignore[union-attr]
        time.sleep(0.3)
        assert not future.done()
        case.kill_primary()
        report = case.finish()
        assert isinstance(report, TakeoverReport), report
        case.check_resumed(report, report.checkpoint)


def test_a_disk_that_stays_held_costs_no_checkpoint(machine: Machine, run_dir: Path) -> None:
    path = run_dir / "disk"
    path.write_bytes(bytes(1 << 20))
    disk = ("-drive", f"file={path},format=raw,if=ide")
    standby = machine(*disk, accel="kvm", serial=run_dir / "standby.log")
    with rig(machine, run_dir, primary_extra=disk, standby=standby, takeover_s=1.5) as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= 2, what="a checkpoint")
        with pytest.raises(StandbyRefused, match="lock"):
            case.secondary.request_failover().result(20)
        wait_until(lambda: case.secondary.state == "holding", what="holding")
        record = case.secondary.image.kept.record
        assert record is not None and record.phase is Phase.WHOLE
        assert case.outcome is None
        case.kill_primary()
        report = case.finish()  # it tries again by itself: nobody else may run the VM
        assert isinstance(report, TakeoverReport), report
        case.check_resumed(report, report.checkpoint)
