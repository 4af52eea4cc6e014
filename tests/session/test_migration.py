"""Live migration between two VMs of ours, over real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.abc import BlockMemory
from colo.arbiter import init_arbiter
from colo.errors import (
    AddressError,
    ArbitrationError,
    ArbitrationLost,
    ChannelError,
    ChannelLost,
    ColoError,
    Interrupted,
    ProtocolError,
    StreamError,
    VmError,
)
from colo.link.migration_in import MigrationIn
from colo.memory.trackers import open_tracker, probe
from colo.protocol import decode_return_path, encode_return_path
from colo.protocol.deadlines import Deadlines
from colo.protocol.migration import MigrationStatus
from colo.session.migration import (
    Arrival,
    DestinationConfig,
    Migration,
    MigrationConfig,
    MigrationDestination,
    VmPlace,
)
from colo.session.primary import Primary, PrimaryConfig
from colo.stream.writer import (
    command,
    configuration,
    end_of_stream,
    file_header,
    ping,
    section_footer,
    vmdescription,
)
from colo.wire import DIGEST_BYTES, HELLO, HELLO_COLO, LAST_WORD_MIN, Command, ReturnPath
from tests.session.primary_vm import PAGE, PageVm, expected

TRACKERS = [result.name for result in probe() if result.available and result.name != "explicit"]
PAGES = 64
QUICK = Deadlines(message_s=1.0, progress_s=1.0, epoch_s=2.0, handshake_s=2.0, idle_s=5.0)


class Target:
    """A destination on a thread, and what became of it."""

    def __init__(self, vm: Any = None, **options: Any) -> None:
        self.vm = vm or PageVm(PAGES)
        self.outcome: Arrival | BaseException | None = None
        self.destination = MigrationDestination(
            self.vm, DestinationConfig(**{"listen": "tcp:127.0.0.1:0", "resume": False, "deadlines": QUICK, **options}))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self.destination.run()
        except ColoError as error:
            self.outcome = error

    def join(self) -> Any:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome

    def close(self) -> None:
        if self.thread.is_alive():
            self.destination.stop()
            self.thread.join(20)
        self.destination.close()
        if hasattr(self.vm, "close"):
            self.vm.close()


@pytest.fixture
def target() -> Iterator[Target]:
    each = Target()
    yield each
    each.close()


@pytest.fixture
def vm() -> Iterator[Any]:
    each = PageVm(PAGES, free_running=True)
    yield each
    each.close()


def config(target: Target, **options: Any) -> MigrationConfig:
    return MigrationConfig(target.destination.address, **{"deadlines": QUICK, **options})


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def runs_on(vm: Any) -> None:
    """The VM runs here, as if nothing had been."""
    assert vm.running
    turn = vm.turn
    wait_until(lambda: vm.turn > turn, "the VM stands still")
    with vm.paused():
        assert vm.image() == expected(vm.turn, vm.pages)


def tracked_by_nobody(migration: Migration) -> None:
    for part in migration._pages.tracker.parts:  # type: ignore[attr-defined]
        assert not part.started


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("xbzrle", [None, "shadow", 4 << 20])
@pytest.mark.parametrize("return_path", [True, False])
def test_memory_and_state_arrive_as_they_were_at_the_pause(
    vm: Any, target: Target, tracker: str, xbzrle: Any, return_path: bool
) -> None:
    for view in target.vm.views:
        view[:] = b"\xff" * len(view)
    vm.resume()
    wait_until(lambda: vm.turn > 20)
    # A limit that is not reached at once makes further rounds.
    with Migration(vm, config(target, tracker=tracker, xbzrle=xbzrle, return_path=return_path, downtime_limit_ms=2)) as it:
        outcome = it.run()
        tracked_by_nobody(it)
    assert outcome.status is MigrationStatus.COMPLETED
    assert outcome.vm is VmPlace.THERE
    assert isinstance(target.join(), Arrival), target.outcome
    assert target.outcome.confirmed == return_path
    assert not vm.running
    assert vm.turn == target.vm.turn
    assert vm.image() == target.vm.image() == expected(vm.turn, vm.pages)
    if return_path:  # without, the source may be done before the destination
        target.vm.free_running = True
        target.vm.resume()
        runs_on(target.vm)


def test_over_a_unix_socket(vm: Any, tmp_path: Path) -> None:
    far = Target(listen=f"unix:{tmp_path}/socket")
    vm.resume()
    for return_path in (True, False):
        with Migration(vm, config(far, max_bandwidth_bytes_per_s=4 << 20, return_path=return_path)) as it:
            assert it.run().vm is VmPlace.THERE
        assert isinstance(far.join(), Arrival)
        assert far.vm.image() == expected(vm.turn, vm.pages)
        vm.resume()
        far.thread = threading.Thread(target=far._run, daemon=True)
        far.thread.start()
    far.close()


def test_figures_have_the_names_of_query_migrate(vm: Any, target: Target) -> None:
    seen: list[Any] = []
    vm.resume()
    wait_until(lambda: vm.turn > 20)
    with Migration(vm, config(target, xbzrle="shadow"), on_event=lambda kind, data: seen.append((kind, data))) as it:
        assert it.status() == {"status": "none", "vm": "here"}
        it.run()
        status = it.status()
    assert [data for kind, data in seen if kind == "status"] == ["setup", "active", "device", "completed"]
    ram = status["ram"]
    assert status["status"] == "completed" and status["vm"] == "there"
    assert ram["total"] == (PAGES + 2) * PAGE
    assert ram["remaining"] == 0
    assert ram["duplicate"] + ram["normal"] >= PAGES + 2
    assert ram["normal-bytes"] == ram["normal"] * ram["page-size"]
    assert ram["transferred"] == target.join().stream_bytes == ram["precopy-bytes"] + ram["downtime-bytes"]
    assert ram["dirty-sync-count"] >= 3
    assert 0 < status["downtime"] < status["total-time"] and status["setup-time"] <= status["total-time"]
    assert set(status["xbzrle-cache"]) == {
        "cache-size", "bytes", "pages", "cache-miss", "cache-miss-rate", "encoding-rate", "overflow"}
    arrived = target.destination.status()
    assert arrived["status"] == "completed"
    assert arrived["ram"]["normal"] == ram["normal"] and arrived["ram"]["duplicate"] == ram["duplicate"]


def test_a_vm_that_stood_still_is_migrated_as_it_stands(target: Target) -> None:
    vm = PageVm(PAGES)
    vm.advance()
    with Migration(vm, config(target)) as it:
        it.run()
    target.join()
    assert target.vm.image() == expected(1, vm.pages)
    with Migration(vm, MigrationConfig("tcp:127.0.0.1:9", connect_s=0.05)) as it, pytest.raises(ChannelError):
        it.run()
    assert not vm.running


class BusyVm(PageVm):  # type: ignore[misc, valid-type]
    """Writes all of its memory over and over."""

    def __init__(self) -> None:
        super().__init__(512)
        self.throttled: list[int] = []

    def step(self) -> None:
        self.turn += 1
        self.views[0][:] = struct.pack(">Q", self.turn) * (len(self.views[0]) // 8)
        threading.Event().wait(0.0005)

    def throttle(self, percent: int) -> None:
        self.throttled.append(percent)
        super().throttle(percent)


class AllDirty:
    """A tracker of such a VM, however rarely the machine lets it run."""

    name, atomic, by_content = "all", True, False
    parts = ()

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def give_back(self, bitmaps: Any) -> None: ...

    def harvest(self, bitmaps: Any) -> int:
        for bitmap in bitmaps:
            bitmap.set(0, bitmap.pages)
        return sum(bitmap.pages for bitmap in bitmaps)


def test_without_auto_converge_it_goes_on_and_with_it_it_ends(target: Target) -> None:
    vm = BusyVm()
    far = Target(BusyVm())
    vm.resume()
    options: dict[str, Any] = {
        "downtime_limit_ms": 0.001, "max_bandwidth_bytes_per_s": 64 << 20, "tracker": AllDirty()}
    with Migration(vm, config(far, **options)) as it:
        it.start()
        wait_until(lambda: it.progress.rounds >= 6)
        assert it.status()["status"] == "active"
        assert not vm.throttled
        assert it.cancel().status is MigrationStatus.CANCELLED
    assert isinstance(far.join(), ChannelLost)
    far.close()
    far = Target(BusyVm())
    with Migration(vm, config(far, **options, auto_converge=True)) as it:
        it.start()
        wait_until(lambda: len(vm.throttled) >= 3)
        assert vm.throttled[:3] == [20, 30, 40]
        # Even at 99 % all of this VM's memory is written: what it takes to be done is known now.
        it.downtime_limit_ms = 10_000
        assert it.wait(20).status is MigrationStatus.COMPLETED
        assert vm.throttled[-1] == 0
        assert it.status()["cpu-throttle-percentage"] == 0
    far.join()
    assert far.vm.image()[0] == vm.image()[0]
    far.close()
    vm.close()


class SparseVm(PageVm):  # type: ignore[misc, valid-type]
    """Writes some pages a step, and so fewer pages in a round the more it is throttled."""

    def __init__(self) -> None:
        super().__init__(512)

    def step(self) -> None:
        for _ in range(8):
            self.turn += 1
            at = self.turn * 7 % 512 * PAGE
            self.views[0][at : at + PAGE] = struct.pack(">Q", self.turn) * (PAGE // 8)
        threading.Event().wait(0.001)


def test_throttling_makes_the_rounds_shorter_until_the_rest_fits() -> None:
    vm, far = SparseVm(), Target(SparseVm())
    vm.resume()
    wait_until(lambda: vm.turn > 600)  # no page is zero any more
    rounds: list[Any] = []
    # At 8 MB/s the 2 MiB take a quarter of a second, in which all of them are written again.
    with Migration(
        vm, config(far, auto_converge=True, throttle_initial_percent=60, throttle_increment_percent=39,
                   downtime_limit_ms=60, max_bandwidth_bytes_per_s=8 << 20),
        on_event=lambda kind, data: rounds.append(data) if kind == "round" else None,
    ) as it:
        assert it.run().status is MigrationStatus.COMPLETED
    assert rounds[0].dirty_pages > 400
    assert rounds[-1].dirty_pages < rounds[0].dirty_pages
    far.join()
    assert far.vm.image() == vm.image()
    far.close()
    vm.close()


def test_bandwidth_is_limited_and_may_be_changed_meanwhile(target: Target) -> None:
    vm = PageVm(PAGES)
    for view in vm.views:
        view[:] = os.urandom(len(view))
    limit = 200_000
    with Migration(vm, config(target, max_bandwidth_bytes_per_s=limit)) as it:
        it.start()
        wait_until(lambda: it.progress.sent_bytes > 40_000)
        elapsed = (time.monotonic_ns() - it.progress.round_began_ns) / 1e9
        # One batch may be ahead of its time.
        assert it.progress.sent_bytes <= limit * elapsed + it._pacer.batch_bytes + 10_000
        assert it.status()["eta-ms"] > 0
        it.max_bandwidth_bytes_per_s = 0
        assert it.wait(20).status is MigrationStatus.COMPLETED
    target.join()


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_page_changed_and_changed_back_while_it_is_sent_arrives_as_it_is(target: Target, tracker: str) -> None:
    """A tracker that goes by content does not see that it changed at all."""
    vm = PageVm(PAGES)
    for view in vm.views:
        view[:] = os.urandom(len(view))
    page = slice(30 * PAGE, 31 * PAGE)
    before = bytes(vm.views[0][page])
    with Migration(vm, config(target, tracker=tracker, max_bandwidth_bytes_per_s=400_000)) as it:
        it.start()
        wait_until(lambda: it.progress.sent_bytes > PAGE)
        assert it.progress.sent_bytes < 25 * PAGE
        vm.views[0][page] = bytes(reversed(before))
        wait_until(lambda: it.progress.sent_bytes > 45 * PAGE)
        vm.views[0][page] = before
        it.wait(20)
    target.join()
    assert target.vm.image() == vm.image()


def test_it_waits_before_the_switchover_until_told(vm: Any, target: Target) -> None:
    vm.resume()
    with Migration(vm, config(target, pause_before_switchover=True)) as it:
        it.start()
        with pytest.raises(RuntimeError, match="not pre-switchover"):
            it.continue_()
        wait_until(lambda: it.status()["status"] == "pre-switchover")
        assert not vm.running
        with vm.lock:
            vm.advance()  # as a disk that is flushed now may
        assert target.destination.status()["status"] == "active"
        it.continue_()
        assert it.wait(20).status is MigrationStatus.COMPLETED
    target.join()
    assert target.vm.image() == expected(vm.turn, vm.pages) and target.vm.turn == vm.turn


@pytest.mark.parametrize("phase", ["setup", "active", "pre-switchover", "device"])
def test_cancelled_in_any_phase_the_vm_runs_on(phase: str, vm: Any, target: Target) -> None:
    vm.resume()
    wait_until(lambda: vm.turn > 10)
    go_on = threading.Event()
    options: dict[str, Any] = {"auto_converge": True}
    silent = socket.create_server(("127.0.0.1", 0))
    if phase == "setup":
        options["deadlines"] = Deadlines()
    elif phase == "active":
        options |= {"max_bandwidth_bytes_per_s": 20_000}
    elif phase == "pre-switchover":
        options["pause_before_switchover"] = True
    else:
        vm.on_save = lambda: go_on.wait(1) and None
    settings = config(target, **options)
    if phase == "setup":  # a listener that never answers
        settings = MigrationConfig(f"tcp:127.0.0.1:{silent.getsockname()[1]}", **options)
    with Migration(vm, settings) as it:
        it.start()
        wait_until(lambda: it.status()["status"] == phase)
        threading.Timer(0.05, go_on.set).start()
        outcome = it.cancel("test")
        assert outcome.status is MigrationStatus.CANCELLED
        assert outcome.vm is VmPlace.HERE
        assert it.status()["status"] == "cancelled"
        tracked_by_nobody(it)
    runs_on(vm)
    assert vm._throttle_percent == 0
    silent.close()
    if phase != "setup":
        assert isinstance(target.join(), ChannelLost)
        assert not target.vm.running


def test_cancelling_is_too_late_once_the_end_is_handed_out(vm: Any) -> None:
    class Slow(PageVm):  # type: ignore[misc, valid-type]
        loading = threading.Event()
        go_on = threading.Event()

        def load_state(self, state: memoryview) -> None:
            self.loading.set()
            assert self.go_on.wait(10)
            super().load_state(state)

    far = Target(Slow(PAGES))
    vm.resume()
    with Migration(vm, config(far)) as it:
        it.start()
        assert far.vm.loading.wait(10)
        threading.Timer(0.05, far.vm.go_on.set).start()
        assert it.cancel().status is MigrationStatus.COMPLETED
    far.join()
    far.close()
    assert not vm.running


def test_save_state_that_raises_leaves_the_vm_running(vm: Any, target: Target) -> None:
    def refuse() -> None:
        raise OSError("no state today")

    vm.on_save = refuse
    vm.resume()
    with Migration(vm, config(target)) as it:
        with pytest.raises(VmError, match="no state today"):
            it.run()
        assert it.status()["status"] == "failed" and it.status()["vm"] == "here"
        assert "no state today" in it.status()["error-desc"]
        tracked_by_nobody(it)
    vm.on_save = lambda: None
    runs_on(vm)
    assert isinstance(target.join(), ChannelLost)


def test_save_state_that_hangs_is_given_up(vm: Any, target: Target) -> None:
    go_on = threading.Event()
    vm.on_save = lambda: go_on.wait(20) and None
    vm.resume()
    with Migration(vm, config(target, vm_s=0.3)) as it:
        with pytest.raises(VmError, match="did not return within"):
            it.run()
        assert vm.running
        go_on.set()
    assert isinstance(target.join(), ChannelLost)
    runs_on(vm)


def test_a_vm_that_refuses_its_state_gives_it_back(vm: Any) -> None:
    class Refusing(PageVm):  # type: ignore[misc, valid-type]
        def load_state(self, state: memoryview) -> None:
            raise ValueError("not mine")

    far = Target(Refusing(PAGES), resume=True)
    vm.resume()
    with Migration(vm, config(far)) as it:
        with pytest.raises(ChannelError, match="did not take the VM over"):
            it.run()
        assert it.status()["vm"] == "here"
    runs_on(vm)
    assert isinstance(far.join(), VmError)
    assert not far.vm.running
    far.close()


@pytest.mark.parametrize("can_pause", [True, False])
def test_a_vm_that_does_not_resume_gives_it_back_only_if_it_stands_still(vm: Any, can_pause: bool) -> None:
    class Stuck(PageVm):  # type: ignore[misc, valid-type]
        tried = False

        def resume(self) -> None:
            self.tried = True
            raise OSError("no CPU")

        def pause(self) -> None:
            if self.tried and not can_pause:
                raise OSError("no idea")

    far = Target(Stuck(PAGES), resume=True)
    vm.resume()
    with Migration(vm, config(far)) as it:
        with pytest.raises(ChannelError if can_pause else ArbitrationError):
            it.run()
        assert vm.running == can_pause
    assert isinstance(far.join(), VmError)
    far.close()


def test_memory_of_another_shape_is_refused(vm: Any) -> None:
    far = Target(PageVm(PAGES + 1))
    vm.resume()
    with Migration(vm, config(far)) as it, pytest.raises(ChannelError):
        it.run()
    runs_on(vm)
    assert isinstance(far.join(), StreamError)
    far.close()
    far = Target(machine="pc")
    with Migration(vm, config(far)) as it, pytest.raises(ChannelError):
        it.run()
    assert "is 'pc'" in str(far.join())
    far.close()


def test_a_destination_takes_the_next_one_after_a_failure(vm: Any, target: Target) -> None:
    vm.resume()
    with Migration(vm, config(target, max_bandwidth_bytes_per_s=20_000)) as it:
        it.start()
        wait_until(lambda: it.status()["status"] == "active")
    assert isinstance(target.join(), ChannelLost)
    target.thread = threading.Thread(target=target._run, daemon=True)
    target.thread.start()
    with Migration(vm, config(target)) as it:
        it.run()
    assert isinstance(target.join(), Arrival)
    assert target.vm.image() == expected(vm.turn, vm.pages)


def test_one_session_has_a_vm(vm: Any, target: Target) -> None:
    vm.resume()
    with Migration(vm, config(target, pause_before_switchover=True)) as it:
        it.start()
        with pytest.raises(RuntimeError, match="another session"):
            Migration(vm, config(target)).start()
        with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="another session"):
            Primary(vm, PrimaryConfig(target.destination.address, "none")).start()
        with MigrationDestination(vm, DestinationConfig("tcp:127.0.0.1:0")) as other, \
                pytest.raises(RuntimeError, match="another session"):
            other.run()
    runs_on(vm)


def test_what_cannot_be_asked_is_refused(vm: Any) -> None:
    with pytest.raises(AddressError):
        Migration(vm, MigrationConfig("tcp:192.0.2.1:9"))
    with pytest.raises(ValueError, match="return path"):
        Migration(vm, MigrationConfig("tcp:127.0.0.1:9", arbiter="file:/nowhere", return_path=False))
    with pytest.raises(ValueError, match="downtime"):
        Migration(vm, MigrationConfig("tcp:127.0.0.1:9", downtime_limit_ms=-1))

    class Plain:
        memory = BlockMemory.allocate({"ram": PAGE})

    with pytest.raises(ValueError, match="Throttled"):
        Migration(Plain(), MigrationConfig("tcp:127.0.0.1:9", auto_converge=True))  # type: ignore[arg-type]


def test_a_tracker_that_lost_the_memory_ends_it(vm: Any, target: Target) -> None:
    tracker = open_tracker("explicit", vm.memory)
    vm.resume()
    with Migration(vm, config(target, tracker=tracker, max_bandwidth_bytes_per_s=100_000)) as it:
        it.start()
        wait_until(lambda: it.status()["status"] == "active")
        tracker.stop()
        it.max_bandwidth_bytes_per_s = 0
        with pytest.raises(ColoError):
            it.wait(20)
    runs_on(vm)


# -- peers that are not what they should be


class Peer:
    """A destination by hand: reads everything, says what it is told."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.to = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        self.got = bytearray()

    def accept(self) -> socket.socket:
        self.listener.settimeout(10)
        sock, _ = self.listener.accept()
        sock.settimeout(10)
        return sock

    def serve(self, say: Callable[[socket.socket, bytes], bool]) -> threading.Thread:
        def run() -> None:
            with self.accept() as sock, contextlib.suppress(OSError):
                while data := sock.recv(1 << 16):
                    self.got += data
                    if say(sock, data):
                        return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


HELLO_BYTES = ping(HELLO)


@pytest.mark.parametrize(("answer", "error"), [
    (encode_return_path(ReturnPath.PONG, 77), ProtocolError),
    (encode_return_path(ReturnPath.SHUT, 0), ProtocolError),
    (encode_return_path(ReturnPath.SHUT, 1), ChannelError),
    (encode_return_path(ReturnPath.REQ_PAGES, payload=bytes(12)), ProtocolError),
    (b"\x00\x09\x00\x04abcd", StreamError),
    (b"\x00\x02\xff\xff", StreamError),
    (b"\x00\x02", ChannelError),
    (b"", ChannelError),
])
def test_an_answer_that_is_none_ends_it_and_the_vm_runs_on(vm: Any, answer: bytes, error: type[ColoError]) -> None:
    peer = Peer()

    def say(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(answer)
        return True

    thread = peer.serve(say)
    vm.resume()
    with Migration(vm, MigrationConfig(peer.to, deadlines=QUICK)) as it, pytest.raises(error):
        it.run()
    runs_on(vm)
    thread.join(10)
    peer.listener.close()


def test_a_silent_destination_meets_its_deadline(vm: Any) -> None:
    peer = Peer()
    thread = peer.serve(lambda sock, data: False)
    vm.resume()
    deadlines = Deadlines(handshake_s=0.3)
    with Migration(vm, MigrationConfig(peer.to, deadlines=deadlines)) as it, pytest.raises(ChannelError, match="handshake"):
        it.run()
    runs_on(vm)
    thread.join(10)
    peer.listener.close()


def colo_until_the_end(sock: socket.socket, got: bytearray, state: dict[str, int]) -> bool:
    """Answer each PING as a colo destination does; returns whether the whole stream is here."""
    while (at := got.find(b"\x08\x00\x02\x00\x04", state["at"])) >= 0 and len(got) >= at + 9:
        number = int.from_bytes(got[at + 5 : at + 9], "big")
        sock.sendall(encode_return_path(ReturnPath.PONG, number | HELLO_COLO if number == HELLO else number))
        if number >= LAST_WORD_MIN:
            state["word"] = number
        state["at"] = at + 9
    return "word" in state and got[:-DIGEST_BYTES].endswith(b"}]}" + state["word"].to_bytes(4, "big"))


def test_what_is_damaged_while_the_vm_stands_still_is_not_run(vm: Any, target: Target) -> None:
    """Neither a page nor the device state; the VM goes on here."""
    random_page = os.urandom(PAGE)
    for planted, state in ((b"gadget", b"gadget" * 20), (random_page[:64], None)):
        peer = Peer()
        host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
        with socket.create_connection((host, int(port))) as far:
            near: list[socket.socket] = []

            def back(far: socket.socket = far, near: list[socket.socket] = near) -> None:
                with contextlib.suppress(OSError):
                    while data := far.recv(4096):
                        near[0].sendall(data)

            def say(
                sock: socket.socket, data: bytes, far: socket.socket = far, near: list[socket.socket] = near,
                planted: bytes = planted,
            ) -> bool:
                if not near:
                    near.append(sock)
                    threading.Thread(target=back, daemon=True).start()
                at = data.find(planted)
                far.sendall(data if at < 0 else data[: at + 3] + bytes((data[at + 3] ^ 4,)) + data[at + 4 :])
                return False

            thread = peer.serve(say)
            if state is not None:
                vm.save_state = lambda state=state: state
            else:
                del vm.save_state

                def write_page() -> None:  # though it should not: it is sent with the last pages
                    vm.views[1][:PAGE] = random_page

                vm.on_save = write_page
            vm.resume()
            with Migration(vm, MigrationConfig(peer.to, deadlines=QUICK)) as it, pytest.raises(ChannelError, match="SHUT 1"):
                it.run()
            assert "damaged on its way" in str(target.join()), target.outcome
            assert vm.running and not target.vm.running
            thread.join(10)
            peer.listener.close()
        target.thread = threading.Thread(target=target._run, daemon=True)
        target.thread.start()


def test_what_looks_like_the_end_is_not_enough(vm: Any, target: Target) -> None:
    """State that holds a footer, EOF and a vmdesc which fits: a cut right behind it must run the VM on one side only."""
    planted = b"12345678" + section_footer(1) + end_of_stream() + vmdescription(json.dumps({
        "page_size": 4096, "devices": [{
            "name": "colo/state", "instance_id": 0, "version": 1, "fields": [{"name": "state", "type": "buffer", "size": 8}],
        }]}).encode())
    vm.save_state = lambda: planted + bytes(32 << 20)  # more than sockets hold
    peer = Peer()
    host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
    far = socket.create_connection((host, int(port)))

    def back() -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(4096):
                near[0].sendall(data)

    near: list[socket.socket] = []

    def say(sock: socket.socket, data: bytes) -> bool:
        if not near:
            near.append(sock)
            threading.Thread(target=back, daemon=True).start()
        at = peer.got.find(planted)
        if at < 0:
            far.sendall(data)
            return False
        before = len(peer.got) - len(data)
        far.sendall(bytes(peer.got[before : at + len(planted)]))
        return True  # cut

    thread = peer.serve(say)
    vm.resume()
    with Migration(vm, MigrationConfig(peer.to, deadlines=QUICK)) as it, pytest.raises(ChannelError):
        it.run()
    thread.join(10)
    time.sleep(0.1)
    far.shutdown(socket.SHUT_WR)
    assert isinstance(target.join(), ColoError), target.outcome
    runs_on(vm)
    far.close()
    peer.listener.close()


@pytest.mark.parametrize("last_word", [b"", b"\x00\x01", b"\x00\x09\x00\x00", encode_return_path(ReturnPath.PONG, 3)])
def test_an_answer_lost_at_the_very_end_runs_the_vm_nowhere_by_itself(vm: Any, last_word: bytes) -> None:
    peer = Peer()
    state = {"at": 0}

    def say(sock: socket.socket, data: bytes) -> bool:
        if colo_until_the_end(sock, peer.got, state):
            sock.sendall(last_word)
            return True
        return False

    peer.serve(say)
    vm.resume()
    with Migration(vm, MigrationConfig(peer.to, deadlines=QUICK)) as it:
        with pytest.raises(ArbitrationError, match="stands still"):
            it.run()
        assert not vm.running
        assert it.status()["vm"] == "undecided" and it.status()["status"] == "failed"
        it.decide(destination_runs=False)
        assert it.status()["vm"] == "here"
        with pytest.raises(RuntimeError, match="not undecided"):
            it.decide(destination_runs=True)
    runs_on(vm)
    peer.listener.close()


def test_the_arbiter_decides_when_the_answer_is_lost(vm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination claims before it runs: the source finds out either way."""
    arbiter = tmp_path / "arbiter"
    arbiter.mkdir(mode=0o700)
    init_arbiter(f"file:{arbiter}", vm="test")
    say = MigrationIn.say
    for destination_claims in (True, False):
        vm.resume()
        far = Target(PageVm(PAGES), arbiter=f"file:{arbiter}", resume=True)
        lost = threading.Event()

        def lose(link: MigrationIn, kind: Any, value: int, *, must: bool = False, lost: Any = lost) -> bool:
            if kind is not ReturnPath.SHUT:
                return say(link, kind, value, must=must)
            lost.set()
            return False

        monkeypatch.setattr(MigrationIn, "say", lose)
        if not destination_claims:
            def die(_: Any) -> None:
                raise ArbitrationError("out of reach")

            far.destination._claim = die  # type: ignore[method-assign]
        with Migration(vm, config(far, arbiter=f"file:{arbiter}")) as it:
            it.start()
            if destination_claims:
                assert it.wait(20).vm is VmPlace.THERE
                assert not vm.running and far.vm.running
            else:
                with pytest.raises(ChannelError):
                    it.wait(20)
                assert not far.vm.running
                runs_on(vm)
        assert lost.is_set()
        far.join()
        far.close()


def test_who_lost_the_claim_does_not_run(vm: Any, tmp_path: Path) -> None:
    arbiter = tmp_path / "arbiter"
    arbiter.mkdir(mode=0o700)
    init_arbiter(f"file:{arbiter}", vm="test")
    far = Target(arbiter=f"file:{arbiter}", resume=True)
    vm.resume()
    with Migration(vm, config(far, arbiter=f"file:{arbiter}")) as it:
        assert it._arbiter is not None
        it._arbiter.claim(0, reason="a source that saw its answer lost")
        with pytest.raises(ChannelError, match="did not take the VM over"):
            it.run()
    assert isinstance(far.join(), ArbitrationLost)
    assert not far.vm.running
    runs_on(vm)
    far.close()


def test_an_arbiter_that_the_destination_does_not_ask_is_refused(vm: Any, target: Target, tmp_path: Path) -> None:
    arbiter = tmp_path / "arbiter"
    arbiter.mkdir(mode=0o700)
    init_arbiter(f"file:{arbiter}", vm="test")
    vm.resume()
    with Migration(vm, config(target, arbiter=f"file:{arbiter}")) as it, pytest.raises(ArbitrationError, match="both sides"):
        it.run()
    runs_on(vm)


@pytest.mark.parametrize(("stream", "error"), [
    (file_header() + configuration("colo") + ping(1), ProtocolError),
    (file_header() + configuration("colo") + command(Command.ENABLE_COLO), ProtocolError),
    (file_header() + configuration("colo") + command(Command.POSTCOPY_ADVISE), ProtocolError),
    (file_header() + configuration("colo") + b"\x00", StreamError),
    (file_header() + b"\x00", StreamError),
])
def test_a_source_that_is_none_is_refused(target: Target, stream: bytes, error: type[ColoError]) -> None:
    host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(stream)
        assert isinstance(target.join(), error), target.outcome
    assert target.vm.image() == expected(0, target.vm.pages)


def test_a_destination_that_gives_up_tells_the_source(target: Target) -> None:
    host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(file_header() + configuration("colo") + command(Command.OPEN_RETURN_PATH) + ping(9) + b"\x7f")
        sock.settimeout(10)
        answers = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(100):
                answers += data
        assert decode_return_path(answers[:8]).value == 9
        assert decode_return_path(answers[8:]) == (ReturnPath.SHUT, b"\x00\x00\x00\x01")
    assert isinstance(target.join(), StreamError)


def test_a_destination_is_stopped_while_it_waits(target: Target) -> None:
    wait_until(lambda: target.thread.is_alive())
    target.destination.stop()
    assert isinstance(target.join(), Interrupted)


def stream_of(vm: Any) -> bytes:
    """A whole migration, as a destination gets it."""
    peer = Peer()
    state = {"at": 0}

    def say(sock: socket.socket, data: bytes) -> bool:
        if colo_until_the_end(sock, peer.got, state):
            sock.sendall(encode_return_path(ReturnPath.SHUT, 0))
            return True
        return False

    thread = peer.serve(say)
    with Migration(vm, MigrationConfig(peer.to, deadlines=QUICK)) as it:
        it.run()
    thread.join(10)
    peer.listener.close()
    return bytes(peer.got)


def test_a_damaged_or_cut_stream_never_runs_what_did_not_arrive() -> None:
    draw = random.Random(5)
    source = PageVm(4)
    source.advance()
    whole = stream_of(source)
    source.close()
    vm = PageVm(4)
    with MigrationDestination(vm, DestinationConfig("tcp:127.0.0.1:0", deadlines=QUICK)) as destination:
        host, port = destination.address.removeprefix("tcp:").rsplit(":", 1)
        outcomes = []
        for n in range(150):
            data = bytearray(whole)
            cut = n % 2 == 0
            if cut:
                del data[draw.randrange(8, len(data)) :]
            else:
                at = draw.randrange(8, len(data))
                data[at] ^= 1 << draw.randrange(8)
            vm.pause()
            vm.turn = -1

            def send(data: bytes = bytes(data)) -> None:
                with socket.create_connection((host, int(port))) as sock, contextlib.suppress(OSError):
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass

            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            try:
                outcomes.append(destination.run())
                # Damage to a page, the machine's name or the vmdesc's text; never to the device state.
                assert not cut
                assert vm.running and vm.turn == 1
            except ColoError as error:
                outcomes.append(error)
                assert not vm.running and vm.turn == -1
            thread.join(10)
    vm.close()
    assert sum(isinstance(each, ColoError) for each in outcomes) > 75


# -- a destination process that is killed

CHILD = """
import sys, time
sys.path.insert(0, {root!r})
from tests.session.primary_vm import PageVm
from colo.session.migration import DestinationConfig, MigrationDestination
class Vm(PageVm):
    def load_state(self, state):
        if {hang}:
            print("loading", flush=True)
            time.sleep(60)
        super().load_state(state)
vm = Vm({pages})
with MigrationDestination(vm, DestinationConfig("tcp:127.0.0.1:0")) as destination:
    print(destination.address, flush=True)
    destination.run()
"""


@pytest.mark.parametrize("when", ["round", "switchover"])
def test_a_killed_destination(vm: Any, when: str) -> None:
    root = str(Path(__file__).parents[2])
    script = CHILD.format(root=root, hang=when == "switchover", pages=PAGES)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert child.stdout is not None
    address = child.stdout.readline().strip()
    vm.resume()
    wait_until(lambda: vm.turn > 10)
    options: dict[str, Any] = {"max_bandwidth_bytes_per_s": 20_000} if when == "round" else {}
    with Migration(vm, MigrationConfig(address, **options)) as it:
        it.start()
        if when == "round":
            wait_until(lambda: it.progress.sent_bytes > 2000)
            child.send_signal(signal.SIGKILL)
            with pytest.raises(ChannelError):
                it.wait(20)
        else:
            assert child.stdout.readline() == "loading\n"
            assert not vm.running
            child.send_signal(signal.SIGKILL)
            with pytest.raises(ArbitrationError, match="may run"):
                it.wait(20)
            # It is dead, which only we know.
            assert not vm.running
            assert vm.image() == expected(vm.turn, vm.pages)
            it.decide(destination_runs=False)
    runs_on(vm)
    child.wait(10)
    child.stdout.close()
