"""Events, and who hears them: typed, in order, and never the end of what is told about."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from colo import trace
from colo.trace import Event, JsonLines, Kind, LogSink, Trace


@dataclass(frozen=True)
class Report:
    pause_ms: float = 1.5

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Block:
    idstr: str = "ram"
    used_length: int = 4096


@dataclass(frozen=True)
class Configuration:
    machine: str = "pc"


VALUES = {"report": Report(), "configuration": Configuration(), "blocks": [Block()], "how": Report(), "percent": 3, "pause_ms": 0.5}
TYPES = [each for each in vars(trace).values() if isinstance(each, type) and issubclass(each, Event) and hasattr(each, "kind")]


def example(kind: type[Event]) -> Event:
    return kind(*(VALUES.get(field.name, field.name) for field in dataclasses.fields(kind)))


def test_each_kind_has_one_type() -> None:
    assert sorted(each.kind for each in TYPES) == sorted(Kind)


@pytest.mark.parametrize("kind", TYPES, ids=lambda each: each.__name__)
def test_an_event_is_told_to_all_and_is_json(kind: type[Event]) -> None:
    heard: list[Any] = []
    stream = io.StringIO()
    event = example(kind)
    told = Trace(lambda name, data: heard.append((name, data)), [heard.append, JsonLines(stream)])
    told.tell(event)
    assert heard[0] == (event.kind.value, event.data) and heard[1] is event
    line = json.loads(stream.getvalue())
    assert line["event"] == event.kind
    assert datetime.fromisoformat(line["utc"]) == datetime.fromtimestamp(line["time"], UTC)
    if "report" in {field.name for field in dataclasses.fields(kind)}:
        assert line["data"] == {"pause_ms": 1.5}


def test_a_sink_that_raises_hears_no_more_and_the_others_do(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []
    calls = 0

    def fails(event: Event) -> None:
        nonlocal calls
        calls += 1
        raise OSError("the disk is full")

    told = Trace(None, [fails, heard.append])
    with caplog.at_level(logging.ERROR, "colo.session"):
        for _ in range(3):
            told.notice("text")
    assert calls == 1 and len(heard) == 3 and len(caplog.records) == 1


def test_control_c_passes_on_the_main_thread_only(caplog: pytest.LogCaptureFixture) -> None:
    def stops(name: str, data: Any) -> None:
        raise KeyboardInterrupt

    told = Trace(stops)
    with pytest.raises(KeyboardInterrupt):
        told.notice("here")
    ended: list[BaseException] = []

    def elsewhere() -> None:
        try:
            told.notice("there")
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not ended and "says this once" in caplog.text


def test_the_log_has_times_in_utc_and_shows_checkpoints_only_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.trace")
    told = Trace(None, [LogSink(logger)])
    with caplog.at_level(logging.INFO, logger.name):
        told.tell(trace.Checkpoint(Report()))
        told.tell(trace.Lost("gone\x1b[2J"))
    [record] = caplog.records
    words = record.getMessage().split(" ", 2)
    assert words[0].endswith("Z") and words[1] == "lost" and "\x1b" not in words[2]
    with caplog.at_level(logging.DEBUG, logger.name):
        told.tell(trace.Checkpoint(Report()))
    assert caplog.records[-1].levelno == logging.DEBUG


def test_phases_are_named_once() -> None:
    assert trace.Phase.STOP.ms == "stop_ms"
    names = [*trace.PAUSE_PHASES, *trace.RECEIVE_PHASES, *trace.TAKEOVER_PHASES]
    assert len(names) == len(set(names))
