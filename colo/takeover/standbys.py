"""A secondary's stand-bys: one for the checkpoint that is held, one for a primary whose first copy is not whole yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from colo.epoch.committed import Committed
from colo.errors import ColoError, StandbyRefused
from colo.figures.takeover_report import TakeoverReport
from colo.memory import RamImage
from colo.qemu.foresight import Rehearsal
from colo.qemu.standby import Standby
from colo.stream import Configuration, RamBlockInfo
from colo.takeover.keeper import STANDBY_NAMES, StandbyKeeper
from colo.takeover.kept import block_infos, in_doubt, mark_untouched

REHEARSAL_NAME = "r"
LOAD_ATTEMPTS = 2
"""Stand-bys that a takeover may use up, as long as the RAM image is untouched."""


class Standbys:
    """Of the command line ``argv``, over the files of ``image``. ``notice`` hears what people should know, ``on_verdict``
    what trials find. Closing ends them, but for one that runs the VM."""

    def __init__(
        self, argv: Sequence[str], image: RamImage, *, share_ram: bool, trial: bool, notice: Callable[[str], None],
        on_verdict: Callable[[str | None], None],
    ) -> None:
        self.spoiled = False
        """One may have run on the RAM image: it is no checkpoint any more."""
        self._argv = argv
        self._image = image
        self._share_ram = share_ram
        self._trial = trial
        self._notice = notice
        self._on_verdict = on_verdict
        self._held: StandbyKeeper | None = None
        self._coming: StandbyKeeper | None = None
        self._taken: Standby | None = None
        self._rehearsal: Rehearsal | None = None

    def rehearse(self) -> None:
        """Find out in the background, before there is a primary, what can be found out of the command line."""
        if self._trial:
            self._rehearsal = Rehearsal(
                self._argv, self._image.directory / STANDBY_NAMES[0] / REHEARSAL_NAME, self._notice)

    def _keeper(self, configuration: Configuration, blocks: Sequence[RamBlockInfo]) -> StandbyKeeper:
        keeper = StandbyKeeper(
            self._argv, self._image, self._image.directory / STANDBY_NAMES[self._image.set_in_use],
            share_ram=self._share_ram, on_event=self._notice, rehearsal=self._rehearsal, trial=self._trial,
            on_verdict=self._on_verdict)
        keeper.start(configuration, blocks)
        return keeper

    @property
    def state(self) -> str | None:
        """See :attr:`StandbyKeeper.state`; None: there is none yet."""
        keeper = self._coming or self._held
        return keeper.state if keeper is not None else None

    # -- while primaries come and go

    def have_for(self, committed: Committed) -> None:
        """One for a checkpoint that was found here."""
        if self._held is None:
            self._held = self._keeper(committed.configuration, block_infos(self._image.kept))
            self._held.committed(committed)

    def announced(self, configuration: Configuration, blocks: Sequence[RamBlockInfo]) -> None:
        """A primary's first copy is about to come."""
        self._coming = self._keeper(configuration, blocks)

    def came_to_nothing(self) -> None:
        """It was never whole."""
        keeper, self._coming = self._coming, None
        if keeper is not None:
            keeper.close()

    def take_the_place(self) -> None:
        """It is committed: what was held before is not needed any more."""
        before, self._held, self._coming = self._held, self._coming, None
        if before is not None:
            before.close()

    def committed(self, committed: Committed) -> None:
        """A checkpoint was committed."""
        if self._held is not None:
            self._held.committed(committed)

    # -- a takeover

    def take(self, timeout_s: float) -> Standby:
        """The one that is to run the VM. Raises StandbyError when there is none in time."""
        assert self._held is not None
        self._taken = self._held.take(timeout_s)
        return self._taken

    def put_away(self, *, again: bool) -> None:
        """The one that was taken is not to run after all; ``again``: have another ready. Any number of times."""
        standby, self._taken = self._taken, None
        if standby is not None:
            standby.close()
            if again:
                assert self._held is not None
                self._held.replace()

    def run(self, committed: Committed, load: Callable[[Standby], TakeoverReport], timeout_s: float) -> TakeoverReport:
        """Have the VM run in the one that was taken, with ``load``; should it fail before that, in another.

        Raises what ``load`` does. Another is then ready, unless the VM may have run (:attr:`spoiled`).
        """
        assert self._held is not None and self._taken is not None
        standby, self._taken = self._taken, None
        for left in reversed(range(LOAD_ATTEMPTS)):
            try:
                return load(standby)
            except BaseException as error:
                if standby.may_have_run:
                    self.spoiled = True
                    raise in_doubt(standby, committed, error) from error
                standby.close()
                mark_untouched(self._image.kept)
                self._held.replace()
                if not left or not isinstance(error, (ColoError, OSError)) or isinstance(error, StandbyRefused):
                    raise
                self._notice(f"the stand-by failed, the image is untouched, another tries: {error}")
                standby = self._held.take(timeout_s)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """End those that were not handed over. Any number of times."""
        if self._rehearsal is not None:
            self._rehearsal.join(5.0)
        for keeper in (self._held, self._coming):
            if keeper is not None:
                keeper.close()
        self._held = self._coming = None
