"""Every exception colo raises, in one tree::

    ColoError
    ├── StreamError            a migration stream says something it may not (where, what, which value)
    │   ├── Truncated          it ends in the middle
    │   └── LimitExceeded      a count, length or total passes its limit
    ├── ProtocolError          a COLO message or command that does not fit the state
    ├── ChannelError           the connection itself
    │   ├── AddressError       a transport URI that is malformed, or refused
    │   ├── StrangerRefused    the other end is another user of this machine
    │   ├── ChannelLost        reset, or closed by the peer
    │   ├── DeadlineExceeded   the peer was silent, or too slow, for longer than allowed
    │   └── Interrupted        this side asked the wait to end
    ├── NoCheckpoint           there is nothing to resume from yet
    ├── VmEnded                the VM was ended on purpose: nobody is to run it
    ├── ArbitrationError       who may run could not be decided: nobody does
    │   └── ArbitrationLost    the other side won this generation
    ├── VmError                the protected VM's own methods raised, hung or returned what is no state
    ├── TrackerError           a dirty tracker cannot start, or lost sight of memory: a full copy is needed
    ├── StorageError           a RAM image or a checkpoint could not be kept (disk full, permissions)
    ├── QemuError              a QEMU process or its QMP
    │   ├── QemuUnsupported    this QEMU cannot do what is asked, and why
    │   └── StandbyError       the stand-by does not fit the stream, died, or refused to load
    │       └── StandbyRefused it loaded the checkpoint and refuses to run it (a disk that another QEMU holds): nothing ran
    └── Unsupported            this machine or build cannot do it, and why
"""

from __future__ import annotations

from colo.text import printable


class ColoError(Exception):
    """Root of all errors raised by colo. Its text may have words of a peer, a file or QEMU in it: whoever prints or logs it
    gets them :func:`printable <colo.text.printable>`, in one line."""

    def __str__(self) -> str:
        return printable(super().__str__())


class StreamError(ColoError):
    """A migration stream broke its format.

    ``where`` names the section or record, ``offset`` is the byte offset in the stream where it was seen (or None),
    ``value`` is the offending value.
    """

    def __init__(
        self, message: str, *, where: str = "", offset: int | None = None, value: object = None
    ) -> None:
        self.where = where
        self.offset = offset
        self.value = value
        self.detail = message
        parts = [where] if where else []
        if offset is not None:
            parts.append(f"at byte {offset} ({offset:#x})")
        super().__init__(f"{' '.join(parts)}: {message}" if parts else message)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.detail, self.where, self.offset, self.value))


def _rebuild(cls: type[StreamError], detail: str, where: str, offset: int | None, value: object) -> StreamError:
    return cls(detail, where=where, offset=offset, value=value)


class Truncated(StreamError):
    """The stream ended in the middle of something."""


class LimitExceeded(StreamError):
    """A count, length or total is over its limit; it was refused before memory was allocated for it."""


class ProtocolError(ColoError):
    """A message that does not fit the state of the protocol.

    ``state`` is where the protocol stood, ``got`` what came, ``expected`` what could have come; each is "" or
    empty where there is no such thing to name.
    """

    def __init__(
        self, message: str, *, state: str = "", got: str = "", expected: tuple[str, ...] = ()
    ) -> None:
        self.state = state
        self.got = got
        self.expected = expected
        super().__init__(message)


class ChannelError(ColoError):
    """The connection to the peer."""


class AddressError(ChannelError, ValueError):
    """A transport URI is malformed, or names what is refused (plaintext over a network, another's file)."""


class StrangerRefused(ChannelError):
    """The other end of a connection on this machine is neither root's nor ours, nor of a user who was named."""


class ChannelLost(ChannelError):
    """The peer closed or reset the connection."""


class DeadlineExceeded(ChannelError):
    """The peer did not send, or take, what it should have in time. ``phase`` names the deadline that ended the wait."""

    def __init__(self, message: str, *, phase: str = "") -> None:
        self.phase = phase
        super().__init__(message)


class Interrupted(ChannelError):
    """A wait on the channel was ended from our own side (a failover request, a shutdown)."""


class NoCheckpoint(ColoError):
    """There is no committed checkpoint to resume from."""


class VmEnded(ColoError):
    """The VM was ended on purpose, by its guest or its user: there is nothing to take over, and nothing to protect."""


class ArbitrationError(ColoError):
    """It could not be decided who may run; in doubt, nobody takes over."""


class ArbitrationLost(ArbitrationError):
    """The other side holds the next generation: this side must stop its VM."""


class TrackerError(ColoError):
    """A dirty tracker that is not running, cannot watch this memory, or lost sight of it (the message says which)."""


class VmError(ColoError):
    """A method of the protected VM (pause, resume, save_state, load_state) raised, hung, or returned garbage."""


class StorageError(ColoError):
    """A file of the RAM image or of a stored checkpoint could not be made, grown or written."""


class QemuError(ColoError):
    """A QEMU process, or its QMP monitor, failed."""


class QemuUnsupported(QemuError):
    """This QEMU (its version, build or accelerator) cannot do what is asked."""


class StandbyError(QemuError):
    """The stand-by QEMU does not fit the stream, died, or refused to load it."""


class StandbyRefused(StandbyError):
    """The stand-by loaded the checkpoint and refuses to run it: no processor of it has started, the checkpoint is whole."""


class Unsupported(ColoError):
    """This machine, kernel or build cannot do what is asked; the message says why and what to do."""


def explain(error: BaseException) -> str:
    """One line for people about how a connection ended."""
    kind = type(error).__name__
    return f"{error} [{kind}]" if isinstance(error, ColoError) else f"{kind}: {error}"
