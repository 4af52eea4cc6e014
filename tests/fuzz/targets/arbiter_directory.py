"""What lies in an arbiter's directory: each line of the input is a file's name, with content behind a tab. Nothing found
there may give one generation to two, or move it backwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from colo.errors import ArbitrationError, ArbitrationLost
from colo.session.file_arbiter import FileArbiter


def seeds() -> Iterator[bytes]:
    token = b"0123456789abcdef" * 2
    yield b"generation.0"
    yield b'generation.7\t{"generation": 7, "token": "' + token + b'", "role": "primary"}'
    yield b"claim.3." + token + b"\nother\t[]"
    yield b'created\t{"generation": 0, "token": "' + token + b'"}\nseed.' + token + b"\nprobe.x"
    yield b"generation.00\ngeneration.1"
    yield b"generation.999999999999999"


def fuzz_one(data: bytes) -> None:
    directory = Path(tempfile.mkdtemp(prefix="colo-fuzz-", dir="/dev/shm"))
    try:
        for line in data.split(b"\n")[:8]:
            name, _, content = line.partition(b"\t")
            if not name or b"/" in name or b"\0" in name or name in (b".", b"..") or len(name) > 255:
                continue
            with contextlib.suppress(OSError):
                (directory / os.fsdecode(name)).write_bytes(content)
        try:
            first = FileArbiter(directory, role="primary", create=True)
            second = FileArbiter(directory, role="secondary")
        except ArbitrationError:
            return
        generation = first.current()
        assert generation == second.current() >= 0
        try:
            claim = first.claim(generation)
        except ArbitrationLost:
            raise AssertionError("lost without another") from None
        except (ArbitrationError, ValueError):
            return  # a number past its digits
        assert claim.generation == generation + 1 == second.current()
        try:
            second.claim(generation)
        except ArbitrationLost:
            pass
        else:
            raise AssertionError(f"generation {generation} was given twice")
    finally:
        shutil.rmtree(directory)
