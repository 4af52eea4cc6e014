"""The decision record: which checkpoint in a RAM directory is committed, and where each part of it lies.

A checkpoint's pages, redo log and device state are written where the committed one has nothing; then one write of one
record decides. The record's file has two slots, written in turn and numbered: a write that was cut short fails its digest,
and the one before it counts. Nothing is synchronised to a disk: the files outlive the process, not the machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

from colo._fast.kernels.digest import StreamDigest

MAGIC = b"COLOcopy"
VERSION = 1
RECORD_BYTES = 512
SLOT_BYTES = 4096
"""Between the slots' beginnings: each has a page of its own."""
DIGEST_BYTES = 16
TEXT_MAX_BYTES = 160

_FIELDS = struct.Struct(">8sIBBBBB3xQQQIQ16sQ16sQQQqqIQIH")
_TEXT_AT = _FIELDS.size
assert _TEXT_AT + TEXT_MAX_BYTES <= RECORD_BYTES - DIGEST_BYTES
U32, U63 = 2**32 - 1, 2**63 - 1


class Phase(IntEnum):
    """What stands between the files and the checkpoint that they hold."""

    WHOLE = 1
    """Nothing: the image is the checkpoint."""
    REPLAY = 2
    """The redo log, which may not be wholly in the image yet. Replaying it again changes nothing."""
    LOADED = 3
    """A stand-by (:attr:`DecisionRecord.pid`) has loaded it, and was not told to run, or refused to: the image is whole."""
    RUNNING = 4
    """The stand-by was told to run: the image is its memory now."""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """Everything that is decided at once. Sizes in bytes; slots and sets are 0 or 1."""

    sequence: int
    phase: Phase
    checkpoint: int
    committed_at_ns: int
    """Unix time."""
    ram_section_id: int
    image_set: int
    device_slot: int
    device_bytes: int
    device_digest: bytes
    description_slot: int
    description_bytes: int
    description_digest: bytes
    log_records: int = 0
    log_bytes: int = 0
    pages_bytes: int = 0
    generation: int = -1
    """The one that the VM ran in, or, when :attr:`won`, that this side holds; -1: not known."""
    won: bool = False
    """This side won :attr:`generation`, to run the checkpoint."""
    lost_generation: int = -1
    """The other side holds this one: the checkpoint is of a VM that went on elsewhere; -1: not so."""
    lost_to: str = ""
    """Who, in words."""
    pid: int = 0
    """The stand-by's process, in LOADED and RUNNING."""
    pid_start_ticks: int = 0
    standby_number: int = 0
    """Its directory's number among those of the set's stand-bys."""

    def next(self, **changes: object) -> Self:
        """The record that follows, with ``changes``."""
        return replace(self, sequence=self.sequence + 1, **changes)  # type: ignore[arg-type]

    @property
    def slot_offset(self) -> int:
        """Where in the file it goes."""
        return self.sequence % 2 * SLOT_BYTES

    def encode(self) -> bytes:
        """The slot's bytes."""
        text = cut_text(self.lost_to)
        head = _FIELDS.pack(
            MAGIC, VERSION, self.phase, self.image_set, self.device_slot, self.description_slot, self.won, self.sequence,
            self.checkpoint, self.committed_at_ns, self.ram_section_id, self.device_bytes, self.device_digest,
            self.description_bytes, self.description_digest, self.log_records, self.log_bytes, self.pages_bytes,
            self.generation, self.lost_generation, self.pid, self.pid_start_ticks, self.standby_number, len(text),
        )
        body = (head + text).ljust(RECORD_BYTES - DIGEST_BYTES, b"\0")
        return body + digest(body)


def decode_record(data: bytes) -> DecisionRecord | None:
    """The record in a slot's bytes; None if there is no whole one."""
    body, found = data[: RECORD_BYTES - DIGEST_BYTES], data[RECORD_BYTES - DIGEST_BYTES : RECORD_BYTES]
    if len(data) < RECORD_BYTES or digest(body) != found:
        return None
    (
        magic, version, phase, image_set, device_slot, description_slot, won, sequence, checkpoint, committed_at_ns,
        section_id, device_bytes, device_digest, description_bytes, description_digest, log_records, log_bytes, pages_bytes,
        generation, lost_generation, pid, start_ticks, standby_number, text_bytes,
    ) = _FIELDS.unpack_from(body)
    if magic != MAGIC or version != VERSION or max(image_set, device_slot, description_slot, won) > 1:
        return None
    if phase not in Phase.__members__.values() or text_bytes > TEXT_MAX_BYTES or min(generation, lost_generation) < -1:
        return None
    if max(sequence, checkpoint, committed_at_ns, device_bytes, description_bytes, log_records, log_bytes, pages_bytes) > U63:
        return None
    text = body[_TEXT_AT : _TEXT_AT + text_bytes].decode(errors="replace")
    return DecisionRecord(
        sequence, Phase(phase), checkpoint, committed_at_ns, section_id, image_set, device_slot, device_bytes, device_digest,
        description_slot, description_bytes, description_digest, log_records, log_bytes, pages_bytes, generation, bool(won),
        lost_generation, text if text.isprintable() else ascii(text), pid, start_ticks, standby_number,
    )


def latest(data: bytes) -> DecisionRecord | None:
    """The record that counts, of a file's bytes: the later one of the slots that are whole; None if neither is."""
    found = [decode_record(data[at : at + RECORD_BYTES]) for at in (0, SLOT_BYTES)]
    return max((record for record in found if record is not None), key=lambda record: record.sequence, default=None)


def digest(data: bytes) -> bytes:
    """Finds damage, not deceit."""
    running = StreamDigest()
    running.update(data)
    return running.value.to_bytes(DIGEST_BYTES, "big")


def cut_text(text: str) -> bytes:
    """At most :data:`TEXT_MAX_BYTES` of it, in whole characters."""
    return text.encode(errors="replace")[:TEXT_MAX_BYTES].decode(errors="ignore").encode()
