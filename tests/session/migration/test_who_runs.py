"""The answer is lost, the arbiter decides, or a destination is killed."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import init_arbiter
from colo.errors import ArbitrationError, ArbitrationLost, ChannelError, ColoError
from colo.link.migration_in import MigrationIn
from colo.protocol import encode_return_path
from colo.session.migration import MigrationSource, MigrationSourceConfig, VmPlace
from colo.wire import ReturnPath
from tests.session.migration.peer import Peer, colo_until_the_end
from tests.session.migration.target import PAGES, QUICK, Target, config, runs_on, wait_until
from tests.session.primary_vm import PageVm, expected


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
        with MigrationSource(vm, config(far, arbiter=f"file:{arbiter}")) as it:
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
    with MigrationSource(vm, config(far, arbiter=f"file:{arbiter}")) as it:
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
    with MigrationSource(vm, config(target, arbiter=f"file:{arbiter}")) as it, pytest.raises(ArbitrationError, match="both sides"):
        it.run()
    runs_on(vm)


def test_a_tracker_that_fails_when_all_is_over_gives_the_vm_back_to_nobody(vm: Any, target: Target) -> None:
    """It has moved: whatever goes wrong here afterwards, it does not run here again."""
    notices: list[str] = []
    vm.resume()
    with MigrationSource(vm, config(target), on_event=lambda kind, data: notices.append(data) if kind == "notice" else None) as it:
        tracker = it._pages.tracker
        stop = tracker.stop

        def fail() -> None:
            if it.place is VmPlace.THERE:
                raise OSError("lost its descriptor")
            stop()

        tracker.stop = fail  # type: ignore[method-assign]
        assert it.run().vm is VmPlace.THERE
        assert not vm.running and it.status()["status"] == "completed"
        assert notices == ["at the end: lost its descriptor"]
        tracker.stop = stop  # type: ignore[method-assign]
    # The VM is not held by a session that is over.
    with MigrationSource(vm, MigrationSourceConfig("tcp:127.0.0.1:9", connect_s=0.05)) as it, contextlib.suppress(ColoError):
        it.run()


@pytest.mark.parametrize("answered", [True, False])
def test_a_vm_that_hangs_when_all_is_over_is_not_let_run_here(vm: Any, answered: bool) -> None:
    """Its throttle does not return; what is done for it from beside must not be what a VM that is here needs."""
    hung = threading.Event()

    class Slow(PageVm):  # type: ignore[misc, valid-type]
        def throttle(self, percent: int) -> None:
            if percent == 0:
                hung.wait(20)

    slow = Slow(PAGES)
    peer = Peer()
    state = {"at": 0}

    def say(sock: socket.socket, data: bytes) -> bool:
        if colo_until_the_end(sock, peer.got, state):
            if answered:
                sock.sendall(encode_return_path(ReturnPath.SHUT, 0))
            return True
        return False

    peer.serve(say)
    slow.resume()
    with MigrationSource(slow, MigrationSourceConfig(peer.to, deadlines=QUICK, auto_converge=True, vm_s=0.3)) as it:
        it._run.source.throttle_percent = 20  # as if it had been slowed down
        it.start()
        if answered:
            assert it.wait(20).vm is VmPlace.THERE
        else:
            with pytest.raises(ArbitrationError, match="stands still"):
                it.wait(20)
        assert not slow.running
        assert it.status()["status"] == ("completed" if answered else "failed")
        hung.set()
    assert not slow.running
    slow.close()
    peer.listener.close()


def test_an_arbiter_that_breaks_leaves_it_undecided(vm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arbiter = tmp_path / "arbiter"
    arbiter.mkdir(mode=0o700)
    init_arbiter(f"file:{arbiter}", vm="test")
    far = Target(arbiter=f"file:{arbiter}", resume=True)
    monkeypatch.setattr(MigrationIn, "say", lambda link, kind, value, *, must=False, say=MigrationIn.say: (
        kind is not ReturnPath.SHUT and say(link, kind, value, must=must)))
    vm.resume()
    with MigrationSource(vm, config(far, arbiter=f"file:{arbiter}")) as it:
        assert it._arbiter is not None

        def claim(*args: Any, **options: Any) -> Any:
            raise ValueError("a record that nobody wrote")

        monkeypatch.setattr(it._arbiter, "claim", claim)
        with pytest.raises(ArbitrationError, match="stands still"):
            it.run()
        assert it.status()["vm"] == "undecided"
        assert far.join().confirmed is False
        assert far.vm.running and not vm.running
    far.close()


CHILD = """
import sys, time
sys.path.insert(0, {root!r})
from tests.session.primary_vm import PageVm
from colo.session.migration import MigrationDestination, MigrationDestinationConfig


class Vm(PageVm):
    def load_state(self, state):
        if {hang}:
            print("loading", flush=True)
            time.sleep(60)
        super().load_state(state)
vm = Vm({pages})
with MigrationDestination(vm, MigrationDestinationConfig("tcp:127.0.0.1:0")) as destination:
    print(destination.address, flush=True)
    destination.run()
"""


@pytest.mark.parametrize("when", ["round", "switchover"])
def test_a_killed_destination(vm: Any, when: str) -> None:
    root = str(Path(__file__).parents[3])
    script = CHILD.format(root=root, hang=when == "switchover", pages=PAGES)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert child.stdout is not None
    address = child.stdout.readline().strip()
    vm.resume()
    wait_until(lambda: vm.turn > 10)
    options: dict[str, Any] = {"max_bandwidth_bytes_per_s": 20_000} if when == "round" else {}
    with MigrationSource(vm, MigrationSourceConfig(address, **options)) as it:
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
