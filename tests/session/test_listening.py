"""What a session tells its listener is not what it lives by: whatever the listener raises, on whichever thread."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from colo.errors import ColoError
from colo.session.primary import Primary, PrimaryConfig
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig
from colo.trace import listening

_spec = importlib.util.spec_from_file_location("primary_vm", Path(__file__).with_name("primary_vm.py"))
assert _spec is not None and _spec.loader is not None
primary_vm = sys.modules.setdefault("primary_vm", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(primary_vm)
PageVm = primary_vm.PageVm

RAISED = (ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError(), RecursionError())


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_both_sessions_go_on_and_say_so_once(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, str]] = []

    def hear(side: str) -> Any:
        def listener(kind: str, data: Any) -> None:
            heard.append((side, kind))
            raise error

        return listener

    ours, theirs = PageVm(64, free_running=True), PageVm(64)
    secondary = VmSecondary(
        theirs, VmSecondaryConfig("tcp:127.0.0.1:0", "none", resume=False), on_event=hear("secondary"))
    ended: list[BaseException] = []

    def run() -> None:
        try:
            secondary.run()
        except ColoError as why:
            ended.append(why)

    thread = threading.Thread(target=run)
    thread.start()
    outcome: list[int] = []

    def lead() -> None:
        with Primary(
            ours, PrimaryConfig(secondary.address, "none", interval_ms=10_000), on_event=hear("primary")) as primary:
            ours.resume()
            primary.start()
            outcome.extend(primary.checkpoint(20).number for _ in range(3))

    leading = threading.Thread(target=lead)  # not the main one, whose Ctrl-C is its user's
    try:
        with caplog.at_level(logging.ERROR, "colo.session"):
            leading.start()
            leading.join(60)
            assert len(outcome) == 3 and secondary.committed is not None and secondary.committed.number >= outcome[-1]
            secondary.stop()
            thread.join(20)
            assert not thread.is_alive() and len(ended) == 1
        told = [record for record in caplog.records if "the session goes on" in record.getMessage()]
        assert {side for side, _ in heard} == {"primary", "secondary"} and len(told) == 2
    finally:
        secondary.stop()
        thread.join(20)
        secondary.close()
        ours.close()
        theirs.close()


def test_on_the_main_thread_ctrl_c_and_exit_are_its_users(caplog: pytest.LogCaptureFixture) -> None:
    assert threading.current_thread() is threading.main_thread()

    def hear(kind: str, data: Any) -> None:
        raise data

    tell = listening(hear)
    for error in (KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)):
            tell("x", error)
    for passing in (ValueError(), GeneratorExit()):
        tell("x", passing)
    assert len(caplog.records) == 1
