"""What lies in an arbiter's directory: each line of the input is a file's name, with content behind a tab. Nothing found
there may give one generation to two, or move it backwards, or reach a terminal as it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from colo.arbiter import directory, file_arbiter
from colo.arbiter.directory import IDENTITY
from colo.arbiter.file_arbiter import FileArbiter
from colo.arbiter.file_making import make_file_arbiter
from colo.errors import ArbitrationError, ArbitrationLost

# Nobody renames anything meanwhile: a second look is the same.
directory.LOOKS = 1
file_arbiter.RECORD_WAIT_S = 0.0

INODE = b"INODE"
"""Stands in an identity for the number of the file that it is put into, so that it is no copy."""


def seeds() -> Iterator[bytes]:
    token = b"0123456789abcdef" * 2
    identity = (
        b'identity\t{"id": "' + token + b'", "vm": "vm1", "uuid": "", "token": "' + token + b'", "inode": ' + INODE + b"}\n")
    yield b"generation.0"
    yield identity + b"seed." + token
    yield identity + b'generation.7\t{"generation": 7, "token": "' + token + (
        b'", "role": "primary", "since": 1.5, "reason": "r", "closed": false, "host": "a", "boot_id": "b", "machine": "", '
        b'"pid": 12, "start_ticks": 3, "pid_namespace": 0}')
    yield identity + b"claim.3." + token + b"\nother\t[]"
    yield b'created\t{"generation": 0, "token": "' + token + b'"}\nseed.' + token + b"\nprobe.x"
    yield b"generation.00\ngeneration.1"
    yield identity + b"generation.999999999999999"


def fuzz_one(data: bytes) -> None:
    place = Path(tempfile.mkdtemp(prefix="colo-fuzz-", dir="/dev/shm"))
    try:
        for line in data.split(b"\n")[:8]:
            name, _, content = line.partition(b"\t")
            if not name or b"/" in name or b"\0" in name or name in (b".", b"..") or len(name) > 255:
                continue
            with contextlib.suppress(OSError):
                path = place / os.fsdecode(name)
                path.touch(mode=0o600)
                path.write_bytes(content.replace(INODE, b"%d" % path.stat().st_ino))
        judge(place)
    finally:
        shutil.rmtree(place)


def judge(place: Path) -> None:
    try:
        with contextlib.suppress(ArbitrationError):
            made = make_file_arbiter(place, vm="vm1")
            assert made.vm == "vm1" and (place / IDENTITY).exists()
        first = FileArbiter(place, role="primary")
        second = FileArbiter(place, role="secondary")
    except ArbitrationError:
        return
    assert first.identity == second.identity
    generation = first.current()
    holder = second.holder()
    assert generation == second.current() == holder.generation >= 0
    assert holder.describe().isprintable() and holder.reason.isprintable()
    try:
        claim = first.claim(generation)
    except ArbitrationLost:
        assert holder.closed, "lost without another"
        return
    except (ArbitrationError, ValueError):
        return  # a number past its digits
    assert claim.generation == generation + 1 == second.current()
    assert second.holder().runner == claim.runner
    try:
        second.claim(generation)
    except ArbitrationLost:
        pass
    else:
        raise AssertionError(f"generation {generation} was given twice")
