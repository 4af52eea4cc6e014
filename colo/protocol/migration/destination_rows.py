"""The migration table's rows of a destination."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from colo.protocol.migration.rows import Row, row_of
from colo.protocol.migration.states import DESTINATION, ENDS, states
from colo.protocol.migration.words import Action, Condition, Event, State

ENDINGS = (Event.CHANNEL_LOST, Event.DEADLINE, Event.FAILED, Event.CANCELLED)


def destination_rows() -> Iterator[Row]:
    """In the order in which they are passed; how migrations end comes last. Postcopy's come beside RECEIVING."""
    a, c, e, s = Action, Condition, Event, State
    row = partial(row_of, DESTINATION)
    yield row(s.NOT_STARTED, e.STARTED, s.WAITING, a.ACCEPT)
    yield row(s.WAITING, e.CONNECTED, s.STOPPING, a.STOP_VM)
    yield row(s.STOPPING, e.VM_STOPPED, s.AWAIT_STREAM, a.RECEIVE)
    yield row(s.AWAIT_STREAM, e.STREAM_OPENED, s.RECEIVING)

    # The stream. PINGs of a QEMU mean nothing; a colo source's are HELLO, the last word's number, then one behind each round.
    receiving = (s.RECEIVING, s.RECEIVING_HELLO, s.RECEIVING_COLO)
    for state in receiving:
        yield row(state, e.OPEN_RETURN_PATH, state, when=[c.NO_RETURN_PATH])
        yield row(state, e.SWITCHOVER_START, state)
    for event in (e.PING, e.PING_WORD):
        yield row(s.RECEIVING, event, s.RECEIVING, a.SEND_PONG, when=[c.RETURN_PATH])
    yield row(s.RECEIVING, e.PING_HELLO, s.RECEIVING_HELLO, a.SEND_HELLO_PONG, when=[c.RETURN_PATH])
    yield row(s.RECEIVING_HELLO, e.PING_WORD, s.RECEIVING_COLO, a.NOTE_WORD, a.SEND_PONG, when=[c.RETURN_PATH])
    # The digest is of what follows the last round.
    yield row(s.RECEIVING_COLO, e.PING, s.RECEIVING_COLO, a.BEGIN_DIGEST, a.SEND_PONG, when=[c.RETURN_PATH])

    # Its end. A QEMU's is EOF with the VM description; a colo source can take its VM back until it has sent its last word.
    load = (a.CHECK_PAGES, a.LOAD)
    yield row(s.RECEIVING, e.STREAM_WHOLE, s.LOADING, *load)
    yield row(s.RECEIVING_COLO, e.STREAM_WHOLE, s.AWAIT_LAST_WORD, a.RECEIVE_LAST_WORD)
    yield row(s.AWAIT_LAST_WORD, e.LAST_WORD, s.LOADING, *load)
    yield row(s.LOADING, e.STATE_LOADED, s.CLAIMING, a.CLAIM, when=[c.ARBITER])
    yield row(s.LOADING, e.STATE_LOADED, s.STARTING, a.START_VM, when=[c.NO_ARBITER])
    yield row(s.CLAIMING, e.CLAIM_WON, s.STARTING, a.START_VM)
    yield row(s.STARTING, e.VM_RUNS, s.COMPLETED, a.SEND_SHUT, a.HANG_UP)

    # Whoever has not run the VM says so: the source need not wonder. Who may run it says nothing.
    for state in states(DESTINATION):
        if state in ENDS or state is s.NOT_STARTED:
            continue
        for event in ENDINGS:
            if state is s.WAITING:
                yield row(state, event, s.FAILED)
            elif state is s.STARTING:
                yield row(state, event, s.STOPPING_AGAIN, a.STOP_VM)
            elif state is s.STOPPING_AGAIN:
                yield row(state, event, s.MAY_RUN, a.HANG_UP)
            else:
                yield row(state, event, s.FAILED, a.SEND_SHUT_FAILED, a.HANG_UP)
    yield row(s.STOPPING_AGAIN, e.VM_STOPPED, s.FAILED, a.SEND_SHUT_FAILED, a.HANG_UP)
    yield row(s.CLAIMING, e.CLAIM_LOST, s.FAILED, a.SEND_SHUT_FAILED, a.HANG_UP)
