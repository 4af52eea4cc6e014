"""How real QEMUs end while they are COLO primaries: what is said of it, and that it is always heard."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.errors import ColoError
from colo.qemu.endings import (
    ANY,
    RULES,
    Ending,
    EndingActions,
    EndingWatch,
    Follows,
    Rule,
    actions_of,
    rule_of,
)
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import Qemu, QemuProcess
from colo.qemu.qmp import QmpError
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from tests.interop.binaries import binary
from tests.qemu.tiny_machine import Machine, wait_for_lines

VERSIONS = ("7.2", "10.0", "11.1")
DOCS = Path(__file__).resolve().parents[2] / "docs" / "operation.md"


class Protected:
    """A QEMU that is a COLO primary, its secondary a session of ours without a stand-by."""

    def __init__(self, argv: list[str], run_dir: Path, serial: Path) -> None:
        self.serial = serial
        self.qemu = QemuProcess.start(argv, run_dir / "q")
        self.watch = EndingWatch(self.qemu)
        self.primary = QemuPrimary(self.qemu)
        self.secondary = QemuSecondary(QemuSecondaryConfig(f"unix:{run_dir}/s", run_dir / "ram"))
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        with contextlib.suppress(ColoError):
            self.secondary.run()

    def protect(self, delay_ms: int = 20) -> None:
        self.thread.start()
        self.primary.set_up(self.secondary.address, ColoSettings(checkpoint_delay_ms=delay_ms), timeout_s=30)
        lines = len(wait_for_lines(self.serial, 0))
        wait_for_lines(self.serial, lines)

    def key(self, name: str) -> None:
        press(self.qemu, name)

    def close(self) -> None:
        self.qemu.kill()
        self.secondary.stop()
        if self.thread.ident is not None:
            self.thread.join(20)
        self.secondary.close()


def press(qemu: Qemu, name: str) -> None:
    with contextlib.suppress(QmpError):  # it may be gone before it answers
        qemu.qmp.execute("send-key", {"keys": [{"type": "qcode", "data": name}]})


def pressed_until(case: Protected, name: str) -> Ending:
    """Press a key until its end is known: one that comes while the VM stands still, QEMU drops."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        case.key(name)
        ending = case.watch.wait(0.5) or case.watch.verdict()
        if ending is not None:
            return ending
    raise AssertionError("it did not end")


@pytest.fixture(params=VERSIONS)
def versioned(request: pytest.FixtureRequest, machine: Machine) -> Machine:
    path = binary(request.param)

    def command(*extra: str, **named: object) -> list[str]:
        return [path, *machine(*extra, **named)[1:]]  # type: ignore[arg-type]

    return command


@pytest.fixture
def protected(versioned: Machine, run_dir: Path, kvm: None, request: pytest.FixtureRequest) -> Iterator[Protected]:
    extra = getattr(request, "param", ())
    case = Protected(versioned(*extra, accel="kvm", serial=run_dir / "serial"), run_dir, run_dir / "serial")
    try:
        case.protect()
        yield case
    finally:
        case.close()


@pytest.mark.qemu
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "quit"])
def test_ended_by_its_host_it_moves(protected: Protected, how: str) -> None:
    if how == "quit":
        with contextlib.suppress(QmpError):
            protected.qemu.qmp.execute("quit")
    else:
        protected.qemu.send_signal(signal.Signals[how])
    assert protected.watch.wait(10) is not None
    ending = protected.watch.conclude()  # 11.1 may say so, and let its VM run on: see quirks.py
    assert ending is not None
    assert not protected.qemu.alive()
    assert (ending.follows, ending.event) == (Follows.MOVES, "SHUTDOWN")
    assert ending.reason == ("host-qmp-quit" if how == "quit" else "host-signal")


@pytest.mark.qemu
def test_a_guest_that_powers_off_ends(protected: Protected) -> None:
    ending = pressed_until(protected, "p")
    assert (ending.follows, ending.reason) == (Follows.ENDS, "guest-shutdown")
    assert "powered its machine off" in ending.text
    assert protected.watch.conclude() == ending
    assert not protected.qemu.alive()


@pytest.mark.qemu
@pytest.mark.parametrize("key", ["r", "t"], ids=["reset", "triple fault"])
@pytest.mark.parametrize("protected", [("-no-reboot",)], indirect=True, ids=["no-reboot"])
def test_a_reset_that_is_to_end_it_ends_it(protected: Protected, key: str) -> None:
    ending = pressed_until(protected, key)
    assert (ending.follows, ending.reason) == (Follows.ENDS, "guest-reset")
    assert protected.watch.wait_gone(10)


@pytest.mark.qemu
def test_a_reset_ends_nothing(protected: Protected) -> None:
    deadline = time.monotonic() + 20
    while protected.watch.resets == 0:
        assert time.monotonic() < deadline
        protected.key("t")
        time.sleep(0.2)
    # It starts again, and finds what it wrote before.
    while protected.serial.read_bytes().count(b"colo guest 0\n") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert protected.watch.verdict() is None
    assert protected.watch.ending is None


@pytest.mark.qemu
@pytest.mark.parametrize("protected", [("-device", "pvpanic")], indirect=True, ids=["pvpanic"])
def test_a_panic_is_a_crash(protected: Protected) -> None:
    ending = pressed_until(protected, "c")
    assert ending.follows is Follows.CRASHED
    assert ending.outcome("takeover") is Follows.MOVES
    assert ending.outcome("end") is Follows.ENDS
    with pytest.raises(ValueError, match="on_crash"):
        ending.outcome("perhaps")


@pytest.mark.qemu
def test_killed_it_moves_without_a_word(protected: Protected) -> None:
    protected.qemu.send_signal(signal.SIGKILL)
    assert protected.watch.wait_gone(10, kill=False)
    ending = protected.watch.verdict()
    assert ending is not None
    assert (ending.follows, ending.event, ending.text) == (Follows.MOVES, "", "its process was killed by SIGKILL")


@pytest.mark.qemu
@pytest.mark.parametrize(
    "protected", [("-no-shutdown", "-action", "panic=pause", "-device", "pvpanic")], indirect=True, ids=["pauses"])
@pytest.mark.parametrize(("key", "follows"), [("p", Follows.ENDS), ("c", Follows.CRASHED)])
def test_one_that_would_pause_ends_while_it_is_protected(protected: Protected, key: str, follows: Follows) -> None:
    actions = EndingActions.hold(protected.qemu)
    assert "shutdown=pause, panic=pause does not hold" in actions.notice
    assert pressed_until(protected, key).follows is follows
    assert protected.watch.wait_gone(5)
    assert protected.qemu.returncode in (0, -signal.SIGKILL)  # not SIGABRT
    actions.restore()


@pytest.mark.qemu
def test_what_the_command_line_says_holds_again_afterwards(versioned: Machine, run_dir: Path) -> None:
    argv = versioned("-no-shutdown", serial=run_dir / "serial")
    with QemuProcess.start(argv, run_dir / "q") as qemu, contextlib.closing(EndingWatch(qemu)) as watch:
        wait_for_lines(run_dir / "serial", 1)
        actions = EndingActions.hold(qemu)
        assert "shutdown=pause" in actions.notice
        actions.restore()
        actions.restore()
        press(qemu, "p")
        ending = watch.wait(10)
        assert ending is not None
        assert ending.follows is Follows.ENDS
        deadline = time.monotonic() + 10
        while qemu.status() != "shutdown":
            assert time.monotonic() < deadline
        assert qemu.alive()
        assert not watch.wait_gone(0.1, kill=False)
        assert watch.wait_gone(0.1)
        assert not qemu.alive()


@pytest.mark.qemu
def test_the_reason_is_heard_although_others_ask_at_that_moment(versioned: Machine, run_dir: Path) -> None:
    """A command that fails on the closed monitor must not take along what it still held."""
    for attempt in range(6):
        work = run_dir / f"q{attempt}"
        with QemuProcess.start(versioned("-S"), work) as qemu:
            watch = EndingWatch(qemu)

            def ask(asked: QemuProcess = qemu) -> None:
                with contextlib.suppress(QmpError):
                    while True:
                        asked.qmp.execute("query-status")

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            qemu.send_signal(signal.SIGTERM)
            assert watch.wait_gone(2)  # 7.2 hangs at its end when commands wait for it (a fact in quirks.py)
            ending = watch.verdict(5.0)
            for thread in threads:
                thread.join(10)
            assert ending is not None
            assert ending.reason == "host-signal"
        shutil.rmtree(work)


@pytest.mark.qemu
def test_a_closed_connection_lets_the_next_client_in(versioned: Machine, run_dir: Path) -> None:
    path = run_dir / "theirs"
    with QemuProcess.start(versioned("-S", "-qmp", f"unix:{path},server=on,wait=off"), run_dir / "q"):
        for _ in range(3):
            with Qemu.attach(path) as qemu:
                assert qemu.status() == "prelaunch"
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            Qemu.attach(path).detach()
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.qemu
def test_one_that_runs_has_no_verdict(versioned: Machine, run_dir: Path) -> None:
    with QemuProcess.start(versioned("-S"), run_dir / "q") as qemu:
        watch = EndingWatch(qemu)
        assert watch.verdict(0.1) is None
        assert watch.wait(0.01) is None
        qemu.qmp.execute("system_reset")
        deadline = time.monotonic() + 10
        while watch.resets == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert watch.ending is None


def test_the_first_that_ends_it_decides() -> None:
    heard: list[Ending] = []

    class Silent:
        class qmp:
            @staticmethod
            def on_event(callback: object, *names: str) -> object:
                return lambda: None

    from colo.qemu.qmp import QmpEvent

    watch = EndingWatch(Silent(), heard.append)  # type: ignore[arg-type]
    for reason in ("guest-shutdown", "host-qmp-quit"):
        watch._hear(QmpEvent("SHUTDOWN", {"guest": True, "reason": reason}, 0, 0))
    assert [ending.reason for ending in heard] == ["guest-shutdown"]


def test_every_event_has_a_row_for_what_is_not_known_yet() -> None:
    for event in {rule.event for rule in RULES}:
        assert rule_of(event, {}) is not None
        assert [rule.value for rule in RULES if rule.event == event][-1] == ANY
    assert rule_of("SHUTDOWN", {"reason": "something-new"}) == Rule(
        "SHUTDOWN", "reason", ANY, Follows.MOVES, "a reason that is not known here")
    assert rule_of("STOP", {}) is None


def test_actions_are_read_from_a_command_line() -> None:
    assert actions_of(["q", "-m", "1"]) == {"reboot": "reset", "shutdown": "poweroff", "panic": "shutdown"}
    assert actions_of(["q", "-no-shutdown", "-no-reboot"]) == {"reboot": "shutdown", "shutdown": "pause", "panic": "shutdown"}
    assert actions_of(["q", "-action", "panic=none,shutdown=pause"])["panic"] == "none"
    assert actions_of(["q", "-no-shutdown", "-action", "shutdown=poweroff"])["shutdown"] == "poweroff"
    assert actions_of([])["reboot"] == "reset"


def test_the_documented_table_is_the_one_that_decides() -> None:
    text = DOCS.read_text()
    section = text[text.index("## How a VM ends") :]
    section = section[: section.index("\n## ", 5)]
    rows = [tuple(cell.strip().strip("`") for cell in line.strip("|").split("|"))
            for line in re.findall(r"^\| `.*\|$", section, re.MULTILINE)]
    assert rows == [(rule.event, "any other" if rule.value == ANY else rule.value, rule.follows.name, rule.means)
                    for rule in RULES]
