"""What `colo doctor` finds, and how it says so."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import pytest

from colo.cli import doctor
from colo.qemu.quirks import Version
from colo.qemu.survey import QemuFound, find_binaries, survey


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    return parser.parse_args(["doctor", *words])


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
    assert {"qemu", "kvm", "memory", "dirty trackers", "cpu", "permissions", "python"} <= set(areas)
    for finding in answer["findings"]:
        assert finding["state"] in ("ok", "limited", "no")
        assert finding["text"]


@pytest.mark.usefixtures("no_other_qemus")
def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run(parsed("--qemu", "/bin/false"))
    lines = capsys.readouterr().out.splitlines()
    assert all("\x1b" not in line and "─" not in line for line in lines)
    assert any(line.startswith("no") and "/bin/false" in line and "exit code 1" in line for line in lines)
    assert "protected and taken over" in lines[-1]


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
