"""On what a run was made: its machine, its QEMU and its link, in words, for its report."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Sequence


def machine() -> dict[str, str]:
    """The host, as far as it shows itself, and its kernel."""
    cpu = next((words for line in _lines("/proc/cpuinfo") if line.startswith(("model name", "Model"))
                if (words := line.partition(":")[2].strip())), platform.machine())
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    return {
        "Host": f"{socket.gethostname()}: {os.cpu_count()} processors ({cpu}), {memory_gib:.1f} GiB",
        "Kernel": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }


def qemu(command: Sequence[str]) -> str:
    """The version that a QEMU command line's program tells of itself; its name where it does not."""
    program = shutil.which(command[0]) if command else None
    if program is None:
        return command[0] if command else ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, errors="replace", timeout=10, check=True)
        return done.stdout.partition("\n")[0].strip() or program
    return program


def link(uri: str) -> str:
    """An address of a transport, and what kind of way that is."""
    scheme, _, rest = uri.partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    if scheme == "tcp" and (host in ("localhost", "::1") or host.startswith("127.")):
        return f"{uri} (loopback)"
    return f"{uri} (a socket of this machine)" if scheme == "unix" else uri


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
