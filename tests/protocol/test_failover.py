"""The failover status goes QEMU's way."""

from __future__ import annotations

from itertools import product

import pytest

from colo.errors import ProtocolError
from colo.protocol import Failover, FailoverEvent, FailoverStatus
from colo.protocol.failover import FAILOVER_ROWS, failover_lookup

S, E = FailoverStatus, FailoverEvent


def fed(*events: FailoverEvent) -> Failover:
    failover = Failover()
    for event in events:
        failover.feed(event)
    return failover


def test_every_event_in_every_status_has_an_outcome() -> None:
    for status, event in product(S, E):
        outcome = failover_lookup(status, event)
        if not outcome.expected:
            assert outcome.next_status is status
    assert {status for status, _ in FAILOVER_ROWS} == set(S)
    assert {event for _, event in FAILOVER_ROWS} == set(E)


def test_none_require_active_completed() -> None:
    assert Failover().status is S.NONE
    assert fed(E.REQUEST).status is S.REQUIRE
    assert fed(E.REQUEST, E.WON).status is S.ACTIVE
    assert fed(E.REQUEST, E.WON, E.RUNNING).status is S.COMPLETED


@pytest.mark.parametrize("before", [(E.REQUEST,), (E.REQUEST, E.WON), (E.REQUEST, E.WON, E.RUNNING)])
def test_a_second_request_never_starts_a_second_takeover(before: tuple[FailoverEvent, ...]) -> None:
    assert fed(*before, E.REQUEST).status is fed(*before).status


def test_a_refused_failover_can_be_requested_again() -> None:
    assert fed(E.REQUEST, E.REFUSED).status is S.NONE
    assert fed(E.REQUEST, E.REFUSED, E.REQUEST).status is S.REQUIRE


def test_a_stand_by_that_breaks_leaves_the_failover_active() -> None:
    assert fed(E.REQUEST, E.WON, E.BROKEN).status is S.ACTIVE


@pytest.mark.parametrize("event", [E.WON, E.REFUSED, E.RUNNING, E.BROKEN])
def test_an_unfitting_event_names_status_got_and_expected(event: FailoverEvent) -> None:
    failover = Failover()
    with pytest.raises(ProtocolError, match=f"failover status none: got {event.value}, expected request") as caught:
        failover.feed(event)
    assert caught.value.got == event.value
    assert failover.status is S.NONE
