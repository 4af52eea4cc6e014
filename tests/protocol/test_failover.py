"""The failover status goes QEMU's way."""

from __future__ import annotations

from itertools import product

import pytest

from colo.errors import ProtocolError
from colo.protocol import Failover, FailoverAction, FailoverEvent, FailoverStatus
from colo.protocol.failover import FAILOVER_ROWS, failover_lookup

S, E, A = FailoverStatus, FailoverEvent, FailoverAction


def test_every_event_in_every_status_has_an_outcome() -> None:
    for status, event in product(S, E):
        outcome = failover_lookup(status, event)
        if not outcome.expected:
            assert (outcome.next_status, outcome.actions) == (status, ())
    assert {status for status, _ in FAILOVER_ROWS} == set(S)
    assert {event for _, event in FAILOVER_ROWS} == set(E)


def test_none_require_active_completed() -> None:
    failover = Failover()
    assert failover.feed(E.REQUEST) == (A.ARBITRATE,)
    assert failover.status is S.REQUIRE
    assert failover.feed(E.WON) == (A.TAKE_OVER,)
    assert failover.status is S.ACTIVE
    assert failover.feed(E.RUNNING) == (A.REPORT,)
    assert failover.status is S.COMPLETED


def test_a_request_during_a_commit_is_made_again_when_it_has_ended() -> None:
    failover = Failover()
    assert failover.feed(E.REQUEST_BUSY) == ()
    assert failover.status is S.RELAUNCH
    assert failover.feed(E.REQUEST) == ()
    assert failover.feed(E.SETTLED) == (A.REQUEST_AGAIN,)
    assert failover.status is S.NONE
    assert failover.feed(E.REQUEST) == (A.ARBITRATE,)


@pytest.mark.parametrize("request_event", [E.REQUEST, E.REQUEST_BUSY])
def test_a_second_request_never_starts_a_second_takeover(request_event: FailoverEvent) -> None:
    failover = Failover()
    failover.feed(E.REQUEST)
    for event in (None, E.WON, E.RUNNING):
        if event is not None:
            failover.feed(event)
        before = failover.status
        assert failover.feed(request_event) == ()
        assert failover.status is before


def test_a_refused_failover_can_be_requested_again() -> None:
    failover = Failover()
    failover.feed(E.REQUEST)
    assert failover.feed(E.REFUSED) == (A.REPORT,)
    assert failover.status is S.NONE
    assert failover.feed(E.REQUEST) == (A.ARBITRATE,)


def test_a_stand_by_that_breaks_leaves_the_failover_active() -> None:
    failover = Failover()
    failover.feed(E.REQUEST)
    failover.feed(E.WON)
    assert failover.feed(E.BROKEN) == (A.REPORT,)
    assert failover.status is S.ACTIVE


def test_an_unfitting_event_names_status_got_and_expected() -> None:
    failover = Failover()
    with pytest.raises(ProtocolError, match="failover status none: got won, expected request or") as caught:
        failover.feed(E.WON)
    assert caught.value.got == "won"
    assert failover.status is S.NONE
