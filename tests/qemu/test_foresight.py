"""What is known before any primary is there: a stand-by that does not start, too little room for RAM."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.qemu.foresight import Rehearsal, room_bytes, room_notice
from tests.qemu.tiny_machine import Machine


def rehearsed(argv: list[str], run_dir: Path) -> str | None:
    said: list[str] = []
    rehearsal = Rehearsal(argv, run_dir / "standby" / "r", said.append)
    rehearsal.join()
    assert not (run_dir / "standby").exists()
    assert [f"a takeover would fail, the stand-by cannot be started: {rehearsal.failure}"] * bool(rehearsal.failure) == said
    return rehearsal.failure


@pytest.mark.qemu
def test_one_that_starts_leaves_nothing_and_takes_no_memory(machine: Machine, run_dir: Path) -> None:
    backend = "memory-backend-memfd,id=pc.ram,size=256G,prealloc=on,share=on"
    argv = machine(ram_mib=256 << 10)
    argv[argv.index("pc")] = "pc,memory-backend=pc.ram"
    assert rehearsed([*argv, "-object", backend], run_dir) is None


@pytest.mark.qemu
def test_what_qemu_lacks_is_said_in_its_words(machine: Machine, run_dir: Path) -> None:
    assert "/no/such/disk" in (rehearsed(machine("-drive", "file=/no/such/disk,format=raw"), run_dir) or "")
    assert "no-such-device" in (rehearsed(machine("-device", "no-such-device"), run_dir) or "")
    assert "cannot start /no/qemu" in (rehearsed(["/no/qemu", "-m", "1"], run_dir) or "")
    assert "-snapshot" in (rehearsed(machine("-snapshot"), run_dir) or "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = rehearsed(machine("-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22"), run_dir)
        assert words is not None
        assert str(port) in words or "host forwarding" in words


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode().strip()}")
    yield tmp_path
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_too_little_room_is_said(small_tmpfs: Path) -> None:
    assert room_notice(small_tmpfs, 8 << 20) is None
    notice = room_notice(small_tmpfs, 9 << 20)
    assert notice is not None
    assert "9 MiB of RAM, but there is room for 8 MiB" in notice
    assert f"{small_tmpfs} has no more room" in notice
    (small_tmpfs / "used").write_bytes(bytes(4 << 20))
    assert "room for 4 MiB" in (room_notice(small_tmpfs, 8 << 20) or "")


def test_memory_bounds_what_is_kept_in_memory(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < room_bytes("/dev/shm")[0] <= memory
    assert room_notice("/dev/shm", 1 << 60) is not None
    assert room_notice(tmp_path, 4096) is None
