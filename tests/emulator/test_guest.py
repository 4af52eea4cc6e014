"""The guest: its bytes are those of its source, and it prints what Python computes."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("unicorn")

from hypothesis import given, settings
from hypothesis import strategies as st

from colo.emulator import EmbeddedVm, Walk

GUEST = Path(str(files("colo.emulator.guest")))
ASSEMBLER = "as" if platform.machine() == "aarch64" else "aarch64-linux-gnu-as"


def printed_by(walk: Walk, ram_bytes: int) -> bytes:
    """All in the calling thread."""
    vm = EmbeddedVm(ram_bytes)
    try:
        walk.load_into(vm)
        said = bytearray()
        vm.console.output = lambda position, data: said.extend(data)
        while vm.step():
            pass
        return bytes(said)
    finally:
        vm.close()


@pytest.mark.skipif(shutil.which(ASSEMBLER) is None, reason=f"{ASSEMBLER} is not installed")
def test_the_committed_program_is_what_the_assembler_makes_of_its_source(tmp_path):
    subprocess.run([GUEST / "build", tmp_path], check=True)
    assert (tmp_path / "walk.bin").read_bytes() == (GUEST / "walk.bin").read_bytes()


@settings(max_examples=15)
@given(
    pages=st.integers(1, 240), lines=st.integers(1, 4), steps_per_tick=st.integers(1, 60), ticks_per_line=st.integers(1, 3),
    seed=st.integers(0, (1 << 64) - 1),
)
def test_it_prints_what_python_computes(pages, lines, steps_per_tick, ticks_per_line, seed):
    walk = Walk(pages, lines, steps_per_tick, ticks_per_line, seed)
    assert printed_by(walk, 1 << 20) == b"".join(walk.expected())


def test_the_lines_are_those_that_were_seen_once():
    """Both could be wrong together by one mistake in what was meant: these were worked out by neither today."""
    lines = list(Walk(pages=16368, lines=5, seed=7).expected())
    assert lines[0] == b"walk over 00016368 pages, seed 0000000000000007\n"
    assert lines[3] == b"line 000003 step 0000003000 hash 55106b95a87a97cf sum 8d81b1a512be22a7\n"
    assert lines[-1] == b"done\n" and len(lines) == 7


@pytest.mark.parametrize("name", ["pages", "lines", "steps_per_tick", "ticks_per_line"])
def test_a_walk_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=name):
        Walk(**{"pages": 1, "lines": 1, name: 0})


def test_a_walk_that_does_not_fit_is_refused():
    vm = EmbeddedVm(1 << 20)
    with pytest.raises(ValueError, match="do not fit"):
        Walk(pages=241, lines=1).load_into(vm)
    vm.close()
