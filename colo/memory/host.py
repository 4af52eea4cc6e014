"""How much memory this process may use: the machine's, or less where a control group limits it.

A limit of any group above counts as well: the least of all is what is there. Version 2 has one tree, ``memory.max``
in each directory; version 1 has a tree for memory, ``memory.limit_in_bytes``.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60
"""From here on a limit of version 1 (which is near 2^63 when none is set) is none."""
GROUP = "/proc/self/cgroup"
MOUNTS = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A group's limit in bytes, and the file that states it."""

    limit_bytes: int
    file: str


def host_memory_bytes() -> int:
    """Memory in bytes that this process may have at most: the machine's, or a control group's limit below it."""
    limit = cgroup_limit()
    physical = physical_memory_bytes()
    return physical if limit is None else min(physical, limit.limit_bytes)


def physical_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cgroup_limit(group: str | Path = GROUP, mounts: str | Path = MOUNTS) -> MemoryLimit | None:
    """The least limit of this process's control group and those above it; None where there is none to be seen.

    In a container the groups above its own are often hidden: their limits cannot be known.
    """
    try:
        groups = Path(group).read_text(errors="replace")
        mounted = Path(mounts).read_text(errors="replace")
    except OSError:
        return None
    limits: list[MemoryLimit] = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            limits += _limits_above(path, _mount(mounted, "cgroup2", ""), "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_above(path, _mount(mounted, "cgroup", "memory"), "memory.limit_in_bytes")
    return min(limits, key=lambda limit: limit.limit_bytes, default=None)


def _mount(mounted: str, kind: str, controller: str) -> tuple[str, str] | None:
    """Where a tree of groups is mounted, and which of its directories is mounted there."""
    for line in mounted.splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields, about = mount.split(), filesystem.split()
        if len(fields) < 5 or len(about) < 3 or about[0] != kind:
            continue
        if controller and controller not in about[2].split(","):
            continue
        return _unescaped(fields[4]), _unescaped(fields[3])
    return None


def _unescaped(path: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, letter)
    return path


def _limits_above(path: str, mount: tuple[str, str] | None, name: str) -> list[MemoryLimit]:
    if mount is None:
        return []
    point, root = Path(mount[0]), mount[1].rstrip("/")
    below = path[len(root) :] if root and (path == root or path.startswith(root + "/")) else path
    parts = [part for part in below.split("/") if part not in ("", ".", "..")]
    found = []
    for depth in range(len(parts), -1, -1):
        file = point.joinpath(*parts[:depth], name)
        try:
            text = file.read_text().strip()
        except OSError:
            continue  # the root has none, and a group may be hidden
        if text.isdigit() and int(text) < UNLIMITED:
            found.append(MemoryLimit(int(text), str(file)))
    return found


def available_memory_bytes() -> int:
    """What can be had without swapping, by the kernel's own estimate; all there is, where it makes none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return host_memory_bytes()


def on_tmpfs(path: Path) -> bool:
    """Whether the files there are memory."""
    device = os.stat(path).st_dev
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            major, minor = (int(number) for number in fields[2].split(":"))
            if os.makedev(major, minor) == device:
                return fields[fields.index("-") + 1] in ("tmpfs", "ramfs")
    return False
