"""The RAM blocks of a QEMU of ours, as its human monitor prints them: compared with a primary's, and with shared files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colo.errors import StandbyError
from colo.qemu.process import QemuProcess

RESIZABLE_PREFIX = "/rom@"
"""Blocks under this name (firmware tables) are grown or shrunk by the incoming stream, up to their total."""


@dataclass(frozen=True)
class RamBlock:
    """One of the stand-by's RAM blocks, as ``info ramblock`` tells it."""

    idstr: str
    used_bytes: int
    total_bytes: int


def ram_blocks(process: QemuProcess) -> list[RamBlock]:
    """Its RAM blocks. Raises StandbyError when it tells them in a form that is not known, QmpError."""
    text = process.qmp.hmp("info ramblock")
    blocks = parse_ramblocks(text)
    if not blocks:
        raise StandbyError(f"QEMU {process.version} answers `info ramblock` in an unknown form: {text[:200]!r}")
    return blocks


_RAMBLOCK = re.compile(
    r"^\s*(\S.*?)\s+\d+\s+[KMG]iB\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)", re.MULTILINE
)


def parse_ramblocks(text: str) -> list[RamBlock]:
    """The blocks in what ``info ramblock`` prints (system/physmem.c:ram_block_format and its successors)."""
    return [RamBlock(found[1], int(found[2], 16), int(found[3], 16)) for found in _RAMBLOCK.finditer(text)]


_REGION = re.compile(r"^(\s*)([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([a-z/]+)\): (.*)$")


def region_offset(tree: str, name: str) -> int | None:
    """The offset of the memory region ``name`` in its container, or None, from ``info mtree``'s text."""
    parents: list[tuple[int, int]] = []
    for line in tree.splitlines():
        found = _REGION.match(line)
        if found is None:
            parents.clear()
            continue
        depth, start, label = len(found[1]), int(found[2], 16), found[5]
        while parents and parents[-1][0] >= depth:
            parents.pop()
        if label in {name, f"/objects/{name}"} or label.startswith(f"{name} ["):
            return start - (parents[-1][1] if parents else 0)
        parents.append((depth, start))
    return None


def block_differences(blocks: Sequence[tuple[str, int]], ours: Mapping[str, RamBlock]) -> list[str]:
    """What differs between a stream's ``blocks`` (idstr, used_length in bytes) and ``ours``, and what to do about it."""
    differences = []
    for idstr, length in blocks:
        block = ours.get(idstr)
        if block is None:
            differences.append(
                f"it has no RAM block {idstr!r} (has: {', '.join(sorted(ours))}): give it the same devices"
            )
        elif length == block.used_bytes or (
            idstr.startswith(RESIZABLE_PREFIX) and length <= block.total_bytes
        ):
            continue
        else:
            differences.append(
                f"its RAM block {idstr!r} has {block.used_bytes} bytes, the primary's {length}: give "
                "it the same -m, firmware and devices"
            )
    known = {idstr for idstr, _length in blocks}
    extra = [name for name, block in ours.items() if name not in known and block.used_bytes]
    if extra:
        differences.append(
            f"it has RAM blocks the primary has not: {', '.join(sorted(extra))}: give it the same devices"
        )
    return differences


def _maps_shared(pid: int | None, device: int, inode: int) -> bool:
    """Whether process ``pid`` maps that file shared and writable (/proc/PID/maps)."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split(maxsplit=5)
        major, minor = (int(number, 16) for number in fields[3].split(":"))
        if int(fields[4]) == inode and os.makedev(major, minor) == device and fields[1].startswith("rw-s"):
            return True
    return False


def sharing_differences(process: QemuProcess, idstr: str, path: Path) -> list[str]:
    """Why the RAM block ``idstr`` is not a map of the file ``path`` that others see too; [] if it is. Raises QmpError."""
    advice = (
        f"give it -object memory-backend-file,id={idstr},share=on,size=…,mem-path={path} as its memory"
    )
    backend = _backends(process).get(idstr)
    if backend is None:
        return [f"its RAM block {idstr} is not in a file: {advice}"]
    if not backend.get("share"):
        return [f"its memory backend {idstr} is not shared: {advice}"]
    try:
        wanted = path.stat()
    except OSError as error:
        return [f"the RAM file {path}: {error.strerror}"]
    if not _maps_shared(process.pid, wanted.st_dev, wanted.st_ino):
        return [f"it does not map {path}: {advice}"]
    return []


def _backends(process: QemuProcess) -> dict[str, dict[str, Any]]:
    """Its memory backends by the name of their RAM block."""
    entries = process.qmp.records("query-memdev")
    backends = {entry.string("id", ""): dict(entry.members) for entry in entries}
    return backends | {f"/objects/{name}": entry for name, entry in backends.items()}


def shared_addresses(process: QemuProcess, blocks: Sequence[RamBlock]) -> dict[str, int]:
    """The address that the MEM_SIZE entry of each shared block must carry under x-ignore-shared.

    QEMU compares it with the memory region's offset in its container (migration/ram.c:parse_ramblock):
    0 for a machine's main memory, the place in the hot-plug window for a DIMM. It does so for every block
    of its own that is shared, whether or not it is in one of our files. Raises StandbyError, QmpError.
    """
    backends = _backends(process)
    shared = [block.idstr for block in blocks if backends.get(block.idstr, {}).get("share")]
    tree = process.qmp.hmp("info mtree")
    addresses = {}
    for idstr in shared:
        address = region_offset(tree, idstr)
        if address is None:
            raise StandbyError(
                f"`info mtree` of QEMU {process.version} does not show the RAM block {idstr}"
            )
        addresses[idstr] = address
    return addresses
