"""The vocabulary of the protocol: roles, states, events, actions, and the conditions and phases that go
with them."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    PRIMARY = "primary"
    SECONDARY = "secondary"


class Mode(Enum):
    """What the acknowledgements of a checkpoint mean."""

    EARLY = "early"
    """RECEIVED and LOADED follow the commit at once; the checkpoint is applied while the primary already
    runs on. A primary may take RECEIVED for a commit. Both ends must be colo's for a primary to choose
    it."""
    STRICT = "strict"
    """LOADED waits until the checkpoint is applied, as QEMU's own secondary does it. A primary takes only
    LOADED for a commit: a QEMU secondary says RECEIVED before it has looked at the device state."""
    HYBRID = "hybrid"
    """Both VMs run and their output is compared; a checkpoint is due when it differs. Rows are there, not
    yet served."""


class State(Enum):
    """Where one connection stands. Several belong to one role only; the table says which."""

    START = "start"
    # The initial stream: an ordinary migration.
    INITIAL_RAM = "initial-ram"
    INITIAL_STOPPING = "initial-stopping"
    INITIAL_SAVING = "initial-saving"
    INITIAL_SENDING = "initial-sending"
    AWAIT_SHUT = "await-shut"
    AWAIT_READY = "await-ready"
    INITIAL_STREAM = "initial-stream"
    INITIAL_VALIDATING = "initial-validating"
    INITIAL_COMMITTING = "initial-committing"
    INITIAL_LOADING = "initial-loading"
    # Between checkpoints.
    RUNNING = "running"
    IDLE = "idle"
    # One checkpoint, primary.
    AWAIT_REPLY = "await-reply"
    STOPPING = "stopping"
    SAVING = "saving"
    SENDING_RAM = "sending-ram"
    SENDING_DEVICE = "sending-device"
    AWAIT_RECEIVED = "await-received"
    AWAIT_LOADED = "await-loaded"
    # One checkpoint, secondary.
    SUSPENDING = "suspending"
    AWAIT_VMSTATE_SEND = "await-vmstate-send"
    RECEIVING_RAM = "receiving-ram"
    AWAIT_SIZE = "await-size"
    RECEIVING_DEVICE = "receiving-device"
    VALIDATING = "validating"
    COMMITTING = "committing"
    APPLYING = "applying"
    # The end of a connection.
    FINISHING_COMMIT = "finishing-commit"
    LOST = "lost"
    ARBITRATING = "arbitrating"
    ALONE = "alone"
    STOPPED = "stopped"


class Event(Enum):
    """What can happen. The first groups come from the peer, the others from this side."""

    # COLO's messages, received (colo.wire.ColoMessage).
    CHECKPOINT_READY = "checkpoint-ready"
    CHECKPOINT_REQUEST = "checkpoint-request"
    CHECKPOINT_REPLY = "checkpoint-reply"
    VMSTATE_SEND = "vmstate-send"
    VMSTATE_SIZE = "vmstate-size"
    VMSTATE_RECEIVED = "vmstate-received"
    VMSTATE_LOADED = "vmstate-loaded"
    EXTENSIONS = "extensions"
    CHECKPOINT_DIGEST = "checkpoint-digest"
    # Commands in the section stream, received (colo.wire.Command).
    OPEN_RETURN_PATH = "open-return-path"
    PING = "ping"
    ENABLE_COLO = "enable-colo"
    SWITCHOVER_START = "switchover-start"
    # Messages on the return path, received (colo.wire.ReturnPath).
    PONG = "pong"
    SHUT = "shut"
    SHUT_FAILED = "shut-failed"
    # The stream, received.
    STREAM_OPENED = "stream-opened"
    INITIAL_STAGED = "initial-staged"
    RAM_STAGED = "ram-staged"
    DEVICE_RECEIVED = "device-received"
    # Done on this side.
    CONNECTED = "connected"
    RAM_CONVERGED = "ram-converged"
    VM_STOPPED = "vm-stopped"
    STATE_SAVED = "state-saved"
    INITIAL_SENT = "initial-sent"
    CHECKPOINT_DUE = "checkpoint-due"
    RAM_SENT = "ram-sent"
    DEVICE_SENT = "device-sent"
    VALIDATED = "validated"
    COMMITTED = "committed"
    APPLIED = "applied"
    OUTPUT_AGREES = "output-agrees"
    OUTPUT_DIFFERS = "output-differs"
    # What ends an epoch, or the connection.
    FAILED = "failed"
    DEADLINE = "deadline"
    CHANNEL_LOST = "channel-lost"
    FAILOVER_REQUESTED = "failover-requested"
    TAKEOVER_WON = "takeover-won"
    TAKEOVER_LOST = "takeover-lost"
    TAKEOVER_UNDECIDED = "takeover-undecided"


FROM_PEER = frozenset(list(Event)[: list(Event).index(Event.CONNECTED)])
"""Events that bytes from the peer cause: these can be out of order through the peer's fault."""


class Action(Enum):
    """What the session is to do, in the order given. The value is the sentence the documentation prints."""

    # Primary: the initial stream.
    SEND_HEADER = "send the file header and CONFIGURATION"
    SEND_OPEN_RETURN_PATH = "send OPEN_RETURN_PATH"
    SEND_PING = "send PING"
    SEND_ENABLE_COLO = "send ENABLE_COLO"
    SEND_INITIAL_RAM = "send RAM in rounds while the VM runs, until what is left is small"
    SEND_INITIAL_END = "send the remaining pages, the device sections, EOF and the VM description"
    # Primary: a checkpoint.
    SEND_CHECKPOINT_REQUEST = "send CHECKPOINT_REQUEST"
    SUSPEND = "suspend the VM"
    SAVE = "save the device state, seal the epoch: what comes after is the next one's"
    SEND_VMSTATE_SEND = "send VMSTATE_SEND"
    SEND_SWITCHOVER_START = "send SWITCHOVER_START"
    SEND_RAM = "send the dirty pages as a section stream up to its EOF"
    SEND_DIGEST = "send CHECKPOINT_DIGEST"
    SEND_VMSTATE_SIZE = "send VMSTATE_SIZE"
    SEND_DEVICE = "send the device state"
    RELEASE_EPOCH = "release what waited for this checkpoint"
    RESUME = "resume the VM, if it stands still"
    START_COMPARING = "start comparing the output of both VMs"
    DEFER_CHECKPOINT = "remember that a checkpoint is due"
    # Primary: the end.
    TAKE_BACK_EPOCH = "take the epoch back: its dirty bits to the tracker, its packets to the next one"
    RUN_ALONE = "run the VM without the secondary, and without a lease"
    RELEASE_ALL = "release all that is held back"
    DROP_ALL = "drop all that is held back"
    # Secondary: the initial stream.
    RECEIVE_INITIAL = "receive the initial stream into the stage"
    SEND_PONG = "send PONG with the value of the PING"
    SEND_SHUT = "send SHUT(0) on the return path"
    SEND_EXTENSIONS = "send EXTENSIONS: those that are taken"
    SEND_CHECKPOINT_READY = "send CHECKPOINT_READY"
    # Secondary: a checkpoint.
    SEND_CHECKPOINT_REPLY = "send CHECKPOINT_REPLY"
    RECEIVE_RAM = "receive the live state into the stage"
    RECEIVE_DEVICE = "receive the device state into the stage"
    VALIDATE = "validate what is staged"
    COMMIT = "commit the staged checkpoint"
    SEND_VMSTATE_RECEIVED = "send VMSTATE_RECEIVED"
    LOAD = "apply the committed checkpoint to the RAM image"
    SEND_VMSTATE_LOADED = "send VMSTATE_LOADED"
    DROP_EPOCH = "drop what is staged and not committed"
    # Both: the end.
    ABORT_CHANNEL = "reset the channel"
    REFUSE_FAILOVER = "refuse: nothing is committed yet"
    ARBITRATE = "ask the arbiter for the next generation"
    TAKE_OVER = "run the VM from the highest committed checkpoint"
    STOP_VM = "stop the VM for good"


class Condition(Enum):
    """What a row may depend on beside its state. A row applies when all of its conditions hold."""

    RETURN_PATH = "return path open"
    NO_RETURN_PATH = "no return path"
    EARLY = "mode early"
    STRICT = "mode strict"
    HYBRID = "mode hybrid"
    CHECKPOINT = "a checkpoint is committed"
    NO_CHECKPOINT = "nothing is committed"
    DIRECT = "sent while the VM stands still"
    COPY = "sent from a stable copy"
    COLO_NOT_ENABLED = "ENABLE_COLO not seen"
    NOT_SWITCHED_OVER = "SWITCHOVER_START not seen in this epoch"
    EXTENSIONS_DUE = "extensions offered, not answered"
    DIGEST_DUE = "the epoch's digest is to come"
    NO_DIGEST_DUE = "no digest is to come"


class Phase(Enum):
    """Which deadline a state runs under. The session sets the times; the value says what is timed."""

    HANDSHAKE = "from the connection to the stream's CONFIGURATION, all in all"
    INITIAL = "no progress of the initial stream"
    IDLE = "silence between two checkpoints"
    MESSAGE = "one message, all in all"
    RAM = "no progress of the live state"
    DEVICE = "no progress of the device state"
    LOCAL = "none: this side is at work"
    OVER = "none: the connection is over"


class Reads(Enum):
    """What the next bytes from the peer are."""

    STREAM = "section stream"
    MESSAGE = "COLO message"
    DEVICE = "device state"
    RETURN_PATH = "return path"
    NOTHING = "nothing is read"
