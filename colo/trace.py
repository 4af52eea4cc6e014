"""What happens in a session, told as events of named types, to a listener and to sinks; and the names of states and phases.

A session has one :class:`Trace` and tells it each event as it happens. The listener is the user's ``on_event(kind, data)``;
a sink takes the :class:`Event` itself: a log, a file of JSON lines, a live view. Whatever one of them does, the session goes
on: what it raises is logged in one line; a sink that raised is let go. Without a listener and sinks an event costs a look
at two empty places.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TextIO

from colo.text import printable

_log = logging.getLogger("colo.session")


class Kind(StrEnum):
    """The events' names, as listeners, logs and JSON have them."""

    LISTENING = "listening"
    CONNECTED = "connected"
    ANNOUNCED = "announced"
    VERDICT = "verdict"
    PROTECTING = "protecting"
    CHECKPOINT = "checkpoint"
    PAUSE = "pause"
    LOST = "lost"
    RESYNCING = "resyncing"
    ALONE = "alone"
    STOPPED = "stopped"
    TAKING_OVER = "taking-over"
    SETTLED = "settled"
    RUNNING = "running"
    ENDED = "ended"
    STATUS = "status"
    ROUND = "round"
    THROTTLE = "throttle"
    NOTICE = "notice"


class SessionState(StrEnum):
    """What a session is doing, as its ``status()`` says it."""

    NEW = "new"
    STARTING = "starting"
    SETTING_UP = "setting up"
    LISTENING = "listening"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    SYNCHRONISING = "synchronising"
    PROTECTING = "protecting"
    RESYNCING = "resyncing"
    WAITING = "waiting"
    HOLDING = "holding"
    SETTLING = "settling"
    UNDECIDED = "undecided"
    LOSING = "losing"
    ENDING = "ending"
    TAKING_OVER = "taking-over"
    RUNNING = "running"
    ALONE = "alone"
    STOPPED = "stopped"
    UNPROTECTED = "unprotected"
    HANDED_OVER = "handed_over"
    PRIMARY_GONE = "primary_gone"
    ENDED = "ended"
    FAILED = "failed"


class Phase(StrEnum):
    """The parts of a checkpoint and of a takeover, in their order: the words of code, figures, live view and report."""

    AHEAD = "ahead"
    """Dirty pages are copied ahead, the VM runs."""
    STOP = "stop"
    SAVE = "save"
    HARVEST = "harvest"
    COPY = "copy"
    SEND = "send"
    ACKNOWLEDGED = "acknowledged"
    RAM = "ram"
    """From here on a secondary's: its RAM arrives."""
    DEVICE = "device"
    VALIDATE = "validate"
    DETECTION = "detection"
    """From here on a takeover's."""
    ARBITRATION = "arbitration"
    SETTLE = "settle"
    COMPOSE = "compose"
    LOAD = "load"
    RUN = "running"

    @property
    def ms(self) -> str:
        """The name of its figure, which is in milliseconds."""
        return f"{self.value}_ms"


PAUSE_PHASES = (Phase.STOP, Phase.SAVE, Phase.HARVEST, Phase.COPY)
"""What a primary's pause consists of; sent directly, sending and its acknowledgement belong to it too."""
RECEIVE_PHASES = (Phase.RAM, Phase.DEVICE, Phase.VALIDATE)
TAKEOVER_PHASES = (Phase.ARBITRATION, Phase.SETTLE, Phase.COMPOSE, Phase.LOAD, Phase.RUN)


class Reported(Protocol):
    """A report of :mod:`colo.figures`."""

    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Event:
    """One. ``data`` is what a listener gets with its kind: the only field, or all of them as a tuple, or None."""

    kind: ClassVar[Kind]

    @property
    def data(self) -> Any:
        values = tuple(getattr(self, field.name) for field in fields(self))
        return values[0] if len(values) == 1 else values or None

    def as_data(self) -> Any:
        """For JSON."""
        return self.data


@dataclass(frozen=True, slots=True)
class _WithReport(Event):
    report: Reported

    def as_data(self) -> Any:
        """For JSON."""
        return self.report.as_dict()


@dataclass(frozen=True, slots=True)
class Listening(Event):
    kind = Kind.LISTENING
    address: str


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """``to`` None: this side was connected to."""

    kind = Kind.CONNECTED
    to: str | None = None


class _Configuration(Protocol):
    @property
    def machine(self) -> str: ...


class _Block(Protocol):
    @property
    def idstr(self) -> str: ...
    @property
    def used_length(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Announced(Event):
    """The primary's machine type and RAM blocks are known."""

    kind = Kind.ANNOUNCED
    configuration: _Configuration
    blocks: Iterable[_Block]

    def as_data(self) -> Any:
        """For JSON."""
        return {"machine": self.configuration.machine, "blocks": {b.idstr: b.used_length for b in self.blocks}}


@dataclass(frozen=True, slots=True)
class Verdict(Event):
    """Whether this secondary could load what it follows, and why not."""

    kind = Kind.VERDICT
    text: str


@dataclass(frozen=True, slots=True)
class Protecting(Event):
    """Checkpoint 0 is committed. ``by``: the generation, or where checkpoints go."""

    kind = Kind.PROTECTING
    by: str | int


@dataclass(frozen=True, slots=True)
class Checkpoint(_WithReport):
    kind = Kind.CHECKPOINT


@dataclass(frozen=True, slots=True)
class Pause(Event):
    """How long a QEMU's VM stood still for a checkpoint."""

    kind = Kind.PAUSE
    pause_ms: float


@dataclass(frozen=True, slots=True)
class Lost(Event):
    kind = Kind.LOST
    reason: str


@dataclass(frozen=True, slots=True)
class Resyncing(Event):
    kind = Kind.RESYNCING
    reason: str


@dataclass(frozen=True, slots=True)
class Alone(Event):
    """This side's VM runs on, unprotected. ``how``: the reason, or a guard's report."""

    kind = Kind.ALONE
    how: str | Reported

    def as_data(self) -> Any:
        """For JSON."""
        return self.how if isinstance(self.how, str) else self.how.as_dict()


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """The other side runs the VM."""

    kind = Kind.STOPPED
    reason: str


@dataclass(frozen=True, slots=True)
class TakingOver(Event):
    kind = Kind.TAKING_OVER
    reason: str


@dataclass(frozen=True, slots=True)
class Settled(Event):
    """The committed checkpoint lies whole in the image."""

    kind = Kind.SETTLED
    committed: object


@dataclass(frozen=True, slots=True)
class Running(_WithReport):
    """Taken over."""

    kind = Kind.RUNNING


@dataclass(frozen=True, slots=True)
class Ended(_WithReport):
    kind = Kind.ENDED


@dataclass(frozen=True, slots=True)
class Status(Event):
    """A migration's status, by QEMU's names."""

    kind = Kind.STATUS
    status: str


@dataclass(frozen=True, slots=True)
class Round(Event):
    """A migration's round over RAM is done."""

    kind = Kind.ROUND
    round: object


@dataclass(frozen=True, slots=True)
class Throttle(Event):
    """A migration slows its VM down by so much; 0: no more."""

    kind = Kind.THROTTLE
    percent: int


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """What the user should know, in words."""

    kind = Kind.NOTICE
    text: str


OnEvent = Callable[[str, Any], None]
Sink = Callable[[Event], None]


class Trace:
    """Where a session tells what happens. Any thread; it is called on the threads that protect the VM, so a listener or sink
    has to return soon: what it waits for, the VM waits for.

    Only on the main thread KeyboardInterrupt (Ctrl-C) and SystemExit pass out of a listener: there they end the program,
    elsewhere a thread that the VM needs.
    """

    __slots__ = ("_listener", "_said", "_sinks")

    def __init__(self, listener: OnEvent | None = None, sinks: Iterable[Sink] = ()) -> None:
        self._listener = listener
        self._sinks = tuple(sinks)
        self._said = False

    def tell(self, event: Event) -> None:
        """Never raises, but for what the class says of the main thread."""
        if self._listener is not None:
            try:
                self._listener(event.kind, event.data)
            except BaseException as error:
                _pass_on(error)
                if not self._said:
                    self._said = True
                    _log.exception("the listener failed at %r; the session goes on, and says this once", str(event.kind))
        for sink in self._sinks:
            try:
                sink(event)
            except BaseException as error:
                _pass_on(error)
                self._sinks = tuple(each for each in self._sinks if each is not sink)
                _log.exception("a sink failed at %r and hears no more; the session goes on", str(event.kind))

    def notice(self, text: str) -> None:
        """The event that is told most."""
        self.tell(Notice(text))


def _pass_on(error: BaseException) -> None:
    main = threading.current_thread() is threading.main_thread()
    if main and isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


class LogSink:
    """Each event as a line of ``logger``, with its time in UTC; checkpoints and pauses at DEBUG, the rest at INFO."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger if logger is not None else logging.getLogger("colo.trace")

    def __call__(self, event: Event) -> None:
        level = logging.DEBUG if event.kind in (Kind.CHECKPOINT, Kind.PAUSE) else logging.INFO
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s %s %s", utc_text(time.time()), event.kind, printable(str(event.as_data())))


class JsonLines:
    """Each event as a JSON object in a line of its own: ``{"event", "time" (Unix, s), "utc", "data"}``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        now = time.time()
        line = json.dumps(
            {"event": event.kind, "time": round(now, 6), "utc": utc_text(now), "data": event.as_data()}, default=str)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()


def utc_text(unix_s: float) -> str:
    """ISO 8601, in UTC, to the microsecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def listening(on_event: OnEvent) -> OnEvent:
    """``on_event`` as a session calls it: what it raises is logged (once a session, then no more) and dropped."""
    trace = Trace(on_event)

    def tell(kind: str, data: Any = None) -> None:
        trace.tell(_Named(kind, data))  # type: ignore[arg-type]

    return tell


@dataclass(frozen=True, slots=True)
class _Named:
    kind: str
    data: Any
