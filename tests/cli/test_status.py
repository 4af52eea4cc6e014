"""``colo status``: real sessions asked and watched, on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from colo._fast.send.pageencoder import KINDS
from colo.cli import main
from colo.cli.status import seconds
from colo.cli.terminal.figure_text import block_line, heat_strip, sparkline
from colo.cli.terminal.live_view import Watch
from colo.control.client import ask
from colo.errors import ColoError, Interrupted
from colo.figures.kinds import KIND_OF, pages_by_kind
from colo.session.primary import Primary, PrimaryConfig
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig
from colo.text import printable
from tests.cli.watched import COLO, ROOT, Command, PageVm, Terminal, leading, secondary_process


@pytest.fixture
def vm() -> Iterator[Any]:
    vm = PageVm(64, free_running=True)
    yield vm
    vm.close()


@contextlib.contextmanager
def in_process(tmp_path: Path, **options: Any) -> Iterator[VmSecondary]:
    """An in-process secondary on a thread."""
    vm = PageVm(64)
    secondary = VmSecondary(
        vm, VmSecondaryConfig("tcp:127.0.0.1:0", "none", resume=False, control=str(tmp_path / "second.sock"), **options))

    def run() -> None:
        with contextlib.suppress(ColoError):
            secondary.run()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield secondary
    finally:
        secondary.stop()
        thread.join(20)
        secondary.close()
        vm.close()


def test_a_secondary_process_watched_in_a_pipe_ends_with_its_end(tmp_path: Path, vm: Any) -> None:
    with secondary_process(tmp_path, "--heat-map") as (second, address), leading(vm, address):
        watching = Command("status", "--ram-dir", str(tmp_path / "ram"), "--watch", "0.1")
        try:
            lines = watching.wait_for(lambda lines: sum("protecting; checkpoint" in line for line in lines) >= 2)
            assert all("held" in line and "pages" in line and "in all" in line for line in lines)
            assert not any("\x1b" in line for line in lines)
            second.end(signal.SIGTERM)
            assert watching.end() == 1  # no VM runs here
            assert watching.lines[-1].startswith("the session ended: it failed, or was stopped (its last known checkpoint is")
        finally:
            watching.close()


def test_a_killed_process_is_told_by_its_own_exit_code(tmp_path: Path, vm: Any) -> None:
    with secondary_process(tmp_path) as (second, address), leading(vm, address):
        watching = Command("status", "--ram-dir", str(tmp_path / "ram"), "--watch", "0.1", "--json")
        try:
            watching.wait_for(lambda lines: len(lines) >= 2)
            second.end(signal.SIGKILL)
            assert watching.end() == 7
            *samples, last = map(json.loads, watching.lines)
            assert last["ended"]["exit_code"] == 7 and "died, or was killed" in last["ended"]["text"]
            assert {s["sample"]["state"] for s in samples} == {"protecting"}
        finally:
            watching.close()


def test_json_samples_add_up_to_what_the_session_counted(tmp_path: Path, vm: Any) -> None:
    """For a primary, which knows its pauses, its link and what it did not send."""
    control = tmp_path / "first.sock"
    with in_process(tmp_path) as second, leading(vm, second.address, control=str(control)) as primary:
        watching = Command("status", "--socket", str(control), "--watch", "0.1", "--json")
        try:
            watching.wait_for(lambda lines: len(lines) >= 3)
            assert ask(control, "stop")["ending"].startswith("the VM runs on alone")
            assert watching.end() == 0
        finally:
            watching.close()
        *samples, last = map(json.loads, watching.lines)
        assert last["ended"]["status"]["state"] == "alone"
        final = samples[-1]["status"]["statistics"]
        assert final["checkpoints"] == primary.statistics.checkpoints
        assert sum(s["sample"]["checkpoints"] for s in samples) == final["checkpoints"]
        assert sum(s["sample"]["dirty_pages"] for s in samples) == final["dirty_pages"] > 0
        assert sum(s["sample"]["stream_bytes"] for s in samples) == final["stream_bytes"]
        for kind, count in pages_by_kind(final["pages"]).items():
            assert sum(s["sample"]["pages"][kind] for s in samples) == count
        for s in samples:
            assert s["sample"]["pause_name"] == "pause" and s["sample"]["interval_ms"] == 20.0


def test_the_picture_on_a_terminal_ends_cleanly_with_ctrl_c(tmp_path: Path, vm: Any) -> None:
    with in_process(tmp_path, heat_map=True) as second, leading(vm, second.address):
        terminal = Terminal("status", "--socket", str(tmp_path / "second.sock"), "--watch", "0.1")
        try:
            text = terminal.wait_for("colo status: protecting", "dirty pages", "bytes sent per byte", "heat", "|ram", "█")
            assert "xbzrle" in text and "compressed" in text and "unchanged" in text and "interval" in text
            terminal.press_ctrl_c()
            assert terminal.end() == 0
            assert "Traceback" not in terminal.text
            assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor is back
        finally:
            terminal.close()


def test_ctrl_c_that_comes_where_exceptions_are_ignored_ends_the_watch_too(
    tmp_path: Path, vm: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a finaliser: Python prints what is raised there, and goes on."""
    shown = []

    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def show(self: Any, live: Any) -> None:
        shown.append(self.watch.line())
        if len(shown) == 2:
            Interrupted()

    monkeypatch.setattr("colo.cli.status._Watcher._show", show)
    monkeypatch.setattr(sys, "unraisablehook", lambda args: shown.append(repr(args.exc_type)))
    before = signal.getsignal(signal.SIGINT)
    with in_process(tmp_path) as second, leading(vm, second.address):
        assert main(["status", "--socket", str(tmp_path / "second.sock"), "--watch", "0.05"]) == 0
    assert len(shown) == 3 and "KeyboardInterrupt" in shown[2], shown
    assert signal.getsignal(signal.SIGINT) is before


def test_a_takeover_ends_the_watch_well(tmp_path: Path, vm: Any) -> None:
    with in_process(tmp_path) as second:
        with leading(vm, second.address):
            socket_path = str(tmp_path / "second.sock")
            watching = Command("status", "--socket", socket_path, "--watch", "0.1")
            try:
                watching.wait_for(lambda lines: any("protecting" in line for line in lines))
                done = subprocess.run(
                    [*COLO, "failover", "--socket", socket_path, "--json"], cwd=ROOT, capture_output=True,
                    text=True, timeout=60, check=True)
                assert json.loads(done.stdout)["reason"] == "request"
                assert watching.end() == 0
                assert "the VM was taken over from checkpoint" in watching.lines[-1]
            finally:
                watching.close()
        status = second.status()
        assert status["state"] == "running" and status["takeover"]["checkpoint"] == status["checkpoint"]


def test_asked_once_it_prints_all_that_a_library_session_knows(
    tmp_path: Path, vm: Any, capsys: pytest.CaptureFixture[str],
) -> None:
    with in_process(tmp_path) as second, leading(vm, second.address):
        assert main(["status", "--socket", str(tmp_path / "second.sock"), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["state"] == "protecting" and told["listen"] == second.address
        assert told["ram_bytes"] == 66 * 4096 and told["takeover"] is None
        assert told["checkpoint_age_ms"] >= 0 and told["statistics"]["checkpoints"] >= 1
        assert main(["status", "--socket", str(tmp_path / "second.sock")]) == 0
        assert "statistics.held_ms.p50" in capsys.readouterr().out


def test_a_primary_is_commanded_through_its_socket(tmp_path: Path, vm: Any) -> None:
    control = tmp_path / "first.sock"
    with in_process(tmp_path) as second, leading(
        vm, second.address, control=str(control), interval_ms=10_000.0,
    ) as primary:
        assert control.stat().st_mode & 0o777 == 0o600
        before = primary.statistics.checkpoints
        report = ask(control, "checkpoint")
        assert primary.statistics.checkpoints == before + 1 and report["number"] == ask(control, "status")["checkpoint"]
        with pytest.raises(ColoError, match="unknown request; commands: checkpoint, status, stop"):
            ask(control, "heat")
        ask(control, "stop")
        with pytest.raises(Interrupted, match="the session is over"):
            ask(control, "checkpoint")
    assert not control.exists()


def test_a_primary_that_has_not_begun_says_so(tmp_path: Path, vm: Any) -> None:
    control = tmp_path / "first.sock"
    with Primary(vm, PrimaryConfig("tcp:127.0.0.1:1", "none", control=str(control))):
        assert ask(control, "status")["state"] == "new"
        for command in ("checkpoint", "stop"):
            with pytest.raises(Interrupted, match="has not begun"):
                ask(control, command)


def test_nobody_there_is_an_error_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--watch"], []):
        assert main(["status", "--socket", str(tmp_path / "no.sock"), *words]) == 1
        assert "no session answers" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon", "1e9"])
def test_a_time_between_samples_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no time"):
        seconds(text)


def test_names_from_a_peer_cannot_steer_the_terminal() -> None:
    name = "\x1b[2J\u202eram\udc80"
    assert printable(name) == "\\x1b[2J\\u202eram\\udc80"
    line = block_line([{"idstr": name, "begin": 0, "pages": 100}], 100, 60)
    assert "\x1b" not in line and len(line) == 60


def test_every_kind_of_record_has_its_place_in_the_picture() -> None:
    assert set(KINDS) <= set(KIND_OF)
    found = pages_by_kind(dict.fromkeys(KINDS, 1))
    assert sum(found.values()) == len(KINDS) and found["raw"] == found["zero"] == found["unchanged"] == 1


def test_sparklines_and_strips_keep_their_width() -> None:
    assert sparkline([0.0, None, 4.0, 8.0], 10) == "▁ ▅█"
    assert sparkline([0.0, 0.0], 10) == "▁▁"
    assert sparkline(range(100), 8)[-1] == "█" and len(sparkline(range(100), 8)) == 8
    assert heat_strip([0] * 256, 64) == " " * 64
    strip = heat_strip([1000, *[0] * 254, 1], 64)
    assert len(strip) == 64 and strip[0] == "█" and strip[-1] == "·" and set(strip[1:-1]) == {" "}
    assert [heat_strip(range(n), 10).strip() == "" for n in (0, 1)] == [True, True]


def test_the_picture_fits_a_narrow_terminal(tmp_path: Path, vm: Any) -> None:
    with in_process(tmp_path, heat_map=True) as second, leading(vm, second.address) as primary:
        primary.checkpoint(20)
        watch = Watch("colo status")
        watch.add(ask(tmp_path / "second.sock", "status"), ask(tmp_path / "second.sock", "heat"))
        for width in (40, 80, 120):
            with open(os.devnull, "w") as nowhere:
                console = Console(width=width, file=nowhere, record=True)
                console.print(watch)
                assert all(len(line) <= width for line in console.export_text().splitlines())
