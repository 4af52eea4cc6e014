"""Keeps a stand-by ready while checkpoints come in, so that a takeover finds one that has been checked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from colo.errors import ColoError, StandbyError
from colo.memory import RamImage
from colo.qemu.command_line import derive_standby
from colo.qemu.standby import Standby
from colo.stream import Configuration, RamBlockInfo

RESTARTS = 3
WATCH_S = 0.25


class StandbyKeeper:
    """Starts the stand-by in the background, checks it against the stream, and starts another if it dies.

    ``argv`` is the primary's command line, or one of the user's own: what it lacks as a stand-by is added.
    ``on_event(text)`` hears of what goes wrong meanwhile. Raises StandbyError from :meth:`take`, and as soon as it is
    known through ``on_event``, when no stand-by can be had.
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
    ) -> None:
        self.argv = list(argv)
        self.image = image
        self.work_dir = work_dir
        self.share_ram = share_ram
        self.start_s = start_s
        self._on_event = on_event
        self._ready: Future[Standby] = Future()
        self._closed = threading.Event()
        self._taken = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, configuration: Configuration, blocks: Sequence[RamBlockInfo]) -> None:
        """Begin: machine type and RAM blocks are known, and the blocks' files are there. Returns at once."""
        self._thread = threading.Thread(
            target=self._keep, args=(configuration.machine, list(blocks)), name="colo-standby", daemon=True)
        self._thread.start()

    def _keep(self, machine: str, blocks: list[RamBlockInfo]) -> None:
        for attempt in range(1 + RESTARTS):
            try:
                standby = self._launch(machine, blocks, attempt)
            except (ColoError, OSError) as error:
                self._on_event(f"the stand-by cannot be used: {error}")
                if not self._ready.done():
                    self._ready.set_exception(error)
                return
            if self._closed.is_set():
                standby.close()
                return
            self._ready.set_result(standby)
            while not self._closed.wait(WATCH_S):
                with self._lock:
                    if self._taken:
                        return
                    if standby.alive:
                        continue
                    self._ready = Future()
                self._on_event(f"the stand-by died ({'; '.join(standby.output()[-2:]) or 'no message'}); starting another")
                standby.close()
                break
            else:
                return
        self._ready.set_exception(StandbyError(f"the stand-by died {1 + RESTARTS} times; see its messages above"))

    def _launch(self, machine: str, blocks: list[RamBlockInfo], attempt: int) -> Standby:
        sizes = [(block.idstr, block.used_length) for block in blocks]
        files = {idstr: self.image.path(idstr) for idstr, _ in sizes}
        derived = derive_standby(self.argv, ram_files=files, blocks=sizes, share_ram=self.share_ram)
        standby = Standby(derived, self.work_dir / f"standby-{attempt}")
        try:
            standby.start(self.start_s)
            standby.check(machine, sizes)
            standby.prepare(share_ram=self.share_ram)
        except BaseException:
            standby.close()
            raise
        return standby

    @property
    def state(self) -> str:
        """``starting``, ``ready`` or ``failed: why``."""
        ready = self._ready
        if not ready.done():
            return "starting"
        error = ready.exception()
        return f"failed: {error}" if error else "ready"

    def take(self, timeout_s: float) -> Standby:
        """The checked stand-by; the caller's from now on. Raises StandbyError if there is none in time."""
        with self._lock:
            ready = self._ready
        try:
            standby = ready.result(timeout_s)
        except TimeoutError:
            raise StandbyError(f"the stand-by was not ready within {timeout_s:g} s") from None
        with self._lock:
            self._taken = True
        return standby

    def close(self) -> None:
        """End the stand-by, unless it was taken."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            ready, taken = self._ready, self._taken
        if not taken and ready.done() and ready.exception() is None:
            with contextlib.suppress(ColoError):
                ready.result().close()
