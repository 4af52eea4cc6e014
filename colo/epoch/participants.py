"""What a checkpoint of a primary is made of: whoever has a part in it registers, and the engine calls a list.

Pages, packets, disk writes have one thing in common: changes are cut into epochs. A participant hears where the cuts are; the
bytes it sends are its own affair, on channels of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from colo.errors import ColoError, VmError


@runtime_checkable
class EpochSource(Protocol):
    """A part of a primary's checkpoints. Its methods are called on the session's threads, never two at once.

    Epoch n is what changed since checkpoint n - 1; 0 is the first, with all there is. Over one connection the numbers follow
    each other, each ``seal(n)`` followed by ``release(n)`` or, at the connection's end, ``take_back(n)``. When the same
    secondary is found again counting goes on behind the last number that was released; a new one begins at 0.
    """

    def seal(self, number: int) -> None:
        """The VM stands still and its state is saved: what comes after belongs to the next epoch. Every moment counts.

        Who raises is missing from the checkpoint, which then does not come to be: all are told to take it back. Protection
        ends with that error, as it does when the state cannot be saved; this side claims the VM, which runs on.
        """

    def release(self, number: int) -> None:
        """Checkpoint ``number`` is committed: let go what waited for it.

        What is raised is told as a notice, and changes nothing: the checkpoint is committed. What could not be let go waits
        for the next release.
        """

    def take_back(self, number: int) -> None:
        """The connection is over, and ``number``, sealed or not, was not committed as far as is known: its changes belong to
        the next epoch again. What is raised is told as a notice. Where one of the VM's own methods hangs, it comes when that
        returns, if ever: then behind ``end``."""

    def end(self, won: bool) -> None:
        """``won``: this side runs the VM alone, and nobody else will: what is held back may go, and so may what comes from
        now on, until the next ``seal``. Else the other side runs it: nothing leaves from here any more.

        What is raised is told as a notice: who runs is decided.
        """


class Participants:
    """Those of one session, called in the order in which they registered.

    ``notice`` hears what a participant raised where that changes nothing: one that fails keeps no other from hearing. Raises
    TypeError for what is no participant.
    """

    def __init__(self, sources: Sequence[EpochSource], notice: Callable[[str], None] = lambda text: None) -> None:
        for source in sources:
            if not isinstance(source, EpochSource):
                raise TypeError(f"a participant has seal, release, take_back and end; {type(source).__name__} has not")
        self._sources = tuple(sources)
        self._notice = notice
        self._lock = threading.RLock()

    def seal(self, number: int) -> None:
        """Raises what the first raises that fails, as VmError if it is no error of colo's own."""
        with self._lock:
            for source in self._sources:
                try:
                    source.seal(number)
                except ColoError:
                    raise
                except Exception as error:
                    raise VmError(f"{_name(source)} could not be sealed for checkpoint {number}: "
                                  f"{type(error).__name__}: {error}") from error

    def release(self, number: int) -> None:
        self._tell_all("release", number)

    def take_back(self, number: int) -> None:
        self._tell_all("take_back", number)

    def end(self, won: bool) -> None:
        self._tell_all("end", won)

    def _tell_all(self, method: str, argument: int | bool) -> None:
        with self._lock:
            for source in self._sources:
                try:
                    getattr(source, method)(argument)
                except Exception as error:
                    self._notice(f"{_name(source)} failed at {method}({argument}): {type(error).__name__}: {error}")


def _name(source: EpochSource) -> str:
    return getattr(source, "name", None) or type(source).__name__.lower()
