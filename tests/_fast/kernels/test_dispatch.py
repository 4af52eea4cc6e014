"""The SIMD level is picked at import, and COLO_SIMD overrides it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from colo._fast.kernels import kernels

ASK = "from colo._fast.kernels import kernels; print(kernels.active_level())"
BASE = {"x86_64": ("portable", "sse2"), "aarch64": ("portable", "neon")}


def level_with(value: str | None) -> tuple[str, str]:
    environment = {name: text for name, text in os.environ.items() if name != "COLO_SIMD"}
    if value is not None:
        environment["COLO_SIMD"] = value
    root = Path(kernels.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


def test_each_machine_has_its_base_levels_first() -> None:
    base = BASE.get(platform.machine(), ("portable",))
    assert kernels.levels()[: len(base)] == base


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of an x86 CPU")
def test_wider_levels_follow_the_cpu_s_flags() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags")[1].split("\n")[0].split())
    assert ("avx2" in kernels.levels()) == ({"avx2", "bmi1", "bmi2", "popcnt"} <= flags)
    wide = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vbmi2", "avx512_vpopcntdq"}
    assert ("avx512" in kernels.levels()) == (wide <= flags)


def test_the_best_level_is_the_default() -> None:
    assert level_with(None) == (kernels.levels()[-1], "")
    assert level_with("") == (kernels.levels()[-1], "")


@pytest.mark.parametrize("level", kernels.levels())
def test_the_environment_picks_a_level(level: str) -> None:
    assert level_with(level) == (level, "")


@pytest.mark.parametrize("level", ["neon512", "AVX2", "altivec"])
def test_a_level_that_is_not_there_is_named_with_those_that_are(level: str) -> None:
    active, warning = level_with(level)
    assert active == kernels.levels()[-1]
    assert "COLO_SIMD" in warning
    assert repr(level) in warning
    assert ", ".join(kernels.levels()) in warning
