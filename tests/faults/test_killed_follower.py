"""A secondary's process is killed with SIGKILL at any moment: staging, committing, replaying. What it leaves is one checkpoint,
whole: the last that it acknowledged, or the one after it."""

from __future__ import annotations

import multiprocessing
import random
import socket
import threading
from pathlib import Path

import pytest

from benchmarks.scripted_primary import PAGE_BYTES, ScriptedPrimary
from colo.errors import ColoError
from colo.memory import KeptCopy, Phase, RamImage
from tests.faults.killed_follower import follow

np = pytest.importorskip("numpy")
PAGES = 512
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.faults.killed_follower"])


def killed_once(directory: Path, seed: int) -> Phase:
    """One process's life and death under checkpoints; whether its log was being replayed then."""
    rng = random.Random(seed)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = CONTEXT.Process(target=follow, args=(listener, str(directory)), daemon=True)
        process.start()
        primary = ScriptedPrimary(listener.getsockname(), PAGES * PAGE_BYTES, seed=seed)
    timer = threading.Timer(rng.random() ** 2 * 0.1, process.kill)
    states = {0: primary.ram.tobytes()}
    acknowledged = 0
    timer.start()
    try:
        while True:
            bitmap = primary.change(rng.choice((3, 50, 400)))
            states[acknowledged + 1] = primary.ram.tobytes()
            states.pop(acknowledged - 1, None)
            primary.checkpoint(bitmap)
            acknowledged += 1
    except (OSError, RuntimeError, ColoError):
        pass  # it is dead
    finally:
        timer.join()
        process.join(10)
        primary.close()
    assert process.exitcode == -9
    left = KeptCopy(directory).record
    assert left is not None, f"seed {seed}: nothing was left"
    for _ in range(2):  # whoever opens it, and who comes after
        with RamImage(directory) as image:
            record = image.kept.record
            assert record is not None
            assert record.checkpoint in (acknowledged, acknowledged + 1), (seed, record.checkpoint, acknowledged)
            found = image.path("pc.ram").read_bytes()
            assert found == states[record.checkpoint], (seed, record.checkpoint, acknowledged)
            image.kept.device_state()
    with RamImage(directory, discard=True):
        pass
    return left.phase


@pytest.mark.parametrize("first", range(0, 24, 8))
def test_a_follower_killed_at_any_moment_leaves_one_checkpoint_whole(run_dir: Path, first: int) -> None:
    for seed in range(first, first + 8):
        killed_once(run_dir / "ram", seed)


@pytest.mark.soak
def test_a_follower_killed_very_often(run_dir: Path) -> None:
    phases = [killed_once(run_dir / "ram", seed) for seed in range(1000, 2000)]
    assert {Phase.WHOLE, Phase.REPLAY} <= set(phases)
