"""Claiming while the arbiter cannot tell: asked again, told once, given up when it is said so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.arbiter import arbiter_from_uri, claim, init_arbiter, until_decided
from colo.arbiter.claiming import RETRY_S
from colo.errors import ArbitrationError, ArbitrationLost


def asker(*answers: int | Exception) -> Callable[[], int]:
    left: Iterator[int | Exception] = iter(answers)

    def ask() -> int:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def test_it_is_asked_again_until_it_is_decided_and_that_is_told_once() -> None:
    told: list[str] = []
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return False

    ask = asker(ArbitrationError("no quorum"), ArbitrationError("no quorum"), 5)
    assert until_decided(ask, on_undecided=told.append, wait=wait) == 5
    assert told == ["who may run is undecided, trying again: no quorum"]
    assert waits == [RETRY_S, RETRY_S]


@pytest.mark.parametrize("way", ["stopping", "wait"])
def test_given_up_it_raises_what_kept_it_from_deciding(way: str) -> None:
    ask = asker(ArbitrationError("no quorum"), 5)
    with pytest.raises(ArbitrationError, match="no quorum"):
        until_decided(
            ask, on_undecided=lambda text: None, stopping=lambda: way == "stopping", wait=lambda seconds: way == "wait")
    assert ask() == 5


def test_a_loss_is_decided() -> None:
    with pytest.raises(ArbitrationLost):
        until_decided(asker(ArbitrationLost("over"), 5), on_undecided=lambda text: pytest.fail(text))


def test_a_real_arbiters_generation_is_won_once(tmp_path: Path) -> None:
    path = tmp_path / "arbiter"
    path.mkdir(mode=0o700)
    init_arbiter(f"file:{path}", vm="test")
    with arbiter_from_uri(f"file:{path}", role="primary", vm="") as first, arbiter_from_uri(
        f"file:{path}", role="secondary", vm=""
    ) as second:
        assert claim(first, 0, reason="test", on_undecided=pytest.fail) == 1
        with pytest.raises(ArbitrationLost):
            claim(second, 0, reason="test", on_undecided=pytest.fail)
