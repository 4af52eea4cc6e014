"""`colo arbiter`: made, shown, released and reopened, as a user does it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import Arbiter, Runner, arbiter_from_uri
from colo.cli import main
from colo.cli.arbiter import arbiter_uri
from tests.arbiter.conftest import one
from tests.arbiter.etcd_cluster import Cluster, wait_until

__all__ = ["one"]

HERE = Runner.of()
FAR = replace(HERE, host="far", machine="0" * 32)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "vm1"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def arbiter(shared: Path) -> Iterator[Arbiter]:
    assert main(["arbiter", "init", str(shared), "--vm", "vm1"]) == 0
    with arbiter_from_uri(f"file:{shared}", role="primary") as arbiter:
        yield arbiter


def shown(capsys: pytest.CaptureFixture[str], uri: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["arbiter", "show", uri, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize(("text", "uri"), [
    ("/shared/vm1", "file:/shared/vm1"), ("vm1", "file:vm1"), ("./a:b", "file:./a:b"), ("file:vm1", "file:vm1"),
    ("etcd:http://a:1/x", "etcd:http://a:1/x"), ("exec:true", "exec:true"), (".", "file:."),
])
def test_a_directory_is_an_arbiters_name(text: str, uri: str) -> None:
    assert arbiter_uri(text) == uri


def test_init_and_show(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["arbiter", "init", str(shared), "--vm", "vm1", "--uuid", "0b1e5f8e-6d2a-4b57-9d0c-4ad3d1e3a111"]) == 0
        said = capsys.readouterr().out
        assert "vm1" in said and "nobody since 20" in said
    assert main(["arbiter", "init", str(shared), "--vm", "vm2"]) == 5
    assert "belongs to VM 'vm1'" in capsys.readouterr().err
    assert main(["arbiter", "show", str(shared), "--vm", "vm2"]) == 5
    assert "not to 'vm2'" in capsys.readouterr().err
    answer = shown(capsys, str(shared))
    assert (answer["vm"], answer["state"], answer["generation"], answer["runner"]) == ("vm1", "free", 0, None)
    with arbiter_from_uri(f"file:{shared}", role="primary") as arbiter:
        arbiter.claim(0, reason="protect")
    answer = shown(capsys, str(shared))
    assert (answer["state"], answer["role"], answer["alive"], answer["reason"]) == ("held", "primary", True, "protect")
    assert answer["runner"]["pid"] == os.getpid() and answer["since_s"] > 0
    assert main(["arbiter", "show", str(shared)]) == 0
    assert "lives, on this host" in capsys.readouterr().out


def test_what_was_never_made_is_not_shown(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["arbiter", "show", str(shared)]) == 5
    assert f"colo arbiter init file:{shared} --vm NAME" in capsys.readouterr().err
    assert os.listdir(shared) == []
    assert main(["arbiter", "show", "exec:true"]) == 5
    assert "exec keeps nothing" in capsys.readouterr().err


def test_a_holder_elsewhere_is_released_by_the_users_word(arbiter: Arbiter, capsys: pytest.CaptureFixture[str]) -> None:
    arbiter.claim(0, runner=FAR)
    release = ["arbiter", "release", arbiter.uri, "--vm", "vm1"]
    assert main(release) == 1  # no terminal to ask on
    said = capsys.readouterr().err
    assert "held by far (pid" in said and "it will run twice. Say --yes" in said
    assert arbiter.current() == 1
    assert main(["arbiter", "release", arbiter.uri, "--vm", "vm2", "--yes"]) == 5
    assert main([*release, "--yes"]) == 0
    answer = shown(capsys, arbiter.uri)
    assert (answer["state"], answer["generation"]) == ("free", 2) and answer["reason"].startswith("released by ")
    assert main(release) == 0  # nobody holds it: nothing to ask, nothing to do
    assert arbiter.current() == 2


def test_a_holder_that_lives_here_is_not_released(arbiter: Arbiter, capsys: pytest.CaptureFixture[str]) -> None:
    arbiter.claim(0)
    assert main(["arbiter", "release", arbiter.uri, "--vm", "vm1", "--yes"]) == 4
    assert f"runs on this host, as {HERE.host} (pid {os.getpid()}, primary)" in capsys.readouterr().err
    assert arbiter.current() == 1


def test_a_vm_that_was_ended_is_reopened(arbiter: Arbiter, capsys: pytest.CaptureFixture[str]) -> None:
    reopen = ["arbiter", "reopen", arbiter.uri, "--vm", "vm1"]
    assert main(reopen) == 0  # it is open
    arbiter.claim(0)
    assert main([*reopen, "--yes"]) == 4
    assert "was not ended on purpose" in capsys.readouterr().err
    arbiter.close_generation(1, "shut down by its guest")
    assert main(["arbiter", "release", arbiter.uri, "--vm", "vm1", "--yes"]) == 4
    assert f"colo arbiter reopen {arbiter.uri} --vm vm1" in capsys.readouterr().err
    assert shown(capsys, arbiter.uri)["state"] == "closed"
    assert main(reopen) == 1
    assert "shut down by its guest" in capsys.readouterr().err
    assert main([*reopen, "--yes"]) == 0
    answer = shown(capsys, arbiter.uri)
    assert answer["state"] == "free" and answer["reason"].startswith("reopened by ")


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"\n", 1), (b"yes\n", 0)])
def test_on_a_terminal_it_asks(arbiter: Arbiter, answer: bytes, code: int) -> None:
    arbiter.claim(0, runner=FAR)
    here, there = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "colo", "arbiter", "release", arbiter.uri, "--vm", "vm1"], stdin=there, stdout=there, stderr=there
    ) as process:
        os.close(there)
        said = b""
        while b"Go on? [y/N]" not in said:
            said += os.read(here, 4096)
        os.write(here, answer)
        while True:
            try:
                if not os.read(here, 4096):
                    break
            except OSError:
                break  # the other end is closed
        assert process.wait(30) == code
    os.close(here)
    assert arbiter.current() == (1 if code else 2)


def test_what_a_file_says_cannot_steer_a_terminal(arbiter: Arbiter, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arbiter.claim(0)
    path = shared / "generation.1"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reason": "\x1b]0;x\x07\x9b2J"}))
    assert main(["arbiter", "show", arbiter.uri]) == 0
    said = capsys.readouterr().out
    assert "?]0;x??2J" in said and all(line.isprintable() for line in said.splitlines())
    (shared / "identity").unlink()
    path.rename(shared / "generation.\x1b[2J")
    assert main(["arbiter", "show", arbiter.uri]) == 5
    assert "\x1b" not in capsys.readouterr().err


def test_one_in_etcd_is_made_shown_and_released(one: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    uri = one.uri("tests/cli")
    assert main(["arbiter", "show", uri]) == 5
    assert f"colo arbiter init {uri} --vm NAME" in capsys.readouterr().err
    assert main(["arbiter", "init", uri, "--vm", "vm1"]) == 0
    assert shown(capsys, uri)["state"] == "free"
    session = arbiter_from_uri(uri, role="primary")
    session.claim(0, runner=FAR)
    wait_until(lambda: shown(capsys, uri)["session_seen"], "the session is seen")
    release = ["arbiter", "release", uri, "--vm", "vm1", "--yes"]
    assert main(release) == 4
    assert "the session of far" in capsys.readouterr().err
    session.close()
    wait_until(lambda: not shown(capsys, uri)["session_seen"], "the session is seen no more")
    assert main(["arbiter", "show", uri]) == 0
    assert "not heard of, which proves nothing" in capsys.readouterr().out
    assert main(release) == 0
    assert shown(capsys, uri)["state"] == "free"
