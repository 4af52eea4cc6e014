"""The vocabulary of a live migration: roles, states, events, actions, and what goes with them.

Statuses have the names of QEMU's qapi (MigrationStatus); COLO's and postcopy's are not here.
"""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    SOURCE = "source"
    DESTINATION = "destination"


class MigrationStatus(Enum):
    """QEMU's names (qapi: MigrationStatus)."""

    NONE = "none"
    SETUP = "setup"
    """Connecting, tracking begins, the stream is opened."""
    ACTIVE = "active"
    """Rounds over RAM; the VM runs."""
    PRE_SWITCHOVER = "pre-switchover"
    """The VM stands still and waits to be told to go on."""
    DEVICE = "device"
    """The VM stands still; the rest of RAM and the device state are sent, and the destination's answer is awaited."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class VmPlace(Enum):
    """Which side has the VM."""

    HERE = "here"
    THERE = "there"
    UNDECIDED = "undecided"
    """The destination may run it: at the source it stands still."""


class State(Enum):
    """Where one migration stands. Several belong to one role only; the table says which.

    Postcopy's (advised, listening, running there while pages are still here, paused, recovering) go in beside the rounds.
    """

    NOT_STARTED = "not-started"
    # The source.
    CONNECTING = "connecting"
    AWAIT_HELLO = "await-hello"
    AWAIT_WORD = "await-word"
    SENDING_ROUND = "sending-round"
    AWAIT_ROUND = "await-round"
    DRAINING = "draining"
    HARVESTING = "harvesting"
    PAUSING = "pausing"
    PRE_SWITCHOVER = "pre-switchover"
    SAVING = "saving"
    SENDING_REST = "sending-rest"
    AWAIT_DEVICES = "await-devices"
    AWAIT_ANSWER = "await-answer"
    AWAIT_TAKEN = "await-taken"
    ARBITRATING = "arbitrating"
    CANCELLING = "cancelling"
    STUCK = "stuck"
    # The destination.
    WAITING = "waiting"
    STOPPING = "stopping"
    AWAIT_STREAM = "await-stream"
    RECEIVING = "receiving"
    RECEIVING_HELLO = "receiving-hello"
    RECEIVING_COLO = "receiving-colo"
    AWAIT_LAST_WORD = "await-last-word"
    LOADING = "loading"
    CLAIMING = "claiming"
    STARTING = "starting"
    STOPPING_AGAIN = "stopping-again"
    MAY_RUN = "may-run"
    # The end, of either or one.
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNDECIDED = "undecided"


class Event(Enum):
    """What can happen. The first groups come from the peer, the others from this side."""

    # The return path, received by a source: PONGs by what was asked (colo.protocol.migration.pings), and SHUT.
    QEMU_ANSWERED = "qemu-answered"
    COLO_ANSWERED = "colo-answered"
    COLO_WITH_ARBITER_ANSWERED = "colo-with-arbiter-answered"
    WORD_ANSWERED = "word-answered"
    ROUND_ANSWERED = "round-answered"
    DEVICES_ANSWERED = "devices-answered"
    SHUT = "shut"
    SHUT_FAILED = "shut-failed"
    # The stream, received by a destination.
    STREAM_OPENED = "stream-opened"
    OPEN_RETURN_PATH = "open-return-path"
    PING = "ping"
    PING_HELLO = "ping-hello"
    PING_WORD = "ping-word"
    SWITCHOVER_START = "switchover-start"
    STREAM_WHOLE = "stream-whole"
    LAST_WORD = "last-word"
    # Done on this side.
    STARTED = "started"
    CONNECTED = "connected"
    ROUND_SENT = "round-sent"
    DRAINED = "drained"
    MUCH_LEFT = "much-left"
    LITTLE_LEFT = "little-left"
    VM_STOPPED = "vm-stopped"
    KEEP_ALIVE_DUE = "keep-alive-due"
    TOLD_TO_GO_ON = "told-to-go-on"
    STATE_SAVED = "state-saved"
    REST_SENT = "rest-sent"
    ALL_TAKEN = "all-taken"
    STATE_LOADED = "state-loaded"
    VM_RUNS = "vm-runs"
    # Who has the VM.
    CLAIM_WON = "claim-won"
    CLAIM_LOST = "claim-lost"
    CLAIM_UNDECIDED = "claim-undecided"
    DECIDED_HERE = "decided-here"
    DECIDED_THERE = "decided-there"
    # What ends it.
    CANCELLED = "cancelled"
    FAILED = "failed"
    DEADLINE = "deadline"
    CHANNEL_LOST = "channel-lost"
    VM_HUNG = "vm-hung"


FROM_PEER = frozenset(list(Event)[: list(Event).index(Event.STARTED)])
"""Events that bytes from the peer cause: these can be out of order through the peer's fault."""


class Action(Enum):
    """What is to be done, in the order given. The value is the sentence the documentation prints."""

    # The source: setup.
    CONNECT = "connect"
    START_TRACKING = "start tracking"
    SEND_HEADER = "send the file header and CONFIGURATION"
    SEND_OPEN_RETURN_PATH = "send OPEN_RETURN_PATH"
    SEND_HELLO = "send PING HELLO"
    SEND_BLOCKS = "send the RAM block list"
    ANNOUNCE_LAST_WORD = "send PING with the number that the last word begins with"
    REFUSE_NO_ARBITER = "refuse: the destination asks no arbiter"
    # The source: rounds.
    TAKE_ALL = "own every page"
    SEND_ROUND = "send a round: the owned pages, while the VM runs"
    SEND_ROUND_PING = "send PING ROUND + n"
    DRAIN = "wait until the send queue is empty"
    HARVEST = "collect what was written meanwhile"
    SLOW_DOWN = "slow the VM down, if that is asked for and due"
    # The source: switchover.
    PAUSE = "pause the VM"
    AWAIT_LEAVE = "wait a second, or for leave to go on"
    SEND_KEEP_ALIVE = "send an empty PART"
    SAVE = "save the device state, collect the last pages"
    SEND_REST = "send the last pages, and the end of the ram section"
    SEND_DEVICES = "send the device sections"
    SEND_DEVICES_PING = "send PING DEVICES"
    SEND_END = "send EOF and the VM description"
    SEND_LAST_WORD = "send the last word: its number, and the digest"
    AWAIT_TAKEN = "wait for a while whether the connection breaks"
    # The source: the end.
    ABORT_CHANNEL = "reset the channel"
    CLOSE_CHANNEL = "close the channel"
    GIVE_BACK_DIRTY = "give the dirty bits back"
    RELEASE_THROTTLE = "let the VM go at full speed"
    RUN_ON = "let the VM run on here, if it ran"
    ARBITRATE = "claim the next generation"
    TAKE_BACK_GENERATION = "claim the generation that the destination gave back"
    LET_GO = "stop tracking, let go of the VM"
    REPORT = "say how it ended"
    # The destination.
    ACCEPT = "wait for a source, refuse strangers"
    STOP_VM = "have the VM stand still"
    RECEIVE = "receive the stream into the VM's memory"
    SEND_PONG = "send PONG with the value of the PING"
    SEND_HELLO_PONG = "send PONG HELLO: a colo, with or without an arbiter"
    NOTE_WORD = "remember the number"
    BEGIN_DIGEST = "begin the digest anew"
    RECEIVE_LAST_WORD = "read the last word, compare it"
    CHECK_PAGES = "have all pages come?"
    LOAD = "load the device state"
    CLAIM = "claim the next generation, before the VM runs"
    START_VM = "let the VM run, if it is to"
    SEND_SHUT = "send SHUT(0): it is loaded"
    SEND_SHUT_FAILED = "send SHUT(1): it does not run here"
    HANG_UP = "close the connection"


class Condition(Enum):
    """What a row may depend on beside its state. A row applies when all of its conditions hold."""

    RETURN_PATH = "return path open"
    NO_RETURN_PATH = "no return path"
    COLO_PEER = "colo destination"
    QEMU_PEER = "QEMU destination"
    ARBITER = "this side has an arbiter"
    NO_ARBITER = "no arbiter"
    HELD = "pause before switchover"
    NOT_HELD = "no pause before switchover"


class Phase(Enum):
    """Which deadline a state runs under. The session sets the times; the value says what is timed."""

    CONNECT = "until the destination takes the connection"
    HANDSHAKE = "the answer to PING HELLO; the stream's CONFIGURATION"
    ROUND = "no progress of a round: neither a batch nor the send queue moves"
    DEVICES = "the answer to PING DEVICES"
    SWITCHOVER = "SHUT, once the last is sent"
    TAKEN = "whether the connection breaks, once the last is sent and nobody will answer"
    STREAM = "one section; silence between two of them"
    LAST_WORD = "the last word, once the stream is whole"
    LOCAL = "none: this side is at work"
    OVER = "none: the connection is over"


class Reads(Enum):
    """What the next bytes from the peer are."""

    RETURN_PATH = "return path"
    STREAM = "section stream"
    LAST_WORD = "last word"
    END = "nothing but the connection's end"
    NOTHING = "nothing is read"
