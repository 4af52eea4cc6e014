"""A trial load: a checkpoint is given to a twin of the stand-by, which says whether it can load it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.send.pageencoder import PageEncoder
from colo.epoch.committed import Committed
from colo.epoch.composed import compose
from colo.errors import ChannelError, ColoError, QemuUnsupported, StandbyError
from colo.qemu.command_line import StandbyCommand
from colo.qemu.process import private_directory
from colo.qemu.qmp import QmpTimeout
from colo.qemu.standby import Standby
from colo.qemu.twin import LOW_BYTES, twin_command
from colo.stream.devices import check_device_blob
from colo.wire import TARGET_PAGE_BYTES

LAST_VICTIM = "1000"
"""oom_score_adj of a process that is to be killed before any other."""

LOW_PAGES = LOW_BYTES // TARGET_PAGE_BYTES

Shape = tuple[tuple[object, ...], ...]


class Verdict(NamedTuple):
    """What a trial found. ``refused`` has QEMU's own words; ``untried`` says why there is no answer. Both None: it loads."""

    refused: str | None = None
    untried: str | None = None


def shape_of(committed: Committed) -> Shape:
    """What of a checkpoint decides whether another QEMU can load it: when it changes, a trial is due again.

    The RAM blocks with their sizes, and the device sections with their versions and lengths (a subsection that was not
    there before makes one longer).
    """
    blocks: Shape = tuple((block.idstr, block.used_length) for block in committed.blocks)
    try:
        sections = check_device_blob(committed.device_state)
    except ColoError:  # its bytes can be taken apart in more than one way
        return blocks
    return blocks + tuple(sorted((s.idstr, s.instance_id, s.version_id, s.length_bytes) for s in sections))


def _send_low_pages(encoder: PageEncoder, block: RamBlock, deadline_ns: int) -> None:
    """Those that are not known to be zero; to look at those would give them storage."""
    assert block.memory_buffer is not None
    zero, low = DirtyBitmap(block.pages), DirtyBitmap(block.pages)
    block.copy_zero_bits(zero)
    low.set(0, min(LOW_PAGES, block.pages))
    low.subtract(zero)
    encoder.begin_block(block.idstr, memoryview(block.memory_buffer)[: block.used_length], low)
    encoder.encode(deadline_ns=deadline_ns)


class Trial:
    """One twin at a time, in ``work_dir``. :meth:`run` may be ended from another thread by :meth:`stop`."""

    def __init__(self, work_dir: Path, *, timeout_s: float = 60.0) -> None:
        self.work_dir = work_dir
        self.timeout_s = timeout_s
        self._stopped = threading.Event()
        self._twin: Standby | None = None

    def run(self, command: StandbyCommand, committed: Committed, *, share_ram: bool = True) -> Verdict:
        """Give ``committed`` to a twin of the stand-by that ``command`` starts, with the low pages of its RAM only.

        Takes at most about ``timeout_s`` seconds. Never raises for what the twin does.
        """
        if self._stopped.is_set():
            return Verdict(untried="it was stopped")
        try:
            directory = private_directory(self.work_dir)
            with contextlib.ExitStack() as cleanup:
                cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
                twin = cleanup.enter_context(Standby(twin_command(command, directory), directory))
                self._twin = twin
                cleanup.callback(self._forget)
                return self._load(twin, committed, share_ram)
        except Exception as error:  # whatever it is, a takeover must not hang on it
            return Verdict(untried="it was stopped" if self._stopped.is_set() else str(error) or type(error).__name__)

    def _forget(self) -> None:
        self._twin = None

    def _load(self, twin: Standby, committed: Committed, share_ram: bool) -> Verdict:
        twin.start(self.timeout_s)
        with contextlib.suppress(OSError):
            Path(f"/proc/{twin.process.pid}/oom_score_adj").write_text(LAST_VICTIM)
        for path in twin.command.shared.values():
            path.unlink()  # what it has mapped, it keeps
        try:
            twin.prepare(share_ram=share_ram, activate=False)
        except QemuUnsupported as error:
            return Verdict(untried=str(error))
        stream = compose(committed, shared=twin.shared_blocks, addresses=twin.block_addresses)
        deadline_ns = time.monotonic_ns() + int(self.timeout_s * 1e9)
        with twin.connect() as channel:
            channel.settimeout(self.timeout_s)
            with contextlib.suppress(OSError, ChannelError):  # one that refuses does not read on
                encoder = PageEncoder(channel.fileno())
                try:
                    encoder.write(stream.head, deadline_ns)
                    for block in stream.sent_blocks:
                        _send_low_pages(encoder, block, deadline_ns)
                    encoder.write(stream.tail, deadline_ns, flush=True)
                finally:
                    encoder.close()
                channel.shutdown(socket.SHUT_WR)
            try:
                twin.await_loaded(self.timeout_s)
            except StandbyError as error:
                return self._refusal(twin, error)
        return Verdict()

    def _refusal(self, twin: Standby, error: StandbyError) -> Verdict:
        if self._stopped.is_set():
            return Verdict(untried="it was stopped")
        if isinstance(error.__cause__, QmpTimeout) or twin.process.returncode == -signal.SIGKILL:
            return Verdict(untried=str(error))
        return Verdict(refused=str(error))

    def stop(self) -> None:
        """End a trial that runs, and begin none any more. Any thread; returns at once."""
        self._stopped.set()
        twin = self._twin
        if twin is not None and twin.alive:
            with contextlib.suppress(ColoError):
                twin.process.send_signal(signal.SIGKILL)


class TrialRuns:
    """Trials while checkpoints come in: one at first, and one whenever a checkpoint's shape has changed.

    One that came to no answer is made again. ``on_verdict`` hears each verdict that differs from the one before.
    """

    LOOK_S = 5.0
    """How often the newest checkpoint's shape is looked at."""
    LONGEST_S = 600.0
    """Trials come less and less often when the shape goes on changing, up to this far apart."""

    def __init__(
        self, trial: Trial, command: Callable[[], StandbyCommand | None], on_verdict: Callable[[Verdict], None], *,
        share_ram: bool = True,
    ) -> None:
        self.verdict: Verdict | None = None
        """The newest; None while the first is pending."""
        self._trial = trial
        self._command = command
        self._on_verdict = on_verdict
        self._share_ram = share_ram
        self._newest: Committed | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def committed(self, committed: Committed) -> None:
        """A checkpoint was committed. Costs nothing on the caller's thread."""
        self._newest = committed
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="colo-trial", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        tried: Shape | None = None
        again_s = self.LOOK_S
        while not self._ended.is_set():
            committed, command = self._newest, self._command()
            assert committed is not None
            if command is None:  # there is no stand-by yet
                self._ended.wait(0.2)
                continue
            shape = shape_of(committed)
            if shape != tried:
                verdict = self._trial.run(command, committed, share_ram=self._share_ram)
                if self._ended.is_set():
                    return
                self._decide(verdict)
                tried = shape if verdict.untried is None else None
                self._ended.wait(again_s)
                again_s = min(2 * again_s, self.LONGEST_S)
            else:
                self._ended.wait(self.LOOK_S)

    def _decide(self, verdict: Verdict) -> None:
        changed = verdict != self.verdict
        self.verdict = verdict
        if changed:
            self._on_verdict(verdict)

    def stop(self) -> None:
        """End them; returns at once. Idempotent."""
        self._ended.set()
        if self.verdict is None:
            self.verdict = Verdict(untried="there was no time for it")
        self._trial.stop()

    def close(self) -> None:
        """End them, and wait until nothing is left of them. Idempotent."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
