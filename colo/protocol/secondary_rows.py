"""The checkpointing table's rows of a secondary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from colo.protocol.rows import Row, row_of
from colo.protocol.states import COMMITS_RUNNING, OVER, SECONDARY, states
from colo.protocol.words import Action, Condition, Event, State


def secondary_rows() -> Iterator[Row]:
    """In the order in which they are passed; how connections end comes last."""
    a, c, e, s = Action, Condition, Event, State

    row = partial(row_of, SECONDARY)
    # The initial stream.
    yield row(s.START, e.CONNECTED, s.START)
    yield row(s.START, e.STREAM_OPENED, s.INITIAL_STREAM, a.RECEIVE_INITIAL)
    here = s.INITIAL_STREAM
    yield row(here, e.OPEN_RETURN_PATH, here, when=[c.NO_RETURN_PATH])
    yield row(here, e.PING, here, a.SEND_PONG, when=[c.RETURN_PATH])
    yield row(here, e.ENABLE_COLO, here, when=[c.COLO_NOT_ENABLED])
    yield row(here, e.SWITCHOVER_START, here, when=[c.NOT_SWITCHED_OVER])
    yield row(here, e.INITIAL_STAGED, s.INITIAL_VALIDATING, a.VALIDATE)
    yield row(s.INITIAL_VALIDATING, e.VALIDATED, s.INITIAL_COMMITTING, a.COMMIT)
    # QEMU 11.1 takes a COLO message for one of the return path unless that was shut before.
    ready = (a.SEND_SHUT, a.SEND_EXTENSIONS, a.SEND_CHECKPOINT_READY)
    yield row(s.INITIAL_COMMITTING, e.COMMITTED, s.IDLE, *ready, a.LOAD, when=[c.EARLY], commits=True)
    yield row(s.INITIAL_COMMITTING, e.COMMITTED, s.INITIAL_LOADING, a.LOAD, when=[c.STRICT], commits=True)
    yield row(s.INITIAL_COMMITTING, e.COMMITTED, s.INITIAL_LOADING, a.LOAD, when=[c.HYBRID], commits=True)
    yield row(s.INITIAL_LOADING, e.APPLIED, s.IDLE, *ready, when=[c.STRICT])
    yield row(s.INITIAL_LOADING, e.APPLIED, s.IDLE, *ready, a.RESUME, when=[c.HYBRID])

    # A checkpoint.
    for mode in (c.EARLY, c.STRICT):
        yield row(s.IDLE, e.CHECKPOINT_REQUEST, s.AWAIT_VMSTATE_SEND, a.SEND_CHECKPOINT_REPLY, when=[mode])
    yield row(s.IDLE, e.CHECKPOINT_REQUEST, s.SUSPENDING, a.SUSPEND, when=[c.HYBRID])
    yield row(s.SUSPENDING, e.VM_STOPPED, s.AWAIT_VMSTATE_SEND, a.SEND_CHECKPOINT_REPLY, when=[c.HYBRID])
    yield row(s.AWAIT_VMSTATE_SEND, e.VMSTATE_SEND, s.RECEIVING_RAM, a.RECEIVE_RAM)
    yield row(s.RECEIVING_RAM, e.SWITCHOVER_START, s.RECEIVING_RAM, when=[c.NOT_SWITCHED_OVER])
    yield row(s.RECEIVING_RAM, e.RAM_STAGED, s.AWAIT_SIZE)
    yield row(s.AWAIT_SIZE, e.CHECKPOINT_DIGEST, s.AWAIT_SIZE, when=[c.DIGEST_DUE])
    yield row(s.AWAIT_SIZE, e.VMSTATE_SIZE, s.RECEIVING_DEVICE, a.RECEIVE_DEVICE, when=[c.NO_DIGEST_DUE])
    yield row(s.RECEIVING_DEVICE, e.DEVICE_RECEIVED, s.VALIDATING, a.VALIDATE)
    yield row(s.VALIDATING, e.VALIDATED, s.COMMITTING, a.COMMIT)
    yield row(
        s.COMMITTING,
        e.COMMITTED,
        s.IDLE,
        a.SEND_VMSTATE_RECEIVED,
        a.SEND_VMSTATE_LOADED,
        a.LOAD,
        when=[c.EARLY],
        commits=True,
    )
    for mode in (c.STRICT, c.HYBRID):
        yield row(
            s.COMMITTING, e.COMMITTED, s.APPLYING, a.SEND_VMSTATE_RECEIVED, a.LOAD, when=[mode], commits=True
        )
    yield row(s.APPLYING, e.APPLIED, s.IDLE, a.SEND_VMSTATE_LOADED, when=[c.STRICT])
    yield row(
        s.APPLYING, e.APPLIED, s.IDLE, a.SEND_VMSTATE_LOADED, a.RESUME, a.START_COMPARING, when=[c.HYBRID]
    )
    # Applying goes on beside the next checkpoint, and tells when it is through, whatever the state then is.
    for state in states(SECONDARY):
        if state not in OVER:
            yield row(state, e.APPLIED, state, when=[c.EARLY, c.CHECKPOINT])

    # The end of a connection.
    for state in states(SECONDARY):
        if state in OVER:
            continue
        over = s.FINISHING_COMMIT if state in COMMITS_RUNNING else s.LOST
        drop = () if state in COMMITS_RUNNING else (a.DROP_EPOCH,)
        # A channel that counts as lost may work: the primary is to have nothing more of it either.
        for event in (e.CHANNEL_LOST, e.DEADLINE):
            yield row(state, event, over, *drop, a.ABORT_CHANNEL)
        # Told while a commit runs, FAILED is about the commit itself: it did not come to be.
        yield row(state, e.FAILED, s.LOST, a.DROP_EPOCH, a.ABORT_CHANNEL)
        yield row(state, e.FAILOVER_REQUESTED, state, a.REFUSE_FAILOVER, when=[c.NO_CHECKPOINT])
        if state in COMMITS_RUNNING:
            # As in QEMU, where a failover waits for a load under way and is then launched again.
            yield row(state, e.FAILOVER_REQUESTED, over, a.ABORT_CHANNEL, when=[c.CHECKPOINT])
        else:
            yield row(
                state,
                e.FAILOVER_REQUESTED,
                s.ARBITRATING,
                a.DROP_EPOCH,
                a.ARBITRATE,
                a.ABORT_CHANNEL,
                when=[c.CHECKPOINT],
            )
        if state in COMMITS_RUNNING:
            yield row(state, e.TAKEOVER_LOST, over, a.ABORT_CHANNEL)
        else:
            yield row(state, e.TAKEOVER_LOST, s.STOPPED, a.DROP_EPOCH, a.STOP_VM, a.ABORT_CHANNEL)
    here = s.FINISHING_COMMIT
    yield row(here, e.COMMITTED, s.LOST, commits=True)
    yield row(here, e.FAILED, s.LOST, a.DROP_EPOCH)
    for event in (e.CHANNEL_LOST, e.DEADLINE, e.FAILOVER_REQUESTED, e.TAKEOVER_LOST):
        yield row(here, event, here)
    yield row(s.LOST, e.FAILOVER_REQUESTED, s.LOST, a.REFUSE_FAILOVER, when=[c.NO_CHECKPOINT])
    yield row(s.LOST, e.FAILOVER_REQUESTED, s.ARBITRATING, a.ARBITRATE, when=[c.CHECKPOINT])
    yield row(s.ARBITRATING, e.TAKEOVER_WON, s.ALONE, a.TAKE_OVER)
    yield row(s.ARBITRATING, e.TAKEOVER_LOST, s.STOPPED, a.STOP_VM)
    yield row(s.ARBITRATING, e.TAKEOVER_UNDECIDED, s.LOST)
