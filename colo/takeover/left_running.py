"""A session that was killed while its stand-by was about to run: who comes after it brings that to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from colo.errors import QemuError, StandbyError
from colo.figures.takeover_report import TakeoverReport
from colo.memory import Phase, RamImage
from colo.qemu.process import Qemu
from colo.qemu.standby import QMP_NAME
from colo.takeover.keeper import STANDBY_NAMES
from colo.takeover.kept import standby_alive

REASON = "a session before this one was ended while it took over"
ANSWER_S = 10.0
LOADED = ("paused", "prelaunch", "postmigrate")
"""Status of a QEMU that has the checkpoint and stands still."""


def finish_what_began(image: RamImage, generation: int | None) -> TakeoverReport | None:
    """The VM runs here, in the process that the decision record names: its report, and the checkpoint is forgotten. None: it
    does not, and the checkpoint is whole, or a VM has run on it and is gone (its phase says which).

    A stand-by that was told to run is the VM, whether it has done so already or not: it is told again. Raises StandbyError
    when it lives and does not answer.
    """
    kept = image.kept
    record = kept.record
    assert record is not None
    if record.phase not in (Phase.LOADED, Phase.RUNNING):
        return None
    if not standby_alive(kept):
        if record.phase is Phase.LOADED:
            kept.change(phase=Phase.WHOLE, pid=0, pid_start_ticks=0)
        return None
    if record.phase is Phase.LOADED:
        _end(record.pid)
        kept.change(phase=Phase.WHOLE, pid=0, pid_start_ticks=0)
        return None
    monitor = image.directory / STANDBY_NAMES[record.image_set] / str(record.standby_number) / QMP_NAME
    _see_it_run(monitor, record.pid)
    image.remove_files()
    return TakeoverReport(
        checkpoint=record.checkpoint, reason=REASON, generation=generation, detection_ms=0.0, arbitration_ms=0.0,
        settle_ms=0.0, compose_ms=0.0, load_ms=0.0, running_ms=0.0, total_ms=0.0,
        checkpoint_age_ms=max(0.0, (time.time_ns() - record.committed_at_ns) / 1e6), sent_bytes=0, shared_blocks=(),
        qmp_path=str(monitor), pid=record.pid)


def _see_it_run(monitor: Path, pid: int) -> None:
    try:
        with Qemu.attach(monitor, ANSWER_S) as qemu:
            if qemu.status(ANSWER_S) in LOADED:
                qemu.qmp.execute("cont", timeout_s=ANSWER_S)
    except QemuError as error:
        raise StandbyError(
            f"the VM was told to run in process {pid}, which is there, but its monitor {monitor} says: {error}; see to it, "
            "nothing else is started beside it") from error


def _end(pid: int) -> None:
    """It has loaded the checkpoint, was not told to run, and its session is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + ANSWER_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.01)
