"""Looks at the arbiter: what is expected, what is not, and what cannot be told."""

from __future__ import annotations

import threading
import time

import pytest

from colo.arbiter.watch import HOLD_LOOK_S, ArbiterWatch, GenerationLook
from colo.errors import ArbitrationError


class Shown:
    """An arbiter that shows what it is told to, and counts who looks."""

    def __init__(self, generation: int | None) -> None:
        self.generation = generation
        self.looks = 0
        self.gate = threading.Event()
        self.gate.set()

    def current(self) -> int:
        self.looks += 1
        self.gate.wait(30)
        if self.generation is None:
            raise ArbitrationError("its directory is gone")
        return self.generation

    def await_looks(self, more: int) -> None:
        until = self.looks + more
        while self.looks < until:
            time.sleep(0.005)


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


def test_a_generation_that_is_over_wakes_once_and_says_which_holds_now(woken: threading.Event) -> None:
    arbiter = Shown(3)
    look = GenerationLook(arbiter, 3, woken.set)
    arbiter.await_looks(2)
    assert not woken.is_set() and look.lost == ""
    arbiter.generation = 4
    assert woken.wait(10)
    assert look.lost == "the arbiter shows generation 4"
    looks = arbiter.looks
    time.sleep(2 * HOLD_LOOK_S)
    assert arbiter.looks == looks


def test_an_arbiter_that_cannot_tell_or_shows_an_older_one_ends_nothing(woken: threading.Event) -> None:
    arbiter = Shown(None)
    look = GenerationLook(arbiter, 3, woken.set)
    arbiter.await_looks(2)
    arbiter.generation = 2
    arbiter.await_looks(2)
    assert not woken.is_set() and look.lost == ""
    look.close()


def test_a_claim_of_this_sides_own_is_no_loss(woken: threading.Event) -> None:
    """Also one that is made while a look is under way, which then sees it before the claim has returned."""
    arbiter = Shown(3)
    look = GenerationLook(arbiter, 3, woken.set)
    arbiter.await_looks(1)
    arbiter.gate.clear()
    arbiter.await_looks(1)
    look.expect(None)
    arbiter.generation = 4
    arbiter.gate.set()
    look.expect(4)
    arbiter.await_looks(2)
    assert not woken.is_set() and look.lost == ""
    arbiter.generation = 5
    assert woken.wait(10) and look.lost == "the arbiter shows generation 5"


def test_while_nothing_is_expected_nobody_is_asked(woken: threading.Event) -> None:
    arbiter = Shown(9)
    look = GenerationLook(arbiter, None, woken.set)
    time.sleep(2 * HOLD_LOOK_S)
    assert arbiter.looks == 0 and not woken.is_set()
    look.expect(9)
    arbiter.await_looks(1)
    look.close()


def test_closed_it_wakes_nobody(woken: threading.Event) -> None:
    arbiter = Shown(3)
    arbiter.gate.clear()
    look = GenerationLook(arbiter, 3, woken.set)
    look.close()
    arbiter.generation = 4
    arbiter.gate.set()
    time.sleep(2 * HOLD_LOOK_S)
    assert not woken.is_set() and look.lost == ""


def test_a_secondary_hears_when_it_could_not_take_over_and_when_it_can_again() -> None:
    arbiter = Shown(7)
    said: list[str] = []
    heard = threading.Condition()

    def alarm(text: str) -> None:
        with heard:
            said.append(text)
            heard.notify_all()

    def await_said(count: int) -> str:
        with heard:
            assert heard.wait_for(lambda: len(said) >= count, 20)
            return said[-1]

    watch = ArbiterWatch(arbiter, alarm)
    watch.expect(6)
    assert "follows generation 6, but the arbiter shows 7" in await_said(1)
    watch.expect(7)
    assert await_said(2) == ""
    arbiter.generation = None
    assert "cannot be read" in await_said(3) and "its directory is gone" in said[-1]
    arbiter.generation = 7
    assert await_said(4) == ""
    watch.close()
