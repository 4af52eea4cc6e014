"""The secondary for QEMU: it takes its primary back after a short loss, and keeps what is committed through all of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.errors import Interrupted, NoCheckpoint, StandbyError
from colo.figures.takeover_report import TakeoverReport
from colo.session.primary import Primary, PrimaryConfig
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from tests.faults.rig import wait_until
from tests.session.primary_vm import PageVm, expected
from tests.session.test_primary import Cut


class Running:
    """A secondary, run on a thread."""

    def __init__(self, config: QemuSecondaryConfig) -> None:
        self.events: list[tuple[str, Any]] = []
        self.outcome: TakeoverReport | BaseException | None = None
        self.secondary = QemuSecondary(config, on_event=lambda kind, data: self.events.append((kind, data)))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.secondary.run()
        except BaseException as error:
            self.outcome = error

    def said(self, kind: str) -> list[Any]:
        return [data for each, data in list(self.events) if each == kind]

    def join(self) -> TakeoverReport | BaseException | None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.outcome

    def close(self) -> None:
        self.secondary.stop()
        self.thread.join(60)
        self.secondary.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts secondaries without a stand-by, whose primaries nobody guards."""
    with contextlib.ExitStack() as cleanup:

        def start(**options: Any) -> Running:
            each = Running(QemuSecondaryConfig("tcp:127.0.0.1:0", tmp_path / "ram", lease_ms=0.0, **options))
            cleanup.callback(each.close)
            return each

        yield start


@pytest.fixture
def vm() -> Iterator[PageVm]:
    each = PageVm()
    yield each
    each.close()


def settings(address: str, **options: Any) -> PrimaryConfig:
    return PrimaryConfig(address, "none", interval_ms=3_600_000.0, lease_ms=0.0, **options)


def advance(vm: PageVm, primary: Primary) -> None:
    with vm.paused():
        vm.advance()
    primary.checkpoint(60)


def memory(session: Running) -> list[bytes]:
    session.secondary.ram.settle()
    committed = session.secondary.committed
    assert committed is not None
    return [bytes(memoryview(block.memory_buffer)) for block in committed.blocks]  # type: ignore[arg-type]


def test_a_primary_is_taken_back_after_a_short_loss(run: Callable[..., Running], vm: PageVm) -> None:
    session = run(wait_s=600.0)
    cut = Cut(session.secondary.address)
    with Primary(vm, settings(cut.address, resync_s=600.0)) as primary:
        primary.start()
        advance(vm, primary)
        for losses in (1, 2):  # into the second set of files, and back into the first
            cut.cut()
            wait_until(lambda: primary.statistics.full_copies == 1 + losses, 120.0, "the next full copy")  # noqa: B023
            advance(vm, primary)
            advance(vm, primary)
        assert primary.statistics.losses == 2
        assert session.secondary.status()["checkpoint"] == 2 and session.outcome is None
    session.secondary.stop()
    assert isinstance(session.join(), Interrupted)
    assert memory(session) == expected(5, vm.pages)


def test_one_that_does_not_come_back_is_lost(run: Callable[..., Running], vm: PageVm) -> None:
    session = run(wait_s=0.2)
    with Primary(vm, settings(session.secondary.address)) as primary:
        primary.start()
        advance(vm, primary)
        primary.stop()
    error = session.join()
    assert isinstance(error, StandbyError) and "did not come back" in str(error)
    assert memory(session) == expected(1, vm.pages)


def test_held_on_request_only_it_is_not_asked_for_when_the_time_is_over(run: Callable[..., Running], vm: PageVm) -> None:
    session = run(wait_s=0.01, on_loss="hold")
    with Primary(vm, settings(session.secondary.address)) as primary:
        primary.start()
        advance(vm, primary)
        primary.stop()
    error = session.join()
    assert isinstance(error, StandbyError) and "did not come back" not in str(error)


def test_a_first_copy_that_is_cut_leaves_what_is_held_and_the_time_begins_anew(
    run: Callable[..., Running], vm: PageVm
) -> None:
    session = run(wait_s=2.0)
    with Primary(vm, settings(session.secondary.address)) as primary:
        primary.start()
        advance(vm, primary)
        primary.stop()
    wait_until(lambda: bool(session.said("lost")), 60.0, "the loss")
    with contextlib.suppress(OSError):
        host, port = session.secondary.address.removeprefix("tcp:").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=5) as stranger:
            stranger.sendall(b"QEVM\0\0\0\3")
            wait_until(lambda: len(session.said("connected")) == 2, 60.0, "the next connection")
    error = session.join()
    assert isinstance(error, StandbyError) and "did not come back" in str(error)
    assert memory(session) == expected(1, vm.pages)


def test_a_further_sink_is_told_of_every_checkpoint_of_every_connection(run: Callable[..., Running], vm: PageVm) -> None:
    told: list[tuple[str, int]] = []

    class Sink:
        def prepare(self, number: int) -> None:
            told.append(("prepare", number))

        def commit(self, number: int) -> None:
            told.append(("commit", number))

        def drop(self, number: int) -> None:
            pass

        def recover(self) -> None:
            pass

    session = run(wait_s=600.0)
    session.secondary.sinks.append(Sink())
    cut = Cut(session.secondary.address)
    with Primary(vm, settings(cut.address, resync_s=600.0)) as primary:
        primary.start()
        advance(vm, primary)
        cut.cut()
        wait_until(lambda: primary.statistics.full_copies == 2, 120.0, "the second full copy")
    assert told == [(what, number) for number in (0, 1, 0) for what in ("prepare", "commit")]


def test_a_takeover_without_a_checkpoint_is_refused(run: Callable[..., Running]) -> None:
    session = run()
    with pytest.raises(NoCheckpoint, match="nothing to resume from"):
        session.secondary.request_failover()
