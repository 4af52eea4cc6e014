"""What `colo doctor` finds, and how it says so."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colo.cli.doctor import command as doctor
from colo.cli.doctor import host as doctor_host
from colo.cli.doctor.findings import LIMITED, NO, OK, Finding, conclude
from colo.memory.host import MemoryLimit
from colo.qemu.quirks import Version
from colo.qemu.survey import QemuFound, find_binaries, survey


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def no_other_qemus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the test names or the PATH has: the versions fetched beside the source take seconds to
    ask.
    """
    monkeypatch.setattr(doctor, "_fetched_qemus", list)


@pytest.mark.usefixtures("no_other_qemus")
def test_json_says_everything_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.run(parsed("--json"))
    answer = json.loads(capsys.readouterr().out)
    assert answer["works"] is (code == 0)
    areas = [finding["area"] for finding in answer["findings"]]
    assert answer["conclusion"]
    assert answer["works"] is (answer["can_be_primary"] and answer["can_be_secondary"])
    assert {"qemu", "kvm", "memory", "dirty trackers", "cpu", "fence", "arbiter", "permissions", "python"} <= set(areas)
    names = {(finding["area"], finding["name"]) for finding in answer["findings"]}
    assert {("memory", "control group"), ("fence", "pidfd"), ("fence", "locked memory")} <= names
    assert {("fence", "real-time priority"), ("arbiter", "etcd client")} <= names
    for finding in answer["findings"]:
        assert finding["state"] in ("ok", "limited", "no")
        assert finding["text"]


@pytest.mark.usefixtures("no_other_qemus")
def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run(parsed("--qemu", "/bin/false"))
    lines = capsys.readouterr().out.splitlines()
    assert all("\x1b" not in line and "─" not in line for line in lines)
    assert any(line.startswith("no") and "/bin/false" in line and "exit code 1" in line for line in lines)
    assert "VM can be" in lines[-1]
    assert "/bin/false" in lines[-1]


def test_without_any_qemu_it_does_not_work_and_says_what_to_install() -> None:
    findings = list(doctor.probe_qemus([], kvm=True))
    assert [(finding.state, finding.essential) for finding in findings] == [("no", True)]
    assert "apt-get install" in findings[0].advice


def test_each_qemu_is_judged_by_its_version_and_the_kvm_at_hand() -> None:
    old = QemuFound("/q", Version(7, 2), has_colo=True, has_kvm=True, primary_tcg="TCG deadlocks")
    with_kvm = list(doctor.probe_qemus([old], kvm=True))
    without = list(doctor.probe_qemus([old], kvm=False))
    assert with_kvm[0].state == "ok"
    assert "KVM" in with_kvm[0].text
    assert without[0].state == "no"
    assert "TCG deadlocks" in without[0].text
    assert any(finding.state == "limited" and "all pages" in finding.text for finding in with_kvm)


def test_no_tmpfs_is_said(tmp_path: Path) -> None:
    assert doctor.probe_shared_memory(tmp_path / "nothing").state == "no"
    assert doctor.probe_shared_memory(tmp_path).state in ("ok", "limited")


def test_what_is_no_qemu_is_told_in_words() -> None:
    assert "cannot start" in survey("/no/such/qemu").problem
    assert "exit code 1" in survey("/bin/false").problem


def test_binaries_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"qemu-system-{os.uname().machine}"
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
    (tmp_path / "a" / name).write_text("#!/bin/sh\n")
    (tmp_path / "a" / name).chmod(0o755)
    (tmp_path / "b" / "qemu-kvm").symlink_to(tmp_path / "a" / name)
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b")
    found = find_binaries([str(tmp_path / "a" / name)])
    assert found[0] == str(tmp_path / "a" / name)
    assert len([path for path in found if str(tmp_path) in path]) == 1


@pytest.mark.qemu
def test_a_real_qemu_tells_what_it_can() -> None:
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        pytest.skip("no qemu-system-x86_64")
    found = survey(path)
    assert not found.problem
    assert found.version is not None
    assert found.version.major >= 4
    assert found.has_ignore_shared


def made(state: str, name: str = "x", *, essential: bool = False, side: str = "") -> Finding:
    return Finding("area", name, state, "text", essential=essential, side=side)


class TestConclusion:
    """The last line follows from the others."""

    def test_all_is_well(self) -> None:
        conclusion = conclude([made(OK), made(LIMITED)])
        assert conclusion.works
        assert conclusion.text == "A VM can be protected and taken over on this machine."

    def test_a_no_that_is_not_needed_is_still_named(self) -> None:
        conclusion = conclude([made(OK), made(NO, "hugetlb")])
        assert conclusion.works
        assert "Not with everything" in conclusion.text
        assert "area: hugetlb" in conclusion.text

    @pytest.mark.parametrize(
        ("findings", "primary", "secondary", "says"),
        [
            ([made(NO, "q", side="primary")], False, True, "can be taken over on this machine, not protected: .*area: q"),
            ([made(NO, "s", side="secondary")], True, False, "can be protected on this machine, not taken over: .*area: s"),
            ([made(NO, "q", essential=True)], False, False, "neither protected nor taken over .*area: q"),
            (
                [made(NO, "q", side="primary"), made(NO, "s", side="secondary")], False, False,
                "neither protected nor taken over .*area: q, area: s",
            ),
        ],
    )  # fmt: skip
    def test_what_is_missing_decides(self, findings: list[Finding], primary: bool, secondary: bool, says: str) -> None:
        conclusion = conclude(findings)
        assert (conclusion.primary, conclusion.secondary) == (primary, secondary)
        assert not conclusion.works
        assert re.search(says, conclusion.text)

    def test_an_old_qemu_without_kvm_cannot_protect(self) -> None:
        old = QemuFound("/q", Version(7, 2), has_colo=True, has_kvm=True, primary_tcg="TCG deadlocks")
        conclusion = conclude(list(doctor.probe_qemus([old], kvm=False)))
        assert (conclusion.primary, conclusion.secondary) == (False, True)
        assert "not protected" in conclusion.text

    def test_no_qemu_at_all(self) -> None:
        conclusion = conclude(list(doctor.probe_qemus([], kvm=True)))
        assert (conclusion.primary, conclusion.secondary) == (False, False)

    def test_none_that_starts(self) -> None:
        conclusion = conclude(list(doctor.probe_qemus([QemuFound("/q", problem="cannot start")], kvm=True)))
        assert (conclusion.primary, conclusion.secondary) == (False, False)


def test_a_control_groups_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit_bytes, state in ((1 << 20, "limited"), (1 << 30, "ok"), (1 << 59, "ok")):
        monkeypatch.setattr(doctor_host.host, "cgroup_limit", lambda n=limit_bytes: MemoryLimit(n, "/g/memory.max"))
        (finding,) = doctor_host.probe_memory_limits()
        assert finding.state == state
        assert ("/g/memory.max" in finding.text) is (limit_bytes < 1 << 40)


def test_what_a_fence_may_do_is_tried_and_leaves_nothing_behind() -> None:
    policy = os.sched_getscheduler(0)
    findings = {finding.name: finding for finding in doctor_host.probe_fence()}
    assert set(findings) == {"pidfd", "locked memory", "real-time priority"}
    assert findings["pidfd"].state == "ok"
    assert os.sched_getscheduler(0) == policy
    assert "VmLck:\t       0 kB" in Path("/proc/self/status").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_with_small_limits_is_told_so() -> None:
    """In a child that gives its rights away: what root may do says nothing about it."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
            resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            findings = [*doctor_host.probe_fence(), *doctor.probe_permissions(), doctor.probe_userfaultfd()]
            os.write(write_end, json.dumps([[f.name, f.state, f.text, f.advice] for f in findings]).encode())
            os._exit(0)
        except BaseException as error:
            os.write(write_end, repr(error).encode())
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        answer = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, answer
    found = {name: (state, text, advice) for name, state, text, advice in json.loads(answer)}
    assert found["pidfd"][0] == "ok"
    assert found["locked memory"][0] == "limited"
    assert "64 KiB" in found["locked memory"][1]
    assert "ulimit -l" in found["locked memory"][2]
    assert found["real-time priority"][0] == "limited"
    assert found["user"][1] == "uid 65534"


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from colo.cli.doctor import command as doctor; doctor._fetched_qemus = list; doctor.find_binaries = lambda more: []; " \
        "from colo.cli import main; sys.exit(main(['doctor']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 8
    assert done.stderr == "colo doctor: standard output: No space left on device: the answer is not whole\n"
