"""The committed checkpoint becomes a running VM, in a stand-by QEMU."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from colo.epoch.committed import Committed
from colo.epoch.composed import compose
from colo.figures.takeover_report import TakeoverReport
from colo.memory import RamImage
from colo.qemu.standby import Standby
from colo.takeover.kept import mark_telling


@dataclass(frozen=True, slots=True)
class Before:
    """What a takeover took until the stand-by was given the checkpoint: see TakeoverReport."""

    reason: str
    generation: int | None
    noticed_ns: int
    detection_ns: int
    arbitration_ns: int
    settle_ns: int


def resume(
    committed: Committed, standby: Standby, image: RamImage, before: Before, *, takeover_s: float,
    before_run: Callable[[], None], told: Callable[[str], None],
) -> TakeoverReport:
    """Load ``committed`` into ``standby`` and make it run; the checkpoint in ``image`` is then its memory, and forgotten.

    ``before_run`` is called when it is loaded, ``told`` hears when its status is not what it should be. Raises StandbyError,
    ChannelError.
    """
    begin_ns = time.monotonic_ns()
    stream = compose(committed, shared=standby.shared_blocks, addresses=standby.block_addresses)
    channel = standby.connect()
    with channel:
        channel.settimeout(takeover_s)
        sent_bytes = stream.write(channel.fileno(), timeout_s=takeover_s)
        channel.shutdown(socket.SHUT_WR)
        composed_ns = time.monotonic_ns()
        outcome = standby.finish(
            takeover_s, before_run=before_run, telling=lambda told: mark_telling(image.kept, standby, told))
    running_ns = time.monotonic_ns()
    qmp_path, pid = standby.hand_over()
    image.remove_files()
    if outcome.status != "running":
        told(f"the VM ran here, and its status is now {outcome.status!r}: see to it at {qmp_path}")
    return TakeoverReport(
        checkpoint=committed.number,
        reason=before.reason,
        generation=before.generation,
        detection_ms=max(0, before.detection_ns) / 1e6,
        arbitration_ms=before.arbitration_ns / 1e6,
        settle_ms=before.settle_ns / 1e6,
        compose_ms=(composed_ns - begin_ns) / 1e6,
        load_ms=max(0.0, (running_ns - composed_ns) / 1e6 - outcome.running_ms),
        running_ms=outcome.running_ms,
        total_ms=(running_ns - before.noticed_ns) / 1e6,
        checkpoint_age_ms=(before.noticed_ns - committed.at_ns) / 1e6,
        sent_bytes=sent_bytes,
        shared_blocks=tuple(standby.shared_blocks),
        qmp_path=str(qmp_path),
        pid=pid,
    )
