"""The generation that a guard holds for its QEMU, at a real arbiter, with others who want it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.arbiter import Arbiter, Runner, arbiter_from_uri, init_arbiter
from colo.errors import ArbitrationError, ArbitrationLost
from colo.fence.held_generation import HeldGeneration


@pytest.fixture
def uri(tmp_path: Path) -> str:
    place = tmp_path / "arbiter"
    place.mkdir(mode=0o700)
    init_arbiter(f"file:{place}", vm="vm1")
    return f"file:{place}"


@pytest.fixture
def arbiter(uri: str) -> Iterator[Arbiter]:
    with arbiter_from_uri(uri, role="primary", vm="vm1") as each:
        yield each


@pytest.fixture
def other() -> Iterator[Runner]:
    """Another process, which runs the VM as well."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Runner.of(process.pid)
    process.kill()
    process.wait()


def test_the_first_is_taken_and_won_again_by_claims_of_its_own(arbiter: Arbiter) -> None:
    held = HeldGeneration(arbiter, Runner.of())
    assert held.number == 0 and not held.token
    held.take_first()
    assert held.number == 1 and held.token and not held.is_gone()
    won = held.claim("silence")
    assert won == 2 and held.number == 1
    assert not held.is_gone() and held.won == 2, "it is this very QEMU's"
    held.number = won
    assert not held.is_gone()


def test_what_the_guard_before_has_won_for_this_qemu_is_this_ones(uri: str, arbiter: Arbiter) -> None:
    held = HeldGeneration(arbiter, Runner.of())
    held.take_first()
    assert held.won_before() is None
    arbiter_from_uri(uri, role="primary").claim(1, reason="the guard before", runner=Runner.of(os.getpid()))
    assert held.won_before() == 2 == held.claim("silence")


def test_what_another_has_won_is_lost(uri: str, arbiter: Arbiter, other: Runner) -> None:
    held = HeldGeneration(arbiter, Runner.of())
    held.take_first()
    arbiter_from_uri(uri, role="secondary").claim(1, reason="takeover", runner=other)
    assert held.is_gone() and held.won_before() is None
    with pytest.raises(ArbitrationLost):
        held.claim("silence")
    with pytest.raises(ArbitrationLost):
        held.close("stopped", pytest.fail)
    assert held.claim_back(2) == 3


def test_a_vm_that_runs_elsewhere_is_not_taken(uri: str, arbiter: Arbiter, other: Runner) -> None:
    arbiter_from_uri(uri, role="primary").claim(0, reason="protect", runner=other)
    with pytest.raises(ArbitrationLost):
        HeldGeneration(arbiter, Runner.of()).take_first()
    with pytest.raises(ArbitrationLost):
        HeldGeneration(arbiter, Runner.of()).take_running(uri, "vm1")


def test_a_qemu_that_holds_its_vm_already_is_known_again(uri: str, arbiter: Arbiter) -> None:
    held = HeldGeneration(arbiter, Runner.of())
    assert not held.take_running(uri, "vm1")  # nobody holds it: it was made a primary by others
    held.take_first()
    again = HeldGeneration(arbiter, Runner.of())
    assert again.take_running(uri, "vm1") and (again.number, again.token) == (held.number, held.token)


def test_a_closed_generation_is_nobodys_any_more(arbiter: Arbiter) -> None:
    held = HeldGeneration(arbiter, Runner.of())
    held.take_first()
    held.close("its user stopped it", pytest.fail)
    assert held.is_gone() and held.won_before() is None
    with pytest.raises(ArbitrationLost):
        held.claim("silence")


def test_an_arbiter_that_cannot_be_read_decides_nothing(uri: str, arbiter: Arbiter) -> None:
    held = HeldGeneration(arbiter, Runner.of())
    held.take_first()
    place = Path(uri.removeprefix("file:"))
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    told: list[str] = []
    assert not held.is_gone() and held.won_before() is None
    with pytest.raises(ArbitrationError):
        held.claim("silence")
    held.close("its user stopped it", told.append)
    assert len(told) == 1 and "was not told" in told[0]


@pytest.mark.filterwarnings("ignore:arbiter none")
def test_where_nothing_is_kept_nobody_is_known() -> None:
    held = HeldGeneration(arbiter_from_uri("none"), None)
    held.take_first()
    assert not held.token and held.won_before() is None and not held.take_running("none", "")
