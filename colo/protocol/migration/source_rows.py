"""The migration table's rows of a source."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from colo.protocol.migration.rows import Row, row_of
from colo.protocol.migration.states import ENDS, FACTS, SOURCE, states
from colo.protocol.migration.words import Action, Condition, Event, Reads, State, VmPlace

FAILURES = (Event.CHANNEL_LOST, Event.DEADLINE, Event.FAILED)
_A = Action
CLEAN_UP = (_A.LET_GO, _A.REPORT)
GO_BACK = (_A.GIVE_BACK_DIRTY, _A.RELEASE_THROTTLE, _A.RUN_ON)
"""The VM runs on here as if nothing had been. Only behind the channel's end: what was sent can then never be completed."""


def source_rows() -> Iterator[Row]:
    """In the order in which they are passed; how migrations end comes last."""
    yield from _setup_rows()
    yield from _round_rows()
    yield from _switchover_rows()
    yield from _answer_rows()
    yield from _ending_rows()


def _setup_rows() -> Iterator[Row]:
    a, c, e, s = Action, Condition, Event, State
    row = partial(row_of, SOURCE)
    first = (a.TAKE_ALL, a.SEND_ROUND)
    yield row(s.NOT_STARTED, e.STARTED, s.CONNECTING, a.CONNECT)
    yield row(
        s.CONNECTING, e.CONNECTED, s.AWAIT_HELLO, a.START_TRACKING, a.SEND_HEADER, a.SEND_OPEN_RETURN_PATH, a.SEND_HELLO,
        a.SEND_BLOCKS, when=[c.RETURN_PATH])
    yield row(
        s.CONNECTING, e.CONNECTED, s.SENDING_ROUND, a.START_TRACKING, a.SEND_HEADER, a.SEND_BLOCKS, *first,
        when=[c.NO_RETURN_PATH])
    # A QEMU answers any PING with its own number; a colo destination adds what it is.
    yield row(s.AWAIT_HELLO, e.QEMU_ANSWERED, s.SENDING_ROUND, *first, when=[c.RETURN_PATH, c.NO_ARBITER])
    yield row(s.AWAIT_HELLO, e.COLO_ANSWERED, s.AWAIT_WORD, a.ANNOUNCE_LAST_WORD, when=[c.RETURN_PATH, c.NO_ARBITER])
    yield row(
        s.AWAIT_HELLO, e.COLO_WITH_ARBITER_ANSWERED, s.AWAIT_WORD, a.ANNOUNCE_LAST_WORD, when=[c.RETURN_PATH])
    for event in (e.QEMU_ANSWERED, e.COLO_ANSWERED):
        yield row(
            s.AWAIT_HELLO, event, s.FAILED, a.REFUSE_NO_ARBITER, a.ABORT_CHANNEL, *GO_BACK, *CLEAN_UP,
            when=[c.RETURN_PATH, c.ARBITER])
    yield row(s.AWAIT_WORD, e.WORD_ANSWERED, s.SENDING_ROUND, *first, when=[c.RETURN_PATH])


def _round_rows() -> Iterator[Row]:
    """Postcopy's advice, listening and recovery have their place here; further channels are opened before the first round."""
    a, c, e, s = Action, Condition, Event, State
    row = partial(row_of, SOURCE)
    yield row(s.SENDING_ROUND, e.ROUND_SENT, s.AWAIT_ROUND, a.SEND_ROUND_PING, when=[c.RETURN_PATH])
    yield row(s.SENDING_ROUND, e.ROUND_SENT, s.DRAINING, a.DRAIN, when=[c.NO_RETURN_PATH])
    yield row(s.AWAIT_ROUND, e.ROUND_ANSWERED, s.HARVESTING, a.HARVEST, when=[c.RETURN_PATH])
    yield row(s.DRAINING, e.DRAINED, s.HARVESTING, a.HARVEST, when=[c.NO_RETURN_PATH])
    yield row(s.HARVESTING, e.MUCH_LEFT, s.SENDING_ROUND, a.SLOW_DOWN, a.SEND_ROUND)
    yield row(s.HARVESTING, e.LITTLE_LEFT, s.PAUSING, a.PAUSE)


def _switchover_rows() -> Iterator[Row]:
    a, c, e, s = Action, Condition, Event, State
    row = partial(row_of, SOURCE)
    yield row(s.PAUSING, e.VM_STOPPED, s.SAVING, a.SAVE, when=[c.NOT_HELD])
    yield row(s.PAUSING, e.VM_STOPPED, s.PRE_SWITCHOVER, a.SEND_KEEP_ALIVE, a.AWAIT_LEAVE, when=[c.HELD])
    yield row(s.PRE_SWITCHOVER, e.KEEP_ALIVE_DUE, s.PRE_SWITCHOVER, a.SEND_KEEP_ALIVE, a.AWAIT_LEAVE, when=[c.HELD])
    yield row(s.PRE_SWITCHOVER, e.TOLD_TO_GO_ON, s.SAVING, a.SAVE, when=[c.HELD])
    # A colo destination loads nothing before it has the last word: a number that no device's data can hold by chance or on
    # purpose, and a digest. A QEMU runs the VM when it has EOF, so that is held back. It loads each device as it comes: its
    # answer to a PING behind them says that it refused none.
    rest = (a.SEND_REST, a.SEND_DEVICES)
    yield row(s.SAVING, e.STATE_SAVED, s.SENDING_REST, *rest, a.SEND_END, when=[c.COLO_PEER])
    yield row(s.SAVING, e.STATE_SAVED, s.SENDING_REST, *rest, when=[c.QEMU_PEER])
    yield row(
        s.SENDING_REST, e.REST_SENT, s.AWAIT_ANSWER, a.SEND_LAST_WORD, when=[c.COLO_PEER, c.RETURN_PATH], hands_out=True)
    yield row(s.SENDING_REST, e.REST_SENT, s.AWAIT_DEVICES, a.SEND_DEVICES_PING, when=[c.QEMU_PEER, c.RETURN_PATH])
    yield row(s.AWAIT_DEVICES, e.DEVICES_ANSWERED, s.AWAIT_ANSWER, a.SEND_END, when=[c.RETURN_PATH], hands_out=True)
    yield row(
        s.SENDING_REST, e.REST_SENT, s.AWAIT_TAKEN, a.SEND_END, a.AWAIT_TAKEN, when=[c.QEMU_PEER, c.NO_RETURN_PATH],
        hands_out=True)


def _answer_rows() -> Iterator[Row]:
    """All is handed out: from here on this side has the VM only if somebody says so."""
    a, c, e, s = Action, Condition, Event, State
    row = partial(row_of, SOURCE)
    done = (a.CLOSE_CHANNEL, a.RELEASE_THROTTLE, *CLEAN_UP)
    yield row(s.AWAIT_ANSWER, e.SHUT, s.COMPLETED, *done)
    yield row(s.AWAIT_ANSWER, e.SHUT_FAILED, s.FAILED, a.CLOSE_CHANNEL, a.TAKE_BACK_GENERATION, *GO_BACK, *CLEAN_UP)
    yield row(s.AWAIT_TAKEN, e.ALL_TAKEN, s.COMPLETED, *done)
    for state in (s.AWAIT_ANSWER, s.AWAIT_TAKEN):
        for event in FAILURES:
            yield row(state, event, s.ARBITRATING, a.ABORT_CHANNEL, a.ARBITRATE, when=[c.ARBITER])
            yield row(state, event, s.UNDECIDED, a.ABORT_CHANNEL, a.RELEASE_THROTTLE, *CLEAN_UP, when=[c.NO_ARBITER])
    here = s.ARBITRATING
    yield row(here, e.CLAIM_WON, s.FAILED, *GO_BACK, *CLEAN_UP)
    yield row(here, e.CLAIM_LOST, s.COMPLETED, a.RELEASE_THROTTLE, *CLEAN_UP)
    for event in (e.CLAIM_UNDECIDED, *FAILURES):
        yield row(here, event, s.UNDECIDED, a.RELEASE_THROTTLE, *CLEAN_UP)
    yield row(s.UNDECIDED, e.DECIDED_HERE, s.FAILED, a.RUN_ON)
    yield row(s.UNDECIDED, e.DECIDED_THERE, s.COMPLETED)


def _ending_rows() -> Iterator[Row]:
    a, c, e, s = Action, Condition, Event, State
    row = partial(row_of, SOURCE)
    # Nothing is handed out: the VM is here, and runs on.
    for state in states(SOURCE):
        fact = FACTS[SOURCE, state]
        if fact.place is not VmPlace.HERE or fact.over or state is s.NOT_STARTED:
            continue
        for event in FAILURES:
            yield row(state, event, s.FAILED, a.ABORT_CHANNEL, *GO_BACK, *CLEAN_UP)
        if fact.reads is Reads.RETURN_PATH:
            yield row(state, e.SHUT_FAILED, s.FAILED, a.ABORT_CHANNEL, *GO_BACK, *CLEAN_UP, when=[c.RETURN_PATH])
        yield row(state, e.CANCELLED, s.CANCELLING, a.ABORT_CHANNEL, *GO_BACK)
    yield row(s.CANCELLING, e.VM_RUNS, s.CANCELLED, *CLEAN_UP)
    for event in FAILURES:
        yield row(s.CANCELLING, event, s.FAILED, *CLEAN_UP)
    # The session's thread is stuck in the VM: what must be done for the VM is done from another. The rest waits for it.
    for state in states(SOURCE):
        fact = FACTS[SOURCE, state]
        if state in ENDS:
            back = (a.RELEASE_THROTTLE, a.RUN_ON) if fact.place is VmPlace.HERE else ()
            yield row(state, e.VM_HUNG, state, *back, a.REPORT)
        elif fact.place is VmPlace.HERE and state not in (s.NOT_STARTED, s.STUCK):
            yield row(state, e.VM_HUNG, s.STUCK, a.ABORT_CHANNEL, a.RELEASE_THROTTLE, a.RUN_ON, a.REPORT)
        else:
            yield row(state, e.VM_HUNG, state)
    for event in (*FAILURES, e.VM_RUNS):
        yield row(s.STUCK, event, s.FAILED, a.GIVE_BACK_DIRTY, a.LET_GO)
