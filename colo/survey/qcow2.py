"""The VM state of a qcow2 image's internal snapshots (``savevm``, ``snapshot-save``): a migration stream.

The state lies behind the disk's last byte in the snapshot's own mapping: level-1 table to level-2 tables to
clusters. Layout: QEMU's docs/interop/qcow2.rst.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from colo.errors import LimitExceeded, StreamError

MAGIC = b"QFI\xfb"
SNAPSHOTS_MAX = 65_536
SNAPSHOT_TABLE_BYTES_MAX = 64 << 20
L1_BYTES_MAX = 32 << 20
NAME_SHOWN = 255
EXTRA_BYTES_MAX = 1024
_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1
_EXTENDED_L2 = 1 << 4
_EXTERNAL_DATA = 1 << 2
_KNOWN_INCOMPATIBLE = 0b11111
"""Dirty, corrupt, external data file, compression type, extended L2."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An internal snapshot. ``state_bytes`` is 0 where it has no VM state."""

    id: str
    name: str
    date_s: int
    state_bytes: int
    l1_offset: int
    l1_entries: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Qcow2:
    """What of an image's header is needed here."""

    fd: int
    file_bytes: int
    cluster_bits: int
    disk_bytes: int
    extended_l2: bool
    snapshots: tuple[Snapshot, ...]

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits


def read_qcow2(fd: int) -> Qcow2:
    """The image's header and its snapshots. ``fd`` must be a file or block device that can be sought in.

    Raises StreamError for what is not served (encryption, an external data file, a pipe) and for numbers that cannot
    be; LimitExceeded for more snapshots than are read.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise _error("a qcow2 image is read here and there: give the file itself, not a pipe", 0)
    size = os.lseek(fd, 0, os.SEEK_END)
    head = _read(fd, 0, 112, size, short=True)
    if not head.startswith(MAGIC) or len(head) < 72:
        raise _error("no qcow2 header", 0)
    number = int.from_bytes
    version, cluster_bits = number(head[4:8], "big"), number(head[20:24], "big")
    if version not in (2, 3):
        raise _error(f"qcow2 version {version}; 2 and 3 are known", 4, version)
    if not 9 <= cluster_bits <= 21:
        raise _error(f"clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 can be", 20, cluster_bits)
    if number(head[32:36], "big"):
        raise _error("the image is encrypted: load the snapshot in its VM and migrate it to a file", 32)
    incompatible = number(head[72:80], "big") if version == 3 and len(head) >= 80 else 0
    if incompatible & ~_KNOWN_INCOMPATIBLE:
        raise _error(f"incompatible features {incompatible:#x} are not known", 72, incompatible)
    if incompatible & _EXTERNAL_DATA:
        raise _error("the image keeps its data in another file, which is not served", 72, incompatible)
    count, at = number(head[60:64], "big"), number(head[64:72], "big")
    if count > SNAPSHOTS_MAX:
        raise LimitExceeded(
            f"{count} snapshots, at most {SNAPSHOTS_MAX} are read", where="qcow2", offset=60, value=count
        )
    disk_bytes = number(head[24:32], "big")
    extended = bool(incompatible & _EXTENDED_L2)
    return Qcow2(fd, size, cluster_bits, disk_bytes, extended, tuple(_snapshots(fd, size, at, count, disk_bytes)))


def _snapshots(fd: int, size: int, at: int, count: int, disk_bytes: int) -> Iterator[Snapshot]:
    number = int.from_bytes
    begin = at
    for _ in range(count):
        if at - begin > SNAPSHOT_TABLE_BYTES_MAX:
            raise LimitExceeded(
                f"a table of snapshots of more than {SNAPSHOT_TABLE_BYTES_MAX} bytes",
                where="qcow2",
                offset=at,
                value=at - begin,
            )
        head = _read(fd, at, 40, size)
        id_bytes, name_bytes = number(head[12:14], "big"), number(head[14:16], "big")
        extra_bytes = number(head[36:40], "big")
        if extra_bytes > EXTRA_BYTES_MAX:
            raise _error(f"a snapshot with {extra_bytes} bytes of extra data; {EXTRA_BYTES_MAX} can be", at + 36, extra_bytes)
        rest = _read(fd, at + 40, extra_bytes + id_bytes + name_bytes, size)
        state_bytes = number(rest[:8], "big") if extra_bytes >= 8 else number(head[32:36], "big")
        disk = number(rest[8:16], "big") if extra_bytes >= 16 else disk_bytes
        yield Snapshot(
            _text(rest[extra_bytes : extra_bytes + id_bytes]),
            _text(rest[extra_bytes + id_bytes :]),
            number(head[16:20], "big"),
            state_bytes,
            number(head[:8], "big"),
            number(head[8:12], "big"),
            disk,
        )
        at += -(-(40 + len(rest)) // 8) * 8


def vm_state(image: Qcow2, snapshot: Snapshot) -> Iterator[bytes]:
    """The bytes of the snapshot's VM state, a cluster at a time; what was never written reads as zeros. Raises
    StreamError for tables that lie outside the file, and compressed clusters."""
    cluster = image.cluster_bytes
    entry_bytes = 16 if image.extended_l2 else 8
    per_table = cluster // entry_bytes
    span = cluster * per_table
    if snapshot.l1_entries * 8 > L1_BYTES_MAX:
        raise LimitExceeded(
            f"a level-1 table of {snapshot.l1_entries} entries, at most {L1_BYTES_MAX // 8} are read",
            where="qcow2",
            value=snapshot.l1_entries,
        )
    if snapshot.state_bytes > image.file_bytes:
        raise _error(
            f"a VM state of {snapshot.state_bytes} bytes in a file of {image.file_bytes}", 0, snapshot.state_bytes
        )
    l1 = _read(image.fd, snapshot.l1_offset, snapshot.l1_entries * 8, image.file_bytes)
    first = -(-snapshot.disk_bytes // span)
    left = snapshot.state_bytes
    for index in range(first, snapshot.l1_entries):
        table_at = int.from_bytes(l1[8 * index : 8 * index + 8], "big") & _OFFSET_MASK
        table = _read(image.fd, table_at, cluster, image.file_bytes) if table_at else bytes(cluster)
        for i in range(per_table):
            if left <= 0:
                return
            entry = int.from_bytes(table[i * entry_bytes : i * entry_bytes + 8], "big")
            if entry & _COMPRESSED:
                raise _error("the VM state lies in compressed clusters, which is not served", table_at + i * entry_bytes)
            data_at = entry & _OFFSET_MASK
            here = min(left, cluster)
            zero = not data_at or (entry & _ZERO and not image.extended_l2)
            yield bytes(here) if zero else _read(image.fd, data_at, here, image.file_bytes)
            left -= here
    if left > 0:
        raise _error(
            f"the VM state has {snapshot.state_bytes} bytes, and the snapshot's table ends {left} bytes before", 0, left
        )


def _read(fd: int, at: int, count: int, size: int, *, short: bool = False) -> bytes:
    """``count`` bytes at ``at``, which must lie in the file: checked before they are read."""
    if not 0 <= at <= size or (at + count > size and not short):
        raise _error(f"{count} bytes at {at:#x} lie outside the file ({size} bytes)", min(at, size), at)
    data = b""
    while len(data) < count and (more := os.pread(fd, count - len(data), at + len(data))):
        data += more
    if len(data) < count and not short:
        raise _error(f"only {len(data)} of {count} bytes at {at:#x} could be read", at, at)
    return data


def _text(raw: bytes) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in raw[:NAME_SHOWN].decode(errors="replace"))


def _error(text: str, offset: int, value: object = None) -> StreamError:
    return StreamError(text, where="qcow2", offset=offset, value=value)
