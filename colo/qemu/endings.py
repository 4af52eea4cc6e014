"""How a QEMU ends, or has ended, and what follows from it: does its VM end, move to the other side, or go on?

QEMU says why it stops in a SHUTDOWN event, before anything else of its end shows: before COLO_EXIT, before the migration
channel and the monitor are closed, before the process is gone (seen in all of 160 endings of a COLO primary; 7.2.22,
10.0.13, 11.1.3). So whoever sees one of those asks here first, and only then claims, proves or revives anything.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from colo.errors import QemuError
from colo.qemu.options import Properties, split_options
from colo.qemu.process import Qemu, QemuProcess
from colo.qemu.qmp import QmpCommandError, QmpEvent

GRACE_S = {"ENDS": 10.0, "MOVES": 1.0}
"""How long a QEMU may take from its word to its end, to close its disks; then it is killed. 2 to 42 ms is usual."""
DRAIN_S = 2.0
"""Most that a monitor takes to close after its process is gone."""


class Follows(Enum):
    """What follows from the way in which a QEMU ended."""

    CONTINUES = "nothing: the VM goes on"
    ENDS = "the VM ends, on both sides; nothing revives it"
    MOVES = "the VM moves to the other side"
    CRASHED = "the guest crashed: it ends, or resumes from the checkpoint before, as --on-crash says"


ANY = "*"


class Rule(NamedTuple):
    """One row: an ``event`` whose field ``key`` is ``value`` (:data:`ANY`: any other), and what follows."""

    event: str
    key: str
    value: str
    follows: Follows
    means: str


RULES: tuple[Rule, ...] = (
    Rule("SHUTDOWN", "reason", "guest-shutdown", Follows.ENDS, "the guest powered its machine off"),
    Rule("SHUTDOWN", "reason", "guest-reset", Follows.ENDS, "the guest reset its machine, which -no-reboot ends"),
    Rule("SHUTDOWN", "reason", "subsystem-reset", Follows.ENDS, "the guest reset its machine, which -no-reboot ends"),
    Rule("SHUTDOWN", "reason", "host-qmp-system-reset", Follows.ENDS, "a system_reset on a monitor, which -no-reboot ends"),
    Rule("SHUTDOWN", "reason", "guest-panic", Follows.CRASHED, "the guest's kernel panicked"),
    Rule("SHUTDOWN", "reason", "host-signal", Follows.MOVES, "a signal (SIGTERM, SIGINT, SIGHUP) from the host"),
    Rule("SHUTDOWN", "reason", "host-qmp-quit", Follows.MOVES, "quit on a monitor"),
    Rule("SHUTDOWN", "reason", "host-ui", Follows.MOVES, "its window was closed"),
    Rule("SHUTDOWN", "reason", "host-error", Follows.MOVES, "an error of its host"),
    Rule("SHUTDOWN", "reason", ANY, Follows.MOVES, "a reason that is not known here"),
    Rule("GUEST_PANICKED", "action", "run", Follows.CONTINUES, "the guest's kernel panicked; panic=none lets it run"),
    Rule("GUEST_PANICKED", "action", ANY, Follows.CRASHED, "the guest's kernel panicked"),
    Rule("WATCHDOG", "action", "poweroff", Follows.CRASHED, "the guest hung, and its watchdog powered it off"),
    Rule("WATCHDOG", "action", "pause", Follows.CRASHED, "the guest hung, and its watchdog stopped it"),
    Rule("WATCHDOG", "action", ANY, Follows.CONTINUES, "the guest hung; its watchdog resets, warns, or asks it to power off"),
    Rule("RESET", "reason", ANY, Follows.CONTINUES, "the machine was reset, and starts again"),
)
"""The first row that fits decides. The table in docs/operation.md is this one, and a test compares them."""

EVENTS = tuple(dict.fromkeys(rule.event for rule in RULES))

SILENT = "its process ended without a word: it was killed, or crashed"


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended. ``reason`` is QEMU's word for it, or empty where it said none."""

    follows: Follows
    event: str
    reason: str
    text: str

    def outcome(self, on_crash: str = "takeover") -> Follows:
        """:attr:`follows`, with a crash turned into MOVES (``takeover``) or ENDS (``end``).

        Raises ValueError when ``on_crash`` is neither.
        """
        if on_crash not in ("takeover", "end"):
            raise ValueError(f"on_crash is 'takeover' or 'end', not {on_crash!r}")
        if self.follows is not Follows.CRASHED:
            return self.follows
        return Follows.MOVES if on_crash == "takeover" else Follows.ENDS


def rule_of(event: str, data: Mapping[str, Any]) -> Rule | None:
    """The row for an event of that name with that ``data``, or None if there is none."""
    for rule in RULES:
        if rule.event == event and rule.value in (ANY, data.get(rule.key)):
            return rule
    return None


class EndingWatch:
    """Hears how a QEMU ends, from now on. ``on_ending`` is called once, from the monitor's thread: be quick.

    The first event that says more than CONTINUES decides: a `quit` after the guest has powered off changes nothing.
    """

    def __init__(self, qemu: Qemu, on_ending: Callable[[Ending], None] | None = None) -> None:
        self.qemu = qemu
        self.resets = 0
        """How often the machine was reset meanwhile."""
        self._ending: Ending | None = None
        self._on_ending = on_ending
        self._known = threading.Event()
        self._end_listening = qemu.qmp.on_event(self._hear, *EVENTS)

    def _hear(self, event: QmpEvent) -> None:
        rule = rule_of(event.name, event.data)
        if rule is None or self._ending is not None:
            return
        if rule.follows is Follows.CONTINUES:
            self.resets += event.name == "RESET"
            return
        reason = str(event.data.get(rule.key, ""))
        self._ending = Ending(rule.follows, event.name, reason, f"{rule.means} ({event.name} {reason})")
        self._known.set()
        if self._on_ending is not None:
            self._on_ending(self._ending)

    @property
    def ending(self) -> Ending | None:
        """What it has said so far; None while it has not said that it ends. Never waits."""
        return self._ending

    def wait(self, timeout_s: float) -> Ending | None:
        """Wait until it says that it ends, at most ``timeout_s`` seconds."""
        self._known.wait(timeout_s)
        return self._ending

    def verdict(self, timeout_s: float = DRAIN_S) -> Ending | None:
        """How it ended, once something of its end has been seen; None: it has not, as far as can be told.

        When its process is gone, its monitor is read to the last byte before the answer, which takes ``timeout_s``
        seconds at most; a process that is gone without a word was killed or crashed: MOVES.
        """
        if self._ending is not None:
            return self._ending
        if self.qemu.alive():
            return None
        self.qemu.qmp.wait_lost(timeout_s)
        return self._ending or Ending(Follows.MOVES, "", "", self._silent())

    def _silent(self) -> str:
        code = self.qemu.returncode if isinstance(self.qemu, QemuProcess) else None
        if code is None:
            return SILENT
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended without a word, with exit code {code}"

    def wait_gone(self, timeout_s: float, *, kill: bool = True) -> bool:
        """Wait until the process is gone; with ``kill``, SIGKILL it when ``timeout_s`` seconds have passed.

        For an ending that QEMU has announced: until it is gone, nothing proves that its VM stands still. It may say
        SHUTDOWN and let its VM run on for ever, and 7.2 hangs when commands wait on its monitor (quirks.py:
        ``runs_on_at_its_end``, ``hangs_at_its_end``). So send none once :attr:`ending` is known, and let it be killed.

        Raises QemuError when it may not be signalled, or is not gone even so.
        """
        if not self.qemu.wait_ended(timeout_s):
            if not kill:
                return False
            self.qemu.kill()
        return True

    def conclude(self, on_crash: str = "takeover") -> Ending | None:
        """As :meth:`verdict`, but when there is one it returns only once the process is gone: that is the proof.

        One that has announced its end is killed when it is not gone after :data:`GRACE_S`. A crash whose VM ENDS or MOVES
        by ``on_crash`` has as long as those.

        Raises QemuError when its process is not known here, or may not be killed, and it is not gone.
        """
        ending = self.verdict()
        if ending is not None:
            self.wait_gone(GRACE_S[ending.outcome(on_crash).name])
        return ending

    def close(self) -> None:
        """Hear no more. Idempotent."""
        self._end_listening()


class EndingActions:
    """What a QEMU does when its guest powers off or panics, set for the time of its protection. ::

        actions = EndingActions.hold(qemu)
        ...
        actions.restore()

    A COLO primary must end then, not pause (-no-shutdown, -action shutdown=pause, panic=pause, as libvirt sets them):
    its next checkpoint would start a VM again that powered off (seen in 12 of 12), or abort QEMU when the VM is paused
    by a panic (12 of 12). That `quit` and signals end it, no action changes.
    """

    def __init__(self, qemu: Qemu, before: dict[str, str], notice: str) -> None:
        self._qemu = qemu
        self._before = before
        self.notice = notice
        """For the user, when something that the command line says does not hold while the VM is protected."""

    @classmethod
    def hold(cls, qemu: Qemu) -> EndingActions:
        """Let a guest's power-off and panic end ``qemu``. What its command line said before is put back later.

        Raises QmpError when it does not answer.
        """
        before = actions_of(qemu.command_line() or [])
        held = {"shutdown": "poweroff"}
        if before["panic"] in ("pause", "shutdown"):
            held["panic"] = "shutdown"
        changed = {name: before[name] for name, value in held.items() if before[name] != value}
        try:
            qemu.qmp.execute("set-action", held)
        except QmpCommandError as error:
            if error.error_class != "CommandNotFound":
                raise
            return cls(qemu, {}, "")  # before 6.0: what its command line says is all there is
        words = ", ".join(f"{name}={value}" for name, value in changed.items())
        notice = f"while the VM is protected, {words} does not hold: QEMU ends when its guest does" if words else ""
        return cls(qemu, changed, notice)

    def restore(self) -> None:
        """Put back what the command line said. Does nothing to a QEMU that has ended. Idempotent."""
        before, self._before = self._before, {}
        if before:
            with contextlib.suppress(QemuError):
                self._qemu.qmp.execute("set-action", before, timeout_s=2.0)


def actions_of(arguments: Sequence[str]) -> dict[str, str]:
    """The actions ``shutdown``, ``panic`` and ``reboot`` that a command line sets, or QEMU's defaults."""
    actions = {"reboot": "reset", "shutdown": "poweroff", "panic": "shutdown"}
    try:
        options = split_options(list(arguments)[1:])
    except QemuError:
        return actions
    for option in options:
        if option.name == "no-shutdown":
            actions["shutdown"] = "pause"
        elif option.name == "no-reboot":
            actions["reboot"] = "shutdown"
        elif option.name == "action":
            properties = Properties(option.value or "", "")
            actions = {name: properties.get(name) or value for name, value in actions.items()}
    return actions
