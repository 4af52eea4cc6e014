"""The fencing script, and no arbiter at all."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import pytest

from colo.arbiter import arbiter_from_uri
from colo.arbiter.exec_arbiter import ExecArbiter
from colo.arbiter.no_arbiter import NoArbiter
from colo.errors import ArbitrationError, ArbitrationLost

# The fencing script.


def test_the_fencing_commands_exit_code_decides(tmp_path: Path) -> None:
    assert arbiter_from_uri("exec:exit 0").claim(0).generation == 1
    with pytest.raises(ArbitrationLost, match="refused generation 1; it said: the other side is well"):
        arbiter_from_uri("exec:echo the other side is well >&2; exit 1").claim(0)
    for command, how in (("exit 2", "exited with 2"), ("no-such-command", "127"), ("kill -9 $$", "signal 9")):
        with pytest.raises(ArbitrationError, match=how) as caught:
            arbiter_from_uri(f"exec:{command}").claim(0)
        assert not isinstance(caught.value, ArbitrationLost)


def test_the_fencing_command_is_told_what_it_decides(tmp_path: Path) -> None:
    out = tmp_path / "told"
    arbiter = ExecArbiter(
        f'echo "$COLO_GENERATION $COLO_NEXT_GENERATION $COLO_ROLE $COLO_REASON $COLO_PID $MORE $COLO_VM $COLO_UUID" > {out}',
        role="secondary",
        environment={"MORE": "of it"},
        vm="the $(vm)",
        uuid="a-uuid",
    )
    arbiter.claim(4, reason="the channel was reset; $(touch x)")
    assert out.read_text() == f"4 5 secondary the channel was reset; $(touch x) {os.getpid()} of it the $(vm) a-uuid\n"
    assert arbiter.still_holds(5)


def test_what_is_found_out_of_the_vm_does_not_replace_what_was_said(tmp_path: Path) -> None:
    out = tmp_path / "told"
    arbiter = arbiter_from_uri(f'exec:echo "$COLO_VM,$COLO_UUID" > {out}', vm="named")
    arbiter.know_vm(vm="found", uuid="")
    arbiter.know_vm(uuid="a-uuid\0;")
    arbiter.claim(0)
    assert out.read_text() == "named,a-uuid ;\n"
    assert arbiter_from_uri("none").know_vm(vm="x", uuid="y") is None


def test_a_generation_is_fenced_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    arbiter = ExecArbiter(f"echo >> {count}")
    arbiter.claim(0)
    with pytest.raises(ArbitrationLost):
        arbiter.claim(0)
    assert count.read_text() == "\n"
    loser = ExecArbiter("exit 1")
    for _ in range(2):
        with pytest.raises(ArbitrationLost):
            loser.claim(0)
    assert not loser.still_holds(0)


def test_an_undecided_fencing_can_be_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    arbiter = ExecArbiter(f"test -e {flag} || exit 3")
    with pytest.raises(ArbitrationError, match="exited with 3"):
        arbiter.claim(0)
    assert arbiter.still_holds(0)
    flag.touch()
    assert arbiter.claim(0).generation == 1


def test_a_fencing_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    arbiter = ExecArbiter(
        f"trap '' TERM; sleep 300 & echo $! > {pids}; echo $$ >> {pids}; wait; sleep 300", timeout_s=0.5
    )
    with pytest.raises(ArbitrationError, match=r"took longer than 0.5 s and was killed"):
        arbiter.claim(0)
    deadline = time.monotonic() + 10
    for pid in pids.read_text().split():
        while running(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not running(int(pid))
    assert arbiter.current() == 0


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_child_left_behind_does_not_hold_up_the_claim(tmp_path: Path) -> None:
    started = time.monotonic()
    pid_file = tmp_path / "pid"
    ExecArbiter(f"sleep 60 & echo $! > {pid_file}; exit 0").claim(0)
    assert time.monotonic() - started < 30
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


# None, and names.


def test_none_warns_and_lets_everybody_win() -> None:
    with pytest.warns(RuntimeWarning, match="both sides can run the VM at once"):
        arbiters = [arbiter_from_uri("none"), NoArbiter()]
    assert [arbiter.claim(0).generation for arbiter in arbiters] == [1, 1]
    with pytest.raises(ArbitrationLost):
        arbiters[0].claim(0)


@pytest.mark.parametrize("uri", ["", "none:", "None", "file:", "file", "exec:", "exec:  ", "/tmp", "etcd:", "etcd"])
def test_other_names_are_no_arbiter(uri: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ArbitrationError, match="names no arbiter"):
            arbiter_from_uri(uri)


