"""RAM's part of a checkpoint at the secondary: pages are staged in a log, and brought into the image once it is committed."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor

from colo._fast.receive.staging import Staging
from colo.epoch.committed import Committed
from colo.errors import StorageError
from colo.figures.dirty_heat import DirtyHeat
from colo.memory import BlockImage
from colo.wire import TARGET_PAGE_BYTES

PREPARED_BYTES = 64 << 20
"""So much memory is kept ready for the first checkpoint's pages, or a quarter of RAM if that is less."""


class RamSink:
    """The image, the log of the checkpoint under way, and the thread that brings a committed log into the image. An
    :class:`~colo.abc.EpochSink`, and the keeper of the decision record: the image's files lie beside it.

    It serves all connections of a session in turn, one at a time. One thread, that of whoever receives, but :meth:`settle`,
    which may be called from another once nobody receives.
    """

    def __init__(self, image: BlockImage) -> None:
        self.image = image
        self.heat: DirtyHeat | None = None
        """Set to have the pages of each checkpoint counted by place."""
        self._staging: Staging | None = None
        self._applier = ThreadPoolExecutor(1, thread_name_prefix="colo-apply")
        self._applying: Future[None] | None = None
        self._log_is_committed = False
        """The image alone is not the committed checkpoint: its log is to be replayed onto it first."""

    @property
    def staging(self) -> Staging:
        """The log that pages are decoded into."""
        if self._staging is None:
            self._staging = Staging(self.image.log_files())
        return self._staging

    @property
    def staged_high_water_bytes(self) -> int:
        """The most stream bytes one checkpoint has held."""
        return int(self._staging.high_water_bytes) if self._staging is not None else 0

    # -- what arrives

    def begin_first_copy(self) -> None:
        """A connection's first copy comes: it goes where no committed checkpoint is."""
        self.settle()
        self.image.begin()

    def begin(self) -> None:
        """A checkpoint comes. The log of the one before must be in the image before its arena is used again."""
        self.settle()
        for block in self.image.blocks:
            block.clear_counts()

    # -- the promises of an EpochSink

    def prepare(self, number: int) -> None:
        """See :meth:`EpochSink.prepare`. Raises StorageError."""
        self.staging.reserve()

    def commit(self, number: int) -> None:
        """See :meth:`EpochSink.commit`. The checkpoint is the image and the log, until that is replayed (:meth:`apply`)."""
        self._log_is_committed = True

    def drop(self, number: int) -> None:
        """See :meth:`EpochSink.drop`."""
        if self._staging is not None and self._applying is None and not self._log_is_committed:
            self._staging.drop()  # else there is nothing but the committed log: the next one waits for it

    def recover(self) -> None:
        """See :meth:`EpochSink.recover`: the log was replayed when the image was opened."""

    # -- the decision record

    def put_down(self, checkpoint: Committed) -> None:
        """All that :meth:`decide` decides on, where the committed checkpoint has nothing. Raises StorageError."""
        self.image.prepare(
            checkpoint.number, checkpoint.configuration.machine, checkpoint.ram_section_id, checkpoint.device_state,
            list(checkpoint.blocks))

    def decide(self, checkpoint: Committed) -> None:
        """For whoever opens the directory next, it is the committed one. Raises StorageError: then it is not."""
        self.image.commit(list(checkpoint.blocks), self.staging.extent)

    # -- into the image

    def apply(self, *, first: bool) -> None:
        """Begin to replay the committed log onto the image, on a thread of its own. ``first``: it is a first copy's, whose
        pages are there already."""
        self._applying = self._applier.submit(self._apply, first=first)

    def _apply(self, *, first: bool) -> None:
        if self.heat is not None and not first:
            self.heat.add(self.image.blocks, self.staging)
        self._replay()
        if first:
            # In the first checkpoint, too, a primary is not to wait for memory.
            self.staging.begin(self.image.blocks)
            total = sum(block.pages for block in self.image.blocks) * TARGET_PAGE_BYTES
            self.staging.prepare(min(PREPARED_BYTES, total // 4))

    def _replay(self) -> None:
        self.staging.apply()
        self.image.replayed()
        self._log_is_committed = False

    def settle(self) -> None:
        """Wait until the committed checkpoint is wholly in the image. Raises StorageError; called again, it tries again."""
        applying, self._applying = self._applying, None
        if applying is not None:
            with contextlib.suppress(StorageError):  # if it lasts, it is met again just below
                applying.result()
        if self._log_is_committed:
            self._replay()  # cut after the commit, before anything else could be done

    def close(self) -> None:
        """:meth:`settle`, and end the thread."""
        self._applier.shutdown(wait=True)
        self.settle()
