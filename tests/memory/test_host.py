"""Memory that this process may have: the machine's, and what control groups leave of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colo.memory import host
from colo.memory.host import MemoryLimit, cgroup_limit, host_memory_bytes, physical_memory_bytes

GIB = 1 << 30


@pytest.fixture
def tree(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Control groups as files: their limits by path, and the two files of /proc that lead there."""

    def make(limits: dict[str, str], group: str, mount: str) -> MemoryLimit | None:
        for path, text in limits.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        (tmp_path / "cgroup").write_text(group + "\n")
        (tmp_path / "mountinfo").write_text(mount.replace("ROOT", str(tmp_path)) + "\n")
        return cgroup_limit(tmp_path / "cgroup", tmp_path / "mountinfo")

    return make


V2 = "30 23 0:26 / ROOT/fs rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "36 32 0:33 / ROOT/fs rw,nosuid shared:15 - cgroup cgroup rw,memory"


@pytest.mark.parametrize("outer", ["max", str(8 * GIB)])
def test_the_least_limit_on_the_way_up_counts(tree, outer: str) -> None:  # type: ignore[no-untyped-def]
    limits = {"fs/a/memory.max": str(2 * GIB), "fs/a/b/memory.max": outer, "fs/a/b/c/memory.max": "max"}
    found = tree(limits, "0::/a/b/c", V2)
    assert found is not None
    assert found.limit_bytes == 2 * GIB
    assert found.file.endswith("fs/a/memory.max")


def test_the_innermost_limit_counts_where_it_is_the_least(tree) -> None:  # type: ignore[no-untyped-def]
    found = tree({"fs/a/memory.max": str(8 * GIB), "fs/a/b/memory.max": str(GIB)}, "0::/a/b", V2)
    assert found is not None
    assert found.limit_bytes == GIB


def test_version_1(tree) -> None:  # type: ignore[no-untyped-def]
    limits = {
        "fs/memory.limit_in_bytes": "9223372036854771712",
        "fs/docker/memory.limit_in_bytes": str(3 * GIB),
        "fs/docker/x/memory.limit_in_bytes": "9223372036854771712",
    }
    found = tree(limits, "7:cpu,cpuacct:/\n6:memory:/docker/x\n0::/", V1)
    assert found is not None
    assert found.limit_bytes == 3 * GIB


def test_a_container_whose_own_group_is_the_mounts_root(tree) -> None:  # type: ignore[no-untyped-def]
    mount = "36 32 0:33 /docker/x ROOT/my\\040fs rw - cgroup cgroup rw,memory"
    found = tree({"my fs/memory.limit_in_bytes": str(GIB)}, "6:memory:/docker/x", mount)
    assert found is not None
    assert found.limit_bytes == GIB


@pytest.mark.parametrize(
    ("group", "mount"), [("0::/a", "nothing"), ("", V2), ("0::/gone", V2), ("garbage", "- - -"), ("0::/../..", V2)]
)
def test_what_cannot_be_seen_is_no_limit(tree, group: str, mount: str) -> None:  # type: ignore[no-untyped-def]
    assert tree({"fs/other/memory.max": "1000"}, group, mount) is None


def test_no_proc_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path / "none", tmp_path / "none") is None


def test_a_limit_below_the_machines_memory_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cgroup_limit", lambda: MemoryLimit(1 << 20, "file"))
    assert host_memory_bytes() == 1 << 20
    monkeypatch.setattr(host, "cgroup_limit", lambda: MemoryLimit(1 << 59, "file"))
    assert host_memory_bytes() == physical_memory_bytes()
    monkeypatch.setattr(host, "cgroup_limit", lambda: None)
    assert host_memory_bytes() == physical_memory_bytes()


def test_a_real_control_group(tmp_path: Path) -> None:
    """A group made for this, where the machine lets us."""
    root = Path("/sys/fs/cgroup")
    groups = [root / f"colo-test-{os.getpid()}", root / "memory" / f"colo-test-{os.getpid()}"]
    for group in groups:
        name = "memory.max" if group.parent == root else "memory.limit_in_bytes"
        if not (group.parent / (name if group.parent != root else "cgroup.controllers")).exists():
            continue  # no such tree is mounted there
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(GIB))
        except OSError:
            group.rmdir()
            continue
        try:
            child = os.fork()
            if child == 0:
                try:
                    (group / "cgroup.procs").write_text(str(os.getpid()))
                    found = cgroup_limit()
                    os._exit(0 if found is not None and found.limit_bytes == GIB and host_memory_bytes() <= GIB else 1)
                except BaseException:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            return
        finally:
            group.rmdir()
    pytest.skip("no control group can be made here")
