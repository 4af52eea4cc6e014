"""Who may start protecting: each row of the decision, with real processes and a real arbiter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from colo.arbiter import Arbiter, Holder, Runner, arbiter_from_uri, init_arbiter, may_protect, take_first
from colo.errors import ArbitrationError, ArbitrationLost

URI, VM = "file:/shared/vm 1", "vm1"
HERE = Runner.of()


def held_by(runner: Runner | None, *, role: str = "primary", token: str = "a" * 32, closed: bool = False) -> Holder:
    return Holder(4, role, runner, 1_790_000_000.0, "silence", token, closed)


def refusal(holder: Holder) -> str:
    with pytest.raises(ArbitrationLost) as caught:
        may_protect(holder, HERE, uri=URI, vm=VM)
    return str(caught.value)


@pytest.fixture
def living() -> Iterator[Runner]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield Runner.of(process.pid)
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


@pytest.fixture
def gone() -> Runner:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    runner = Runner.of(process.pid)
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    return runner


def test_nobody_has_held_it() -> None:
    assert "nobody" in may_protect(held_by(None, role=""), HERE)


def test_it_was_ended_on_purpose() -> None:
    said = refusal(held_by(HERE, closed=True))
    assert "ended on purpose (silence; " in said
    assert said.endswith("colo arbiter reopen 'file:/shared/vm 1' --vm vm1")


def test_nobody_knows_who_holds_it() -> None:
    said = refusal(held_by(None, role="", token=""))
    assert "generation 4" in said and said.endswith("colo arbiter release 'file:/shared/vm 1' --vm vm1")


def test_this_process_holds_it() -> None:
    assert "this process" in may_protect(held_by(HERE, role="secondary"), HERE)


def test_a_process_of_this_host_that_is_gone(gone: Runner) -> None:
    assert "gone" in may_protect(held_by(gone), HERE)


def test_this_hosts_last_boot() -> None:
    before = replace(HERE, boot_id="00000000-0000-0000-0000-000000000000", machine=HERE.machine or "m" * 32)
    if HERE.machine:
        assert "gone" in may_protect(held_by(before), HERE)
    else:
        assert "start it here as its secondary" in refusal(held_by(before))


def test_another_process_of_this_host_that_lives(living: Runner) -> None:
    said = refusal(held_by(living, role="secondary"))
    assert f"runs on this host already, as {HERE.host} (pid {living.pid}, secondary) since 2026-09-21" in said


def test_another_host() -> None:
    said = refusal(held_by(replace(HERE, host="far", boot_id="other", machine="else")))
    assert f"the VM runs on far (pid {os.getpid()}, primary) since 2026-09-21 14:13:20 UTC: start it here as its sec" in said
    assert said.endswith("if that host is gone for good: colo arbiter release 'file:/shared/vm 1' --vm vm1")


@pytest.mark.parametrize("change", [
    {"machine": "0" * 32, "boot_id": "other"}, {"machine": "", "boot_id": "other"}, {"pid_namespace": 1},
    {"host": "", "boot_id": "other"}, {"boot_id": ""},
])
def test_a_host_of_the_same_name_or_another_container_is_not_this_one(change: dict[str, object]) -> None:
    if change == {"boot_id": ""}:
        assert replace(HERE, boot_id="").alive() is None
    said = refusal(held_by(replace(HERE, pid=2**22 - 1, **change)))  # type: ignore[arg-type]
    assert "start it here as its secondary" in said


# The whole: read, decide, claim.


@pytest.fixture
def arbiter(tmp_path: Path) -> Arbiter:
    tmp_path.chmod(0o700)
    init_arbiter(f"file:{tmp_path}", vm="vm1")
    return arbiter_from_uri(f"file:{tmp_path}", role="primary")


def again(arbiter: Arbiter, role: str = "primary") -> Arbiter:
    return arbiter_from_uri(arbiter.uri, role=role, vm="vm1")


def test_the_first_claims_and_goes_on_claiming(arbiter: Arbiter) -> None:
    for generation in (1, 2):
        assert take_first(again(arbiter), HERE, reason="protect").generation == generation
    assert arbiter.holder().runner == HERE and arbiter.holder().role == "primary"


def test_the_vm_of_another_host_is_left_alone(arbiter: Arbiter, tmp_path: Path) -> None:
    arbiter.claim(0, runner=replace(HERE, host="far"))
    with pytest.raises(ArbitrationLost, match=f"far .*colo arbiter release file:{tmp_path} --vm vm1"):
        take_first(again(arbiter), HERE, reason="protect")
    assert arbiter.current() == 1
    arbiter.release(1, reason="it burned")
    assert take_first(again(arbiter), HERE, reason="protect").generation == 3


def test_of_two_that_may_one_does(arbiter: Arbiter, living: Runner, gone: Runner) -> None:
    arbiter.claim(0, runner=gone)
    assert take_first(again(arbiter), living, reason="protect").generation == 2
    with pytest.raises(ArbitrationLost, match="runs on this host already"):
        take_first(again(arbiter), HERE, reason="protect")


def test_a_vm_that_was_ended_is_not_begun(arbiter: Arbiter) -> None:
    claim = take_first(arbiter, HERE, reason="protect")
    arbiter.close_generation(claim.generation, "shut down by its guest")
    with pytest.raises(ArbitrationLost, match=r"ended on purpose \(shut down by its guest; "):
        take_first(again(arbiter), HERE, reason="protect")


def test_what_keeps_nothing_is_not_asked(tmp_path: Path) -> None:
    count = tmp_path / "count"
    claim = take_first(arbiter_from_uri(f"exec:echo >> {count}"), HERE, reason="protect")
    assert (claim.generation, claim.runner) == (0, HERE)
    assert not count.exists()


def test_what_cannot_be_told_is_no_permission(arbiter: Arbiter, tmp_path: Path) -> None:
    (tmp_path / "generation.0").unlink()
    with pytest.raises(ArbitrationError) as caught:
        take_first(arbiter, HERE, reason="protect")
    assert not isinstance(caught.value, ArbitrationLost)
