"""The embedded demo as it is run, killed where it hurts, and (soak) at two hundred random moments."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("unicorn")

from colo.cli import build_parser
from colo.cli.demo.embedded import Demo
from colo.cli.demo.side import KillPoint
from colo.cli.demo.verdict import Verdict, difference
from colo.cli.terminal.output import SessionOutput
from colo.errors import NoCheckpoint, Unsupported, VmError

ROOT = Path(__file__).resolve().parents[3]
KILLS = 200


def arguments(*given: str) -> argparse.Namespace:
    parsed = build_parser().parse_args(["demo", "--json", *given])
    parsed.memory_mib = parsed.memory_mib or 4
    parsed.interval_ms = 30.0 if parsed.interval_ms is None else parsed.interval_ms
    return parsed


def demo(work: Path, *given: str) -> Verdict:
    work.mkdir(exist_ok=True)
    return Demo(arguments(*given), work, SessionOutput(json_lines=True)).run()


def test_the_command_proves_itself_and_tells_json():
    done = subprocess.run(
        [sys.executable, "-m", "colo", "demo", "--seconds", "2", "--memory-mib", "8", "--seed", "4", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    summary = events[-1]["data"]
    assert events[-1]["event"] == "summary"
    assert summary["proved"] and summary["faults"] == [] and summary["lines"] == 42
    assert summary["seed"] == 4 and summary["takeover"]["generation"] == 2


@pytest.mark.parametrize("point", ["deliver:3", "delivered:3", "resume:9", "save:8", "committed:12"])
def test_a_kill_at_this_point_loses_and_doubles_nothing(tmp_path, point):
    verdict = demo(tmp_path, "--seconds", "1", "--kill-at", point)
    assert verdict.proved, verdict.faults
    assert verdict.lines == 22
    if point == "delivered:3":
        assert verdict.repeated_bytes > 0  # it had left, but no later checkpoint knew: said again, and recognised


def test_a_kill_when_all_was_said_takes_an_ended_guest_over(tmp_path):
    verdict = demo(tmp_path, "--seconds", "0.3", "--kill-after", "2.5")
    assert verdict.proved, verdict.faults
    assert verdict.lines_by_primary == verdict.lines == 8


@pytest.mark.parametrize("point", ["connected", "save:1"])
def test_before_the_first_commit_there_is_nothing_to_take_over(tmp_path, point):
    with pytest.raises(NoCheckpoint, match=r"nothing could be taken over: .* bytes, as they should be"):
        demo(tmp_path, "--seconds", "1", "--kill-at", point)


def test_output_that_left_before_its_checkpoint_is_found_out(tmp_path):
    with pytest.raises(VmError, match="output left before its checkpoint was committed"):
        demo(tmp_path, "--seconds", "2", "--kill-at", "pause:3", "--interval-ms", "500", "--no-output-commit")


def test_unicorn_missing_is_told_with_the_command_to_install_it(tmp_path):
    (tmp_path / "unicorn.py").write_text("raise ImportError('not here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "colo", "demo"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 10
    assert "pip install 'colo-vm[demo]'" in done.stderr


def test_an_unknown_tracker_is_refused_by_its_name(tmp_path):
    with pytest.raises(Unsupported, match="no dirty tracker is called 'mirror'"):
        demo(tmp_path, "--seconds", "1", "--tracker", "mirror")


@pytest.mark.parametrize("text", ["sleep:3", "save:x", "save:-1", ""])
def test_a_kill_point_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="no point"):
        KillPoint(text)


def test_the_difference_of_transcripts_names_the_line():
    assert difference(b"a\nb\n", b"a\nc\n") == "line 1 is 'b', not 'c'"
    assert difference(b"a\n", b"a\nc\n") == "line 1 is '', not 'c'"
    assert difference(b"", b"") == "0 lines instead of 0"


@pytest.mark.soak
def test_the_primary_killed_at_200_random_moments_loses_and_doubles_nothing(tmp_path, capsys):
    seed = int(os.environ.get("COLO_SOAK_SEED", random.SystemRandom().randrange(1 << 32)))
    kills = int(os.environ.get("COLO_SOAK_KILLS", KILLS))
    chance = random.Random(seed)
    taken_over = nothing = repeated = 0
    for n in range(kills):
        after_s = chance.uniform(0.0, 1.2)
        options = ["--seconds", "0.8", "--kill-after", f"{after_s:.6f}", "--seed", str(chance.randrange(1 << 32)),
                   "--interval-ms", str(chance.choice((0, 10, 40))), "--sending", chance.choice(("copy", "direct")),
                   *chance.choice(((), ("--xbzrle",)))]
        with capsys.disabled():
            print(f"kill {n} of seed {seed}: {' '.join(options)}", flush=True)
        try:
            verdict = demo(tmp_path / str(n), *options)
        except NoCheckpoint as error:
            assert "as they should be" in str(error), f"kill {n} of seed {seed}: {error}"
            nothing += 1
            continue
        assert verdict.proved, f"kill {n} of seed {seed}: {verdict.faults}"
        taken_over += 1
        repeated += verdict.repeated_bytes > 0
    with capsys.disabled():
        print(f"{kills} kills: {taken_over} taken over ({repeated} said something again), {nothing} before a checkpoint")
    assert taken_over > kills // 2
