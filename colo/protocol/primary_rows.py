"""The checkpointing table's rows of a primary."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from colo.protocol.rows import Row, row_of
from colo.protocol.states import FACTS, NOTHING_SENT_WHOLE, OVER, PRIMARY, facts, states
from colo.protocol.words import Action, Condition, Event, Reads, State


def primary_rows() -> Iterator[Row]:
    """In the order in which they are passed; how connections end comes last."""
    a, c, e, s = Action, Condition, Event, State

    row = partial(row_of, PRIMARY)
    # The initial stream. Which of the optional commands are sent is the dialect's choice (Machine drops the
    # others).
    yield row(
        s.START,
        e.CONNECTED,
        s.INITIAL_RAM,
        a.SEND_HEADER,
        a.SEND_OPEN_RETURN_PATH,
        a.SEND_PING,
        a.SEND_ENABLE_COLO,
        a.SEND_INITIAL_RAM,
    )
    yield row(s.INITIAL_RAM, e.RAM_CONVERGED, s.INITIAL_STOPPING, a.SUSPEND)
    yield row(s.INITIAL_STOPPING, e.VM_STOPPED, s.INITIAL_SAVING, a.SAVE)
    yield row(s.INITIAL_SAVING, e.STATE_SAVED, s.INITIAL_SENDING, a.SEND_SWITCHOVER_START, a.SEND_INITIAL_END)
    yield row(s.INITIAL_SENDING, e.INITIAL_SENT, s.AWAIT_READY, when=[c.NO_RETURN_PATH])
    yield row(s.INITIAL_SENDING, e.INITIAL_SENT, s.AWAIT_SHUT, when=[c.RETURN_PATH])
    for state in (s.INITIAL_RAM, s.INITIAL_STOPPING, s.INITIAL_SAVING, s.AWAIT_SHUT):
        yield row(state, e.PONG, state, when=[c.RETURN_PATH])
    yield row(s.AWAIT_SHUT, e.SHUT, s.AWAIT_READY, when=[c.RETURN_PATH])
    yield row(s.AWAIT_READY, e.EXTENSIONS, s.AWAIT_READY, when=[c.EXTENSIONS_DUE])
    for mode in (c.EARLY, c.STRICT):
        yield row(s.AWAIT_READY, e.CHECKPOINT_READY, s.RUNNING, a.RESUME, when=[mode], commits=True)
    yield row(
        s.AWAIT_READY,
        e.CHECKPOINT_READY,
        s.RUNNING,
        a.RESUME,
        a.START_COMPARING,
        when=[c.HYBRID],
        commits=True,
    )

    # A checkpoint.
    yield row(s.RUNNING, e.CHECKPOINT_DUE, s.AWAIT_REPLY, a.SEND_CHECKPOINT_REQUEST)
    yield row(s.RUNNING, e.OUTPUT_AGREES, s.RUNNING, a.RELEASE_PACKETS, when=[c.HYBRID])
    yield row(s.RUNNING, e.OUTPUT_DIFFERS, s.AWAIT_REPLY, a.SEND_CHECKPOINT_REQUEST, when=[c.HYBRID])
    yield row(s.AWAIT_REPLY, e.CHECKPOINT_REPLY, s.STOPPING, a.SUSPEND)
    yield row(s.STOPPING, e.VM_STOPPED, s.SAVING, a.SAVE)
    send = (a.SEND_VMSTATE_SEND, a.SEND_SWITCHOVER_START, a.SEND_RAM)
    yield row(s.SAVING, e.STATE_SAVED, s.SENDING_RAM, *send, when=[c.DIRECT])
    yield row(s.SAVING, e.STATE_SAVED, s.SENDING_RAM, a.RESUME, *send, when=[c.COPY])
    yield row(
        s.SENDING_RAM, e.RAM_SENT, s.SENDING_DEVICE, a.SEND_DIGEST, a.SEND_VMSTATE_SIZE, a.SEND_DEVICE
    )
    yield row(s.SENDING_DEVICE, e.DEVICE_SENT, s.AWAIT_RECEIVED)
    yield row(
        s.AWAIT_RECEIVED, e.VMSTATE_RECEIVED, s.AWAIT_LOADED, a.RELEASE_PACKETS, when=[c.EARLY], commits=True
    )
    yield row(s.AWAIT_RECEIVED, e.VMSTATE_RECEIVED, s.AWAIT_LOADED, when=[c.STRICT])
    yield row(s.AWAIT_RECEIVED, e.VMSTATE_RECEIVED, s.AWAIT_LOADED, when=[c.HYBRID])
    yield row(s.AWAIT_LOADED, e.VMSTATE_LOADED, s.RUNNING, a.RESUME, when=[c.EARLY, c.DIRECT])
    yield row(s.AWAIT_LOADED, e.VMSTATE_LOADED, s.RUNNING, when=[c.EARLY, c.COPY])
    yield row(
        s.AWAIT_LOADED,
        e.VMSTATE_LOADED,
        s.RUNNING,
        a.RELEASE_PACKETS,
        a.RESUME,
        when=[c.STRICT, c.DIRECT],
        commits=True,
    )
    yield row(
        s.AWAIT_LOADED, e.VMSTATE_LOADED, s.RUNNING, a.RELEASE_PACKETS, when=[c.STRICT, c.COPY], commits=True
    )
    # Two VMs that are to agree must start from the same state: hybrid goes with DIRECT only.
    yield row(
        s.AWAIT_LOADED,
        e.VMSTATE_LOADED,
        s.RUNNING,
        a.RELEASE_PACKETS,
        a.RESUME,
        a.START_COMPARING,
        when=[c.HYBRID, c.DIRECT],
        commits=True,
    )
    for state in states(PRIMARY):
        if FACTS[PRIMARY, state].in_epoch:
            yield row(state, e.CHECKPOINT_DUE, state, a.DEFER_CHECKPOINT)
            yield row(state, e.OUTPUT_DIFFERS, state, a.DEFER_CHECKPOINT, when=[c.HYBRID])

    # The end of a connection. Before the secondary can have anything whole, the VM simply runs on.
    for state in states(PRIMARY):
        if state in OVER:
            continue
        for event, close in (
            (e.CHANNEL_LOST, a.CLOSE_CHANNEL),
            (e.DEADLINE, a.ABORT_CHANNEL),
            (e.FAILED, a.ABORT_CHANNEL),
            # The secondary gives up: it could not load the stream.
            (e.SHUT_FAILED, a.ABORT_CHANNEL),
        ):
            when = [c.RETURN_PATH] if event is e.SHUT_FAILED else []
            if when and facts(PRIMARY, state).reads is not Reads.RETURN_PATH:
                continue
            back = (a.GIVE_BACK_DIRTY, close)
            if state in NOTHING_SENT_WHOLE:
                yield row(state, event, s.ALONE, *back, a.RESUME, when=[*when, c.NO_CHECKPOINT])
                yield row(state, event, s.LOST, *back, when=[*when, c.CHECKPOINT])
            else:
                yield row(state, event, s.LOST, *back, when=when)
        if state in NOTHING_SENT_WHOLE:
            yield row(
                state,
                e.FAILOVER_REQUESTED,
                s.ALONE,
                a.GIVE_BACK_DIRTY,
                a.ABORT_CHANNEL,
                a.RESUME,
                when=[c.NO_CHECKPOINT],
            )
            yield row(
                state,
                e.FAILOVER_REQUESTED,
                s.ARBITRATING,
                a.GIVE_BACK_DIRTY,
                a.ARBITRATE,
                a.ABORT_CHANNEL,
                when=[c.CHECKPOINT],
            )
        else:
            yield row(
                state, e.FAILOVER_REQUESTED, s.ARBITRATING, a.GIVE_BACK_DIRTY, a.ARBITRATE, a.ABORT_CHANNEL
            )
        yield row(state, e.TAKEOVER_LOST, s.STOPPED, a.DROP_PACKETS, a.STOP_VM, a.ABORT_CHANNEL)
    # Even with nothing acknowledged the secondary may have committed checkpoint 0: only the arbiter can tell.
    yield row(s.LOST, e.FAILOVER_REQUESTED, s.ARBITRATING, a.ARBITRATE)
    yield row(s.ARBITRATING, e.TAKEOVER_WON, s.ALONE, a.RELEASE_PACKETS, a.RESUME)
    yield row(s.ARBITRATING, e.TAKEOVER_LOST, s.STOPPED, a.DROP_PACKETS, a.STOP_VM)
    yield row(s.ARBITRATING, e.TAKEOVER_UNDECIDED, s.LOST)
