"""Builds the Cython core. Metadata lives in pyproject.toml; this file only says how the extensions are compiled.

Environment: COLO_SANITIZE=1 builds with ASan and UBSan, COLO_DEBUG=1 with -O0 -g3 and assertions.
"""
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
FAST = ROOT / "colo" / "_fast"
QUARTERS = ("kernels", "trackers", "send", "receive")
SANITIZE = os.environ.get("COLO_SANITIZE") == "1"
DEBUG = os.environ.get("COLO_DEBUG") == "1"


def write_wire_numbers() -> None:
    """Write wire.py's numbers as C, so that the core and Python share one definition of each."""
    spec = importlib.util.spec_from_file_location("_colo_wire", ROOT / "colo" / "wire.py")
    wire = importlib.util.module_from_spec(spec)
    sys.modules["_colo_wire"] = wire
    spec.loader.exec_module(wire)
    lines = ["/* Written by setup.py from colo/wire.py: change that file, not this one. */", "#pragma once"]
    for name, value in wire.c_numbers():
        lines.append(f"#define {name} {value:#x}ULL")
    text = "\n".join(lines) + "\n"
    target = FAST / "wire_numbers.h"
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def compile_args(module: str) -> list[str]:
    args = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function",
            "-Wno-missing-field-initializers", "-Wno-sign-compare", "-fvisibility=hidden"]
    # Nothing is built for the build machine's own CPU: wider SIMD is picked at run time (_fast/kernels/simd/).
    if platform.machine() == "aarch64":
        args.append("-march=armv8-a")
    if DEBUG:
        return [*args, "-O0", "-g3", "-UNDEBUG"]
    if SANITIZE:
        return [*args, "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                "-fno-sanitize-recover=undefined", "-UNDEBUG"]
    # The loops over pages are in the kernels; the rest gains nothing from -O3 and debug information but build time.
    return [*args, "-g0", "-O3" if module == "kernels" else "-O2"]


KERNEL_ARGS = {"kernels": ["-falign-loops=64"]}
"""The short loops of the kernels take a third longer where one lies across the lines of the instruction cache."""


def extensions() -> list[Extension]:
    link = ["-fsanitize=address,undefined"] if SANITIZE else []
    headers = [str(p.relative_to(ROOT)) for p in FAST.rglob("*.h")]
    found = []
    for pyx in sorted(FAST.rglob("*.pyx")):
        first = pyx.read_text().split("\n", 20)
        libraries = [lib for line in first for m in [re.match(r"# link: (.+)", line)] if m for lib in m[1].split()]
        found.append(Extension(
            ".".join(pyx.relative_to(ROOT).with_suffix("").parts), [str(pyx.relative_to(ROOT))], libraries=libraries,
            include_dirs=["colo/_fast", *(f"colo/_fast/{quarter}" for quarter in QUARTERS)], depends=headers,
            extra_compile_args=[*compile_args(pyx.stem), *KERNEL_ARGS.get(pyx.stem, ())], extra_link_args=link,
        ))
    return found


write_wire_numbers()
setup(options={"build_ext": {"parallel": os.cpu_count()}}, ext_modules=cythonize(
    extensions(),
    language_level=3,
    nthreads=0,
    # Bounds checks stay on: they guard the thin Python edge. The hot paths work on pointers they have checked once.
    compiler_directives={"boundscheck": True, "wraparound": False, "cdivision": True, "embedsignature": True,
                         "initializedcheck": True},
))
