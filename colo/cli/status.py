"""``colo status``: what a running session has, once or watched; which VMs are guarded here."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from colo.cli.terminal.live_view import Watch
from colo.cli.terminal.output import print_mapping
from colo.control.client import ControlClient, ask
from colo.control.server import SOCKET_NAME
from colo.errors import ChannelLost, ColoError
from colo.fence.left_fenced import left_status
from colo.fence.place import CONTROL_NAME, GuardCard, find_guard, guard_answers, guarded
from colo.takeover.kept import kept_status
from colo.text import printable

ENDED_WELL = {
    "running": 0, "alone": 0, "unprotected": 0, "stopped": 4, "handed_over": 4, "primary_gone": 9, "ended": 11,
}
"""Exit code by the state that a session ended in; any other is 1."""
DIED = 7
GUARD_S, LIST_S = 10.0, 2.0
"""So long a guard may take to answer: asked alone, and as one of many."""
OVER_STATES = ("running", "failed")
"""In these a secondary's session is over, whether or not it is closed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Asks a running session: a secondary by its --dir, the `colo protect` of a VM on this machine by the VM's name "
        "(--vm) or its QEMU's monitor (--qmp), any by its --socket. Without any of these, lists the VMs that you have a "
        "`colo protect` for here. Where no secondary answers in --dir, shows the checkpoint that one left there; where a "
        "VM's `colo protect` was killed, what its fence says. Watched, it ends with the session: exit code 0 when the VM "
        "runs (taken over, or alone at the primary), 4 when the other side runs it, 7 when the session's process died, 9 "
        "when the primary's QEMU is gone, 11 when the VM was ended on purpose, 1 otherwise; 0 on Ctrl-C.")
    which = add_session_arguments(parser, required=False)
    which.add_argument("--vm", metavar="NAME", help="the VM's name: its guard on this machine, `colo protect`")
    which.add_argument("--qmp", metavar="SOCKET", help="the QMP socket that `colo protect` was given")
    parser.add_argument("--watch", type=seconds, nargs="?", const=1.0, metavar="S",
                        help="go on, every S seconds (default 1): a live picture on a terminal, lines in a pipe")
    parser.add_argument("--json", action="store_true", help="JSON; watched, one object a line")
    parser.set_defaults(run=run)


def add_session_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> Any:
    """Which session: one of these. Returns their group."""
    which = parser.add_mutually_exclusive_group(required=required)
    which.add_argument("--ram-dir", "--dir", metavar="DIR", help="a secondary's --ram-dir")
    which.add_argument("--socket", metavar="PATH", help="any session's control socket: `control` in its configuration")
    return which


def session_socket(arguments: argparse.Namespace) -> Path:
    """Where the session meant by :func:`add_session_arguments` answers."""
    return Path(arguments.socket) if arguments.socket is not None else Path(arguments.ram_dir) / SOCKET_NAME


def seconds(text: str) -> float:
    """A time between samples."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 0.05 to 86400 seconds")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Ask and print; watched, until the session ends or Ctrl-C."""
    place: tuple[GuardCard, Path] | None = None
    if arguments.socket is None and arguments.ram_dir is None:
        if arguments.vm is None and arguments.qmp is None and arguments.watch is None:
            return _list(json_output=arguments.json)
        place = find_guard(arguments.vm or "", arguments.qmp or "")
    path = place[1] / CONTROL_NAME if place is not None else session_socket(arguments)
    if arguments.watch is None:
        print_mapping(_guard_status(*place) if place is not None else _status(arguments, path), json_output=arguments.json)
        return 0
    if place is not None and not guard_answers(place[1]):
        raise ColoError(f"there is nothing to watch: {left_status(*place)['text']}")
    with contextlib.suppress(KeyboardInterrupt):
        return _Watcher(path, arguments.watch, json_lines=arguments.json, place=place).run()
    return 0


def _status(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Of a session; where nobody answers, of the checkpoint that one which is over may have left."""
    try:
        status: dict[str, Any] = ask(path, "status")
        return status
    except ColoError:
        left = kept_status(arguments.ram_dir) if arguments.ram_dir is not None else None
        if left is None:
            raise
        return left


def _guard_status(card: GuardCard, directory: Path, *, timeout_s: float = GUARD_S) -> dict[str, Any]:
    """Of a guard, or of the fence that is left of one. Raises ColoError: the guard hangs."""
    if not guard_answers(directory):
        return left_status(card, directory)
    try:
        status: dict[str, Any] = ask(directory / CONTROL_NAME, "status", timeout_s=timeout_s)
        return status
    except ColoError as error:
        if not guard_answers(directory):  # it ended, or was killed, meanwhile
            return left_status(card, directory)
        raise ColoError(
            f"the guard of VM {card.vm or card.qmp} (`colo protect`, pid {card.guard_pid}) does not answer: {error}. Its "
            f"fence goes on. If it stays so, kill {card.guard_pid} and start `colo protect` again") from error


def _list(*, json_output: bool) -> int:
    found = []
    for card, directory in guarded():
        try:
            found.append(_guard_status(card, directory, timeout_s=LIST_S))
        except ColoError as error:
            found.append({
                "state": "not answering", "vm": card.vm, "pid": card.pid, "to": card.to, "text": str(error), "lease": {}})
    if json_output:
        print(json.dumps(found, indent=2))
        return 0
    if not found:
        print("no VM is guarded here for this user (`colo protect` guards one); a secondary is shown with --dir")
    for status in found:
        left_ms = status["lease"].get("left_ms")
        parts = [f"{status['vm'] or '?'}: {status['state']}", f"pid {status['pid']}", f"to {status['to']}"]
        if status.get("checkpoints") is not None:
            parts.append(f"{status['checkpoints']} checkpoints")
        if left_ms is not None:
            parts.append(f"lease {left_ms:.0f} ms left")
        print(printable(", ".join(parts) + (f"; {status['text']}" if status.get("text") else "")))
    return 0


class _Watcher:
    def __init__(
        self, path: Path, every_s: float, *, json_lines: bool, place: tuple[GuardCard, Path] | None = None
    ) -> None:
        self.path = path
        self.place = place
        self.every_s = every_s
        self.json = json_lines
        self.watch = Watch("colo status")
        self.console = Console(highlight=False)
        self.client = ControlClient(path)
        self.has_heat = True
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        """Ctrl-C. It can come where Python ignores exceptions (a finaliser): so it is noted, too."""
        self.interrupted = True
        raise KeyboardInterrupt

    def run(self) -> int:
        with self._hearing_interrupts():
            live = None
            if self.console.is_terminal and not self.json:
                live = Live(self.watch, console=self.console, auto_refresh=False)
                live.start()
            try:
                with contextlib.closing(self.client):
                    last = self._follow(live)
            finally:
                if live is not None:
                    live.stop()
        return self._conclude(last)

    @contextlib.contextmanager
    def _hearing_interrupts(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # it hears none
            yield
            return
        before = signal.signal(signal.SIGINT, self.interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _follow(self, live: Live | None) -> dict[str, Any] | None:
        """Sample until the session is over; returns its last status, None if it went without one."""
        while True:
            try:
                status, heat = self._ask()
            except ChannelLost:
                return self.client.last_words if isinstance(self.client.last_words, dict) else None
            self.watch.add(status, heat)
            self._show(live)
            if self.interrupted:
                raise KeyboardInterrupt
            if is_over(status):
                return status
            self.client.wait(self.every_s)

    def _ask(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        try:
            return self._status_and_heat()
        except ChannelLost:
            if self.client.last_words is not None:
                raise
        # It lets clients go that were silent for long, and some of many: only if nobody answers any more is it gone.
        self.client.close()
        try:
            self.client = ControlClient(self.path)
        except ColoError as error:
            raise ChannelLost(str(error)) from error
        return self._status_and_heat()

    def _status_and_heat(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        status = self.client.ask("status")
        if not isinstance(status, dict) or "statistics" not in status:
            raise ColoError(f"what answers at {self.path} is no session of this version")
        heat = None
        if self.has_heat:
            try:
                heat = self.client.ask("heat")
            except ChannelLost:
                raise
            except ColoError:  # a primary has none
                heat = None
            self.has_heat = heat is not None
        return status, heat

    def _show(self, live: Live | None) -> None:
        if self.json:
            print(json.dumps(self.watch.as_dict()), flush=True)
        elif live is not None:
            live.refresh()
        else:
            print(f"{time.strftime('%H:%M:%S')} {self.watch.line()}", flush=True)

    def _conclude(self, last: dict[str, Any] | None) -> int:
        code = DIED if last is None else ENDED_WELL.get(last["state"], 1)
        text = farewell(last, self.watch.status)
        if last is None and self.place is not None:
            text += f". {left_status(*self.place)['text']}"
        if self.json:
            print(json.dumps({
                "time": round(time.time(), 3), "ended": {"text": text, "exit_code": code, "status": last}}), flush=True)
        else:
            print(printable(text), flush=True)
        return code


def is_over(status: dict[str, Any]) -> bool:
    """Whether a session of this status is over."""
    return bool(status["over"]) if "over" in status else status["state"] in OVER_STATES


def farewell(last: dict[str, Any] | None, seen: dict[str, Any] | None) -> str:
    """How a session ended, in a sentence. ``seen`` is what it answered before."""
    known = last or seen or {}
    number = known.get("checkpoint")
    if number is None:  # of a session that was closed, the last that was seen
        number = (seen or {}).get("checkpoint")
    of = "before its first checkpoint" if number is None else f"its last known checkpoint is {number}"
    if last is None:
        return f"the session's process died, or was killed ({of})"
    state = last["state"]
    if state == "running" and (takeover := last.get("takeover")):
        return (f"the session ended: the VM was taken over from checkpoint {takeover['checkpoint']} in "
                f"{takeover['total_ms']:.1f} ms ({takeover['reason']})")
    how = {
        "alone": "the VM runs on at the primary, unprotected", "stopped": "the other side runs the VM",
        "unprotected": "protection ended as asked for, the VM runs on alone", "handed_over": "the other side runs the VM",
        "primary_gone": "the primary's QEMU is gone", "ended": "the VM was ended on purpose, it runs nowhere",
        "failed": "it failed, or was stopped",
    }.get(state, f"closed while {state}")
    return f"the session ended: {how} ({of})"
