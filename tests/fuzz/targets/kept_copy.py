"""What a RAM directory keeps: the decision record, the description and the redo log of whoever wrote them. Read, it is either a
checkpoint, whole and within its bounds, or refused with StorageError; nothing else, and no file is gone after it was refused."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import struct
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from colo.errors import StorageError
from colo.memory import KeptCopy, RamImage
from colo.memory.decision import RECORD_BYTES, SLOT_BYTES, DecisionRecord, Phase, decode_record, digest, latest
from colo.memory.description import Description, SessionFacts, decode_description
from colo.memory.kept_copy import DECISION, DESCRIPTIONS, DEVICES, LOG
from colo.takeover.kept import kept_status, state_of

PAGE = 4096
BLOCKS = (("pc.ram", 4 * PAGE), ("pc.bios", PAGE))
FILES = (DECISION, DEVICES[0], DESCRIPTIONS[0], *LOG)
"""The input holds these one behind the other, a u32 length before each; what is not there is empty."""
DEVICE = b"device state" * 3


@cache
def directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="colo-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def description() -> bytes:
    session = SessionFacts(standby=("qemu-system-x86_64", "-m", "1"), arbiter="file:/a", vm="vm1", host="h", boot_id="b", pid=1)
    return Description("pc-i440fx-7.2", BLOCKS, session).encode()


def record(text: bytes, **changes: object) -> DecisionRecord:
    base = DecisionRecord(
        7, Phase.REPLAY, 3, 10**18, 2, 0, 0, len(DEVICE), digest(DEVICE), 0, len(text), digest(text), 2, 2 * PAGE + 20, 0, 1)
    return base.next(**changes)


def packed(parts: tuple[bytes, ...]) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def seeds() -> Iterator[bytes]:
    text = description()
    entries = struct.pack("=QQIHH", 0, 17, PAGE, 0, 1) + struct.pack("=QQIHH", PAGE, 0, 2, 0, 0)
    log = bytes(17) + b"\x5a" * PAGE + bytes(PAGE)
    for made in (
        record(text), record(text, phase=Phase.WHOLE, log_records=0, log_bytes=0),
        record(text, lost_generation=2, lost_to="HOST (pid 12, primary)", phase=Phase.WHOLE),
        record(text, phase=Phase.RUNNING, pid=1, pid_start_ticks=5),
    ):
        slots = bytes(SLOT_BYTES) + made.encode() if made.slot_offset else made.encode()
        yield packed((slots, DEVICE, text, log, entries, b""))


def unpacked(data: bytes) -> dict[str, bytes]:
    parts = {}
    for name in FILES:
        length = min(int.from_bytes(data[:4], "big"), 1 << 20)
        parts[name], data = data[4 : 4 + length], data[4 + length :]
    return parts


def signed(data: bytes) -> bytes:
    """The slots with digests that fit: what is behind them is to be reached too."""
    data = data.ljust(SLOT_BYTES + RECORD_BYTES, b"\0")
    for at in (0, SLOT_BYTES):
        body = data[at : at + RECORD_BYTES - 16]
        data = data[:at] + body + digest(body) + data[at + RECORD_BYTES :]
    return data


def fuzz_one(data: bytes) -> None:
    parts = unpacked(data)
    if (found := decode_record(parts[DECISION])) is not None:
        assert decode_record(found.encode()) is not None
    try:
        said = decode_description(parts[DESCRIPTIONS[0]])
    except StorageError:
        said = None
    if said is not None:
        assert decode_description(said.encode()) == said
    # Both as it is, and with every digest made to fit.
    look(parts)
    first = latest(signed(parts[DECISION]))
    if first is not None:
        first = first.next(
            device_slot=0, description_slot=0, image_set=0, device_bytes=len(parts[DEVICES[0]]),
            device_digest=digest(parts[DEVICES[0]]), description_bytes=len(parts[DESCRIPTIONS[0]]),
            description_digest=digest(parts[DESCRIPTIONS[0]]))
        look({**parts, DECISION: bytes(first.slot_offset) + first.encode()})


def look(parts: dict[str, bytes]) -> None:
    top = directory()
    shutil.rmtree(top)
    (top / "copy").mkdir(mode=0o700, parents=True)
    top.chmod(0o700)
    (top / "blocks").mkdir(mode=0o700)
    for name, part in parts.items():
        (top / "copy" / name).write_bytes(part)
    for name, length in BLOCKS:
        (top / "blocks" / name).write_bytes(bytes(length))
    try:
        kept_status(top)
        with contextlib.closing(KeptCopy(top)) as kept:
            if kept.record is not None:
                assert state_of(kept)[1].isprintable()
                assert kept.note()
                kept.device_state()
    except StorageError:
        pass
    try:
        with RamImage(top, max_ram_bytes=1 << 20) as image:
            if image.kept.record is None:
                return
            assert image.total_bytes == image.kept.description.total_bytes  # type: ignore[union-attr]
            for block in image.blocks:
                assert image.path(block.idstr).stat().st_size >= block.used_length
    except StorageError:
        for name in FILES:
            assert (top / "copy" / name).exists()
