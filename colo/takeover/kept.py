"""A committed checkpoint that outlives its session: what may be done with it, what is put down and what is said of it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo.arbiter import Arbiter, ArbiterIdentity
from colo.epoch.committed import Committed
from colo.errors import ArbitrationError, StandbyError, StorageError, StreamError
from colo.memory import KeptCopy, Phase, RamImage
from colo.memory.description import boot_id, start_ticks
from colo.qemu.standby import Standby
from colo.stream import Configuration, RamBlockInfo

RESIZABLE_PREFIX = "/rom@"


def recovered(image: RamImage) -> Committed:
    """The committed checkpoint of an earlier session, as ``image`` has it. Raises StorageError."""
    record, description = image.kept.record, image.kept.description
    assert record is not None and description is not None
    age_ns = max(0, time.time_ns() - record.committed_at_ns)
    return Committed(
        record.checkpoint, Configuration(0, description.machine), record.ram_section_id, image.kept.device_state(),
        tuple(image.blocks), time.monotonic_ns() - age_ns)


def block_infos(kept: KeptCopy) -> list[RamBlockInfo]:
    """Its RAM blocks, in the stream's order."""
    assert kept.description is not None
    return [RamBlockInfo(idstr, length) for idstr, length in kept.description.blocks]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a recovered copy stands at the arbiter. ``generation``: the one to claim from. ``eager``: this side had won it,
    and did not come to run the VM: nobody does. ``lost_to``: who holds ``lost_generation``, a later one; "", -1: nobody."""

    generation: int
    eager: bool = False
    lost_generation: int = -1
    lost_to: str = ""


def standing(kept: KeptCopy, arbiter: Arbiter) -> Standing:
    """Ask the arbiter where the copy stands. Raises ArbitrationError when it cannot be told."""
    record = kept.record
    assert record is not None
    holder = arbiter.holder()
    if record.generation < 0:
        return Standing(holder.generation)
    if arbiter.identity is None or holder.generation <= record.generation:
        return Standing(max(record.generation, holder.generation), eager=record.won)
    if holder.role == "secondary" and holder.runner is not None and holder.runner.alive() is False:
        # A secondary of this host won it, and ended before it could put that down here.
        return Standing(holder.generation, eager=True)
    return Standing(record.generation, lost_generation=holder.generation, lost_to=holder.describe())


def take_in(kept: KeptCopy, arbiter: Arbiter | None, uri: str) -> Standing | None:
    """Where the copy that an earlier session left stands, which is put down with it; None: it left none. ``uri``: the
    arbiter's. Raises StorageError, ArbitrationError."""
    if kept.record is None:
        return None
    check_arbiter(kept, uri, arbiter.identity if arbiter is not None else None)
    if arbiter is None:
        return Standing(kept.record.generation)
    found = standing(kept, arbiter)
    if found.lost_to:
        kept.change(lost_generation=found.lost_generation, lost_to=found.lost_to)
    return found


def check_arbiter(kept: KeptCopy, uri: str, identity: ArbiterIdentity | None) -> None:
    """A copy of one VM is not taken over by another's arbiter. Raises StorageError."""
    description = kept.description
    assert description is not None
    session = description.session
    if not uri or not session.arbiter:
        return
    found = identity.id if identity is not None else ""
    same = session.arbiter_id == found if session.arbiter_id and found else session.arbiter == uri
    if not same:
        raise StorageError(
            f"{kept.directory} holds {describe(kept)}, whose arbiter is {session.arbiter}"
            f"{f' (VM {session.vm})' if session.vm else ''}, not {uri}: give it that one and --ram-dir another directory, or "
            "--discard deletes the checkpoint")


def check_same_vm(kept: KeptCopy, configuration: Configuration, blocks: Sequence[RamBlockInfo]) -> None:
    """A primary may take a held copy's place only with the same VM. Raises StreamError."""
    description = kept.description
    assert description is not None
    here = {idstr: length for idstr, length in description.blocks if not idstr.startswith(RESIZABLE_PREFIX)}
    there = {block.idstr: block.used_length for block in blocks if not block.idstr.startswith(RESIZABLE_PREFIX)}
    if description.machine != configuration.machine or here != there:
        raise StreamError(
            f"this side holds {describe(kept)}, and the primary sends another VM ({configuration.machine}, "
            f"{sum(there.values()) >> 20} MiB): end this session and start it with --discard, or with another --ram-dir",
            where="ram MEM_SIZE", value=configuration.machine)


def describe(kept: KeptCopy) -> str:
    """``checkpoint 57 of vm1 (pc-i440fx-7.2, 512 MiB) of 2026-11-25 10:00:00 UTC``."""
    record, description = kept.record, kept.description
    assert record is not None and description is not None
    vm = f"{description.session.vm} (" if description.session.vm else "a VM ("
    return (f"checkpoint {record.checkpoint} of {vm}{description.machine}, {description.total_bytes >> 20} MiB) of "
            f"{when(record.committed_at_ns)}")


def when(at_ns: int) -> str:
    """A Unix time for people."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_ns / 1e9))
    return "no date"


def standby_alive(kept: KeptCopy) -> bool:
    """Whether the stand-by that the record names still runs here."""
    record, description = kept.record, kept.description
    if record is None or description is None or record.phase not in (Phase.LOADED, Phase.RUNNING) or not record.pid:
        return False
    return description.session.boot_id == boot_id() and start_ticks(record.pid) == record.pid_start_ticks


def state_of(kept: KeptCopy) -> tuple[str, str]:
    """A word for what the directory of a session that is over holds, and a sentence."""
    record = kept.record
    assert record is not None
    where = kept.directory
    if record.phase is Phase.RUNNING and standby_alive(kept):
        return "running", f"the VM was told to run from it, and its process {record.pid} is there: it is its memory now"
    if record.phase is Phase.RUNNING:
        return "used", (f"a VM was told to run from it (pid {record.pid}) and has ended: its memory is of no one instant any "
                        f"more; `colo discard {where}` frees it")
    if record.lost_generation >= 0:
        return "stale", (f"the other side holds generation {record.lost_generation}"
                         f"{f' ({record.lost_to})' if record.lost_to else ''}, this is checkpoint {record.checkpoint} of "
                         f"generation {record.generation}; `colo secondary` with the arguments of then waits for its "
                         f"primary, `colo discard {where}` frees it")
    return "held", f"`colo failover --dir {where}` runs it, if its arbiter lets it; `colo discard {where}` deletes it"


def mark_lost(kept: KeptCopy, arbiter: Arbiter, generation: int, why: str) -> str:
    """Put down that the other side holds a later generation than ``generation``; who does, in words."""
    lost_generation, lost_to = generation + 1, why
    with contextlib.suppress(ArbitrationError):
        holder = arbiter.holder()
        if holder.generation > generation:
            lost_generation, lost_to = holder.generation, holder.describe()
    if kept.record is not None:
        with contextlib.suppress(StorageError):
            kept.change(lost_generation=lost_generation, lost_to=lost_to, won=False)
    return lost_to


def mark_telling(kept: KeptCopy, standby: Standby, told: bool) -> None:
    """Put down that the stand-by is told to run, before it is; or that it refused. From the first on it outlives this
    process: it may be the VM. Raises StorageError."""
    pid = standby.process.pid
    assert pid is not None
    if told:
        kept.change(
            phase=Phase.RUNNING, pid=pid, pid_start_ticks=start_ticks(pid) or 0, standby_number=int(standby.work_dir.name))
        standby.process.release()
    else:
        standby.process.retain()
        kept.change(phase=Phase.LOADED)


def mark_untouched(kept: KeptCopy) -> None:
    """The stand-by is gone, and has not run. Raises StorageError."""
    if kept.record is not None and kept.record.phase in (Phase.LOADED, Phase.RUNNING):
        kept.change(phase=Phase.WHOLE, pid=0, pid_start_ticks=0)


def in_doubt(standby: Standby, committed: Committed, error: BaseException) -> StandbyError:
    """The stand-by was told to run, and did not answer. If it lives it is left as it is: it may be the VM, running."""
    if standby.alive:
        path, pid = standby.hand_over()
        return StandbyError(
            f"{error}; it was told to run checkpoint {committed.number} and may do so: it is left as it is, nothing else is "
            f"started beside it. See to it at {path}, or end its process {pid}")
    standby.close()
    return StandbyError(
        f"{error}; it may have run and changed the RAM it shares, so checkpoint {committed.number} cannot be loaded again")


def kept_status(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What ``colo status --dir`` shows where no session answers; None if no checkpoint is there. Raises StorageError."""
    if not Path(directory).is_dir():
        return None
    with KeptCopy(Path(directory)) as kept:
        return _status_of(kept)


def _status_of(kept: KeptCopy) -> dict[str, Any] | None:
    record, description = kept.record, kept.description
    if record is None or description is None:
        return None
    state, text = state_of(kept)
    session = description.session
    return {
        "state": state,
        "text": text,
        "vm": session.vm or None,
        "uuid": session.uuid or None,
        "checkpoint": record.checkpoint,
        "committed_at": when(record.committed_at_ns),
        "checkpoint_age_ms": round(max(0, time.time_ns() - record.committed_at_ns) / 1e6, 1),
        "machine": description.machine,
        "ram_bytes": description.total_bytes,
        "ram_blocks": dict(description.blocks),
        "directory_bytes": directory_bytes(kept.directory),
        "device_bytes": record.device_bytes,
        "replay": record.phase is Phase.REPLAY,
        "generation": record.generation if record.generation >= 0 else None,
        "won": record.won,
        "lost_generation": record.lost_generation if record.lost_generation >= 0 else None,
        "lost_to": record.lost_to or None,
        "arbiter": session.arbiter or None,
        "arbiter_id": session.arbiter_id or None,
        "standby": list(session.standby) if session.standby else None,
        "standby_pid": record.pid or None,
        "session": {"host": session.host, "pid": session.pid, "listen": session.listen, "alive": session.alive},
    }


def directory_bytes(directory: Path) -> int:
    """What all files in the directory take."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def farewell(image: RamImage) -> str:
    """What is said when a session ends and leaves a checkpoint; "" if it leaves none."""
    if image.kept.record is None:
        return ""
    return (f"{image.directory} holds {describe(image.kept)}: {directory_bytes(image.directory) >> 20} MiB; "
            f"{state_of(image.kept)[1]}")
