"""The owner of the committed checkpoint: it outlives every connection that brought one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from colo.abc import EpochSink
from colo.epoch.committed import Committed


class DecisionKeeper(Protocol):
    """Who keeps the record by which a process that comes after this one finds the committed checkpoint."""

    def put_down(self, checkpoint: Committed) -> None:
        """All that is decided on; what cannot be put down is refused by raising."""

    def decide(self, checkpoint: Committed) -> None:
        """It is the committed one, for whoever comes next. Raises when it cannot be written: then it is not."""


class LastCommitted:
    """The last committed checkpoint, and the sinks that have its parts.

    A connection is a guest: it brings a checkpoint with :meth:`prepare` and :meth:`commit`, or drops it, and may be thrown
    away at any moment. One thread, that of whoever receives; :attr:`committed` may be read from any.
    """

    def __init__(self, record: DecisionKeeper, sinks: Sequence[EpochSink]) -> None:
        self.committed: Committed | None = None
        """One assignment to it decides for all sinks."""
        self._record = record
        self._sinks = sinks
        self._prepared: Committed | None = None

    def prepare(self, checkpoint: Committed) -> None:
        """All of it is here: whatever could refuse it does so now, by raising."""
        for sink in self._sinks:
            sink.prepare(checkpoint.number)
        self._record.put_down(checkpoint)
        self._prepared = checkpoint

    def commit(self) -> Committed:
        """The prepared checkpoint is the committed one from here on; returns it. Raises StorageError when the decision
        cannot be put down: then nothing has changed."""
        assert self._prepared is not None
        checkpoint = self._prepared = replace(self._prepared, at_ns=time.monotonic_ns())
        self._record.decide(checkpoint)
        self.committed = checkpoint
        self._tell_sinks()
        return checkpoint

    def _tell_sinks(self) -> None:
        if self._prepared is None or self._prepared is not self.committed:
            return
        for sink in self._sinks:
            sink.commit(self._prepared.number)
        self._prepared = None

    def drop(self, number: int) -> None:
        """Forget what there is of checkpoint ``number``, unless it is committed. Any number of times."""
        self._tell_sinks()  # what was decided is not dropped, wherever it was cut
        self._prepared = None
        for sink in self._sinks:
            sink.drop(number)

    def recover(self, checkpoint: Committed) -> None:
        """An earlier process decided on ``checkpoint``: it is the committed one."""
        for sink in self._sinks:
            sink.recover()
        self.committed = checkpoint
