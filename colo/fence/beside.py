"""How a small program of this package is started beside a process that it is to outlive."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from colo.errors import Unsupported

START_S = 2.0


def interpreter() -> str:
    """The Python to start it with. Raises Unsupported where there is none: a program that Python is a part of may be named
    there, and would be started once more."""
    named = os.path.basename(sys.executable or "").startswith(("python", "pypy"))
    if not named or getattr(sys, "frozen", False):
        raise Unsupported(f"sys.executable is {sys.executable or 'not set'}, and no Python interpreter: set it to one")
    return sys.executable


def start_beside(name: str, program: Path, arguments: Sequence[int], *, fds: Sequence[int], options: Sequence[str]) -> None:
    """Start ``program`` with nothing open but ``fds``. Raises Unsupported when it cannot be started.

    By way of a shell that ends: it is nobody's child, so nobody has to wait for it, and no group's end is its own.
    """
    command = [interpreter(), *options, str(program), *map(str, arguments)]
    try:
        subprocess.run(
            ["/bin/sh", "-c", '"$@" >/dev/null 2>&1 &', name, *command], pass_fds=fds, start_new_session=True,
            stdin=subprocess.DEVNULL, check=True, timeout=START_S, cwd="/")
    except (OSError, subprocess.SubprocessError) as error:
        raise Unsupported(f"{program.name} cannot be started: {error}") from error
