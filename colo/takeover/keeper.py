"""Keeps a stand-by ready while checkpoints come in, so that a takeover finds one that has been checked."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from colo.epoch.committed import Committed
from colo.errors import ColoError, StandbyError
from colo.memory import RamImage
from colo.private import UNIX_PATH_MAX_BYTES
from colo.qemu.command_line import StandbyCommand, derive_standby
from colo.qemu.foresight import Rehearsal
from colo.qemu.process import private_directory
from colo.qemu.standby import INCOMING_NAME, QMP_NAME, Standby
from colo.qemu.twin import disks_taken_at_activation
from colo.stream import Configuration, RamBlockInfo
from colo.takeover.trial import Trial, TrialRuns, Verdict

RESTARTS = 3
WATCH_S = 0.25
TRIAL_NAME = "t"
STANDBY_NAMES = ("standby", "stand-2")
"""In the RAM directory, by the set of files that they map: where stand-bys have their sockets, each in a directory ``N``."""
LONGEST_NAME = max((f"/999/{name}" for name in (QMP_NAME, INCOMING_NAME)), key=len)
"""The longest that a stand-by's sockets are called behind the keeper's directory."""


def check_room_for_sockets(work_dir: Path, *, of: str = "the stand-by's directory") -> None:
    """Raises StandbyError when a stand-by's sockets in ``work_dir`` would have addresses too long for unix sockets."""
    over = len(os.fsencode(work_dir.absolute())) + len(LONGEST_NAME) - UNIX_PATH_MAX_BYTES
    if over > 0:
        raise StandbyError(
            f"{of} is {over} bytes too long: a unix socket's address has room for {UNIX_PATH_MAX_BYTES} bytes, and the "
            f"stand-by's sockets lie in {work_dir}: name a shorter one")


def deserted(directory: Path) -> bool:
    """Whether no QEMU has its monitor there any more: what is in it was left by a session that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(directory / QMP_NAME))
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False
    return False


class StandbyKeeper:
    """Starts the stand-by in the background, checks it against the stream, and starts another if it dies.

    ``argv`` is the primary's command line, or one of the user's own: what it lacks as a stand-by is added.
    ``on_event(text)`` hears of what goes wrong meanwhile. Raises StandbyError from :meth:`take`, and as soon as it is
    known through ``on_event``, when no stand-by can be had.

    With ``trial``, each checkpoint of a new shape is loaded in a twin of the stand-by that never runs
    (:mod:`colo.takeover.trial`), once :meth:`committed` has it; ``on_verdict(text)`` hears why the stand-by would refuse
    the VM, or None when it loads it (again).
    """

    def __init__(
        self,
        argv: Sequence[str],
        image: RamImage,
        work_dir: Path,
        *,
        share_ram: bool = True,
        start_s: float = 20.0,
        on_event: Callable[[str], None] = lambda text: None,
        rehearsal: Rehearsal | None = None,
        trial: bool = True,
        on_verdict: Callable[[str | None], None] = lambda text: None,
    ) -> None:
        check_room_for_sockets(work_dir)
        self.argv = list(argv)
        self.image = image
        self.work_dir = work_dir
        self.share_ram = share_ram
        self.start_s = start_s
        self._on_event = on_event
        self._ready: Future[Standby] = Future()
        self._closed = threading.Event()
        self._taken: Standby | None = None
        self._files: dict[str, Path] = {}
        self._machine = ""
        self._blocks: list[RamBlockInfo] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._derived: StandbyCommand | None = None
        self._refusal: str | None = None
        self._rehearsal = rehearsal
        self._on_verdict = on_verdict
        self._trials = TrialRuns(
            Trial(work_dir / TRIAL_NAME), lambda: self._derived, self._judged, share_ram=share_ram) if trial else None

    def committed(self, committed: Committed) -> None:
        """A checkpoint was committed: whether the stand-by could load it is found out in the background."""
        if self._trials is not None:
            self._trials.committed(committed)

    def _judged(self, verdict: Verdict) -> None:
        was, self._refusal = self._refusal, verdict.refused
        if verdict.refused is not None:
            self._on_event(
                f"the stand-by would refuse this VM, no takeover is possible: {verdict.refused}. Give --standby the "
                "primary's very command line, on a QEMU and a machine that have what the primary's have")
        elif verdict.untried is not None:
            self._on_event(f"whether the stand-by can load this VM could not be tried: {verdict.untried}")
        if verdict.untried is None or was is not None:
            self._on_verdict(verdict.refused)

    def start(self, configuration: Configuration, blocks: Sequence[RamBlockInfo]) -> None:
        """Begin: machine type and RAM blocks are known, and the blocks' files are there. Returns at once."""
        self._machine, self._blocks = configuration.machine, list(blocks)
        self._files = {block.idstr: self.image.path(block.idstr) for block in blocks}
        with contextlib.suppress(ColoError):  # said when it is derived
            if disks := disks_taken_at_activation(self.argv):
                self._on_event(
                    f"the stand-by opens for writing, and locks, only at a takeover: {', '.join(disks)}; while another "
                    "QEMU holds one of them, it cannot run")
        self._watch_new()

    def _watch_new(self) -> None:
        self._ready = Future()
        self._thread = threading.Thread(target=self._keep, name="colo-standby", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        if self._rehearsal is not None:
            self._rehearsal.join()
        for _ in range(1 + RESTARTS):
            try:
                standby = self._launch()
            except (ColoError, OSError) as error:
                self._on_event(f"the stand-by cannot be used: {error}")
                self._ready.set_exception(
                    error if isinstance(error, ColoError) else StandbyError(f"the stand-by cannot be used: {error}"))
                return
            self._derived = standby.command
            self._ready.set_result(standby)
            while not self._closed.wait(WATCH_S):
                with self._lock:
                    if self._taken is not None:
                        return
                    if standby.alive:
                        continue
                    self._ready = Future()
                self._report_death(standby)
                break
            else:
                return
        self._ready.set_exception(StandbyError(f"the stand-by died {1 + RESTARTS} times; see its messages above"))

    def _report_death(self, standby: Standby) -> None:
        self._on_event(f"the stand-by died ({'; '.join(standby.output()[-2:]) or 'no message'}); starting another")
        standby.close()

    def _launch(self) -> Standby:
        sizes = [(block.idstr, block.used_length) for block in self._blocks]
        derived = derive_standby(self.argv, ram_files=self._files, blocks=sizes, share_ram=self.share_ram)
        if "-S" not in derived.argv:
            # It runs when it is told to, and not before: until then the image is as the checkpoint left it.
            derived = replace(derived, argv=(*derived.argv, "-S"))
        standby = Standby(derived, self._new_directory())
        try:
            standby.start(self.start_s)
            standby.check(self._machine, sizes)
            standby.prepare(share_ram=self.share_ram)
        except BaseException:
            standby.close()
            raise
        return standby

    def _new_directory(self) -> Path:
        """One that nobody uses: a VM that was handed over may have its monitor in another."""
        private_directory(self.work_dir)
        number = 1
        while not deserted(directory := self.work_dir / str(number)):
            number += 1
        return directory

    @property
    def state(self) -> str:
        """``starting``, ``ready (trial pending)``, ``ready``, ``ready (untried: why)``, ``refused: why``, ``failed: why``."""
        ready = self._ready
        if not ready.done():
            return "starting"
        if error := ready.exception():
            return f"failed: {error}"
        if self._trials is None:
            return "ready (untried: --no-trial)"
        verdict = self._trials.verdict
        if verdict is None:
            return "ready (trial pending)"
        if verdict.refused is not None:
            return f"refused: {verdict.refused}"
        return "ready" if verdict.untried is None else f"ready (untried: {verdict.untried})"

    def take(self, timeout_s: float) -> Standby:
        """The checked stand-by; the caller's from now on, also to close. Raises StandbyError if there is none in time.

        One that could not be started before is tried once more, and so is one that died since it was looked at. Trials
        end: nothing else is to run beside a takeover.
        """
        if self._trials is not None:
            self._trials.stop()
        deadline = time.monotonic() + timeout_s
        tried = False
        while True:
            with self._lock:
                ready = self._ready
                if self._thread is None:
                    raise StandbyError("no stand-by was started: machine type and RAM blocks are not known")
            try:
                standby = ready.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise StandbyError(f"the stand-by was not ready within {timeout_s:g} s") from None
            except ColoError:
                if tried:
                    raise
                tried = True
                self._thread.join()
                self._watch_new()
                continue
            with self._lock:
                if ready is self._ready and standby.alive:
                    self._taken = standby
                    return standby
            # It died: the watching thread starts another.
            if self._closed.wait(WATCH_S / 10) or time.monotonic() >= deadline:
                raise StandbyError("the stand-by died, and there is no time for another")

    def replace(self) -> None:
        """The stand-by that was taken is of no use and closed: have another ready for :meth:`take`."""
        self._join()
        self._taken = None
        self._watch_new()

    def _join(self) -> None:
        """Wait for the watching thread, which ends when the stand-by is taken."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """End the stand-by, unless it was taken, and remove what there is of its directories."""
        self._closed.set()
        if self._trials is not None:
            self._trials.close()
        self._join()
        with self._lock:
            ready, taken = self._ready, self._taken
        if taken is None and ready.done() and ready.exception() is None:
            with contextlib.suppress(ColoError):
                ready.result().close()
        # One that was handed over still has its monitor in there: its directory stays.
        for directory in (*self.work_dir.glob("*"), self.work_dir):
            with contextlib.suppress(OSError):
                directory.rmdir()
