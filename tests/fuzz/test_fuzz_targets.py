"""Every fuzz target holds on its seeds and on damaged ones: a short look, without the fuzzer."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
_LOADER = importlib.machinery.SourceFileLoader("fuzz_run", str(HERE / "run"))
_SPEC = importlib.util.spec_from_loader("fuzz_run", _LOADER)
runner = importlib.util.module_from_spec(_SPEC)
_LOADER.exec_module(runner)


def damaged(seed: bytes, rng: random.Random) -> bytes:
    """``seed`` with a few bytes changed, repeated, left out, or cut off."""
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:at] = rng.choice((b"\0", b"\xff", b"\x7e", b"\xff" * 8, bytes(8), b"\x04\0\0\0\3"))
        elif kind == 2:
            del data[at : at + rng.choice((1, 4, 8, 100))]
        elif kind == 3:
            data[at:at] = data[at : at + rng.choice((1, 5, 20, 300))]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def look(name: str, rounds: int) -> None:
    target = runner.load(name)
    rng = random.Random(name)
    target.fuzz_one(b"")
    for seed in getattr(target, "seeds", tuple)():
        target.fuzz_one(seed)
        for _ in range(rounds):
            target.fuzz_one(damaged(seed, rng))


def test_targets_are_found():
    assert {"migration_stream", "colo_channel", "device_state", "vmdesc", "ram_block_list", "lease_connection"} <= set(
        runner.TARGETS
    )


@pytest.mark.parametrize("name", runner.TARGETS)
def test_target_holds_on_damaged_seeds(name):
    look(name, 40)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", runner.TARGETS)
def test_target_holds_on_many_damaged_seeds(name):
    look(name, 3000)
