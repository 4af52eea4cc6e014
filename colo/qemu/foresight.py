"""What would keep a stand-by from taking over and can be known early: whether it starts at all, and the room for RAM."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from colo.errors import ColoError
from colo.qemu.command_line import StandbyCommand, derive_standby
from colo.qemu.process import private_directory
from colo.qemu.standby import Standby
from colo.qemu.twin import rehearsal_command

NEVER_BOUNDED = 1 << 62
NO_MEMORY = "cannot set up guest memory"
"""QEMU's words when private RAM cannot be had."""


class Rehearsal:
    """Starts the stand-by's command line once, before any primary is there, and ends it again, in the background.

    QEMU says at its start what it lacks: its binary, KVM, a disk's file, a port, a network device. ``on_event`` hears it.
    No RAM is touched.
    """

    def __init__(
        self, argv: Sequence[str], work_dir: Path, on_event: Callable[[str], None], *, start_s: float = 20.0
    ) -> None:
        self._argv = list(argv)
        self._work_dir = work_dir
        self._on_event = on_event
        self._start_s = start_s
        self.failure: str | None = None
        """What it found, once :meth:`join` has returned."""
        self._thread = threading.Thread(target=self._run, name="colo-rehearsal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            command = rehearsal_command(derive_standby(self._argv, share_ram=False))
            self._start(command)
        except (ColoError, OSError, ValueError) as error:
            if NO_MEMORY in str(error):
                return  # it is started without the files that the stand-by's RAM will be in
            self.failure = str(error)
            self._on_event(f"a takeover would fail, the stand-by cannot be started: {error}")

    def _start(self, command: StandbyCommand) -> None:
        private_directory(self._work_dir.parent)
        directory = private_directory(self._work_dir)
        try:
            with Standby(command, directory) as standby:
                standby.start(self._start_s)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._work_dir.parent.rmdir()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until it is over, and nothing is left of it: what it opened, the stand-by needs."""
        self._thread.join(timeout_s)


def room_bytes(directory: str | os.PathLike[str]) -> tuple[int, str]:
    """How many bytes more can be kept in files of ``directory``, and what bounds them.

    The file system's free blocks, and where it is in memory (tmpfs), this machine's available memory and the limits of
    the control groups that this process is in.
    """
    facts = os.statvfs(directory)
    bounds = [(facts.f_bavail * facts.f_frsize, f"{os.fspath(directory)} has no more room")]
    if _in_memory(directory):
        bounds.append((_available_bytes(), "this machine has no more memory available"))
        bounds += _group_bounds()
    return min(bounds)


def _in_memory(directory: str | os.PathLike[str]) -> bool:
    path = Path(directory).resolve()
    found, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        mounted = fields[1].replace("\\040", " ")
        if path.is_relative_to(mounted) and len(mounted) >= len(found):
            found, kind = mounted, fields[2]
    return kind in ("tmpfs", "ramfs", "devtmpfs")


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return NEVER_BOUNDED


def _group_bounds() -> list[tuple[int, str]]:
    bounds = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, limit, usage = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = root / name.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError):  # "max", or no such file: no bound
                left = int((place / limit).read_text()) - int((place / usage).read_text())
                bounds.append((max(0, left), f"the control group {place} has no more memory"))
    return bounds


def room_notice(directory: str | os.PathLike[str], ram_bytes: int) -> str | None:
    """A warning when not all of ``ram_bytes`` of a VM's RAM has room in ``directory``; None if it has.

    Pages that are zero take none, so it may do all the same.
    """
    room, why = room_bytes(directory)
    if room >= ram_bytes:
        return None
    return (
        f"the VM has {ram_bytes >> 20} MiB of RAM, but there is room for {room >> 20} MiB: once its pages are in use, "
        f"checkpoints will fail because {why}. Give --ram-dir a larger file system, or this host more memory"
    )
