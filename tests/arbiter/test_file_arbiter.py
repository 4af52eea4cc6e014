"""Exactly one side wins a generation, whatever happens to it meanwhile."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import Claim, Runner, arbiter_from_uri, directory, file_arbiter, init_arbiter
from colo.arbiter.file_arbiter import FileArbiter
from colo.arbiter.file_making import make_file_arbiter
from colo.errors import ArbitrationError, ArbitrationLost

ROOT = Path(__file__).parents[2]
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "arbiter"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def fast_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """On tmpfs where there is one: thousands of claims, each with its fsyncs, are not to wear a disk."""
    base = Path("/dev/shm")
    if not os.access(base, os.W_OK):
        base = tmp_path_factory.mktemp("shared")
    directory = base / f"colo-test-arbiter-{os.getpid()}-{time.monotonic_ns()}"
    directory.mkdir(mode=0o700)
    yield directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def made(directory: Path, **options: Any) -> FileArbiter:
    make_file_arbiter(directory, vm="test")
    return FileArbiter(directory, **options)


def state_of(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.startswith(("generation", "claim", "seed")))


# One side alone.


def test_the_first_generation_is_0_and_each_claim_takes_the_next(shared: Path) -> None:
    init_arbiter(f"file:{shared}", vm="test")
    with arbiter_from_uri(f"file:{shared}", role="secondary") as arbiter:
        assert arbiter.current() == 0
        assert state_of(shared) == ["generation.0"]
        for generation in range(3):
            assert arbiter.still_holds(generation)
            claim = arbiter.claim(generation, reason="reset")
            assert claim.generation == generation + 1
            assert not arbiter.still_holds(generation)
            assert arbiter.still_holds(generation + 1)
            assert state_of(shared) == [f"generation.{generation + 1}"]


def test_the_file_says_who_holds_it(shared: Path) -> None:
    claim = made(shared, role="secondary").claim(0, reason="silence")
    record = json.loads((shared / "generation.1").read_text())
    assert record["role"] == "secondary"
    assert claim.runner == Runner.of()
    assert (record["host"], record["pid"], record["reason"]) == (claim.runner.host, os.getpid(), "silence")
    assert (record["generation"], record["vm"]) == (1, "test")
    other = FileArbiter(shared, role="primary")
    with pytest.raises(
        ArbitrationLost, match=rf"generation 0 is over, 1 holds: .* \(pid {os.getpid()}, secondary\) since 2"
    ):
        other.claim(0)


def test_a_repeated_takeover_of_the_same_generation_is_refused_to_both_sides(shared: Path) -> None:
    winner = made(shared)
    winner.claim(0)
    for arbiter in (winner, FileArbiter(shared), winner):
        with pytest.raises(ArbitrationLost):
            arbiter.claim(0)
    assert winner.current() == 1
    assert FileArbiter(shared).claim(1).generation == 2
    assert not winner.still_holds(1)
    with pytest.raises(ArbitrationLost):
        winner.claim(1)


def test_a_generation_that_has_not_been_is_not_claimed(shared: Path) -> None:
    arbiter = made(shared)
    with pytest.raises(ArbitrationError, match="is this the right directory") as caught:
        arbiter.claim(5)
    assert not isinstance(caught.value, ArbitrationLost)
    assert state_of(shared) == ["generation.0"]


@pytest.mark.parametrize("generation", [-1, 10**15, True, 1.0, "0"])
def test_numbers_that_are_no_generation_are_refused(shared: Path, generation: int) -> None:
    arbiter = made(shared)
    with pytest.raises(ValueError, match="a generation is an integer"):
        arbiter.claim(generation)


def test_a_rename_by_hand_is_a_claim_too(shared: Path) -> None:
    arbiter = made(shared)
    (shared / "generation.0").rename(shared / "generation.1")
    assert not arbiter.still_holds(0)
    with pytest.raises(ArbitrationLost, match="generation 0 is over, 1 holds"):
        arbiter.claim(0)
    assert arbiter.claim(1).generation == 2


def test_an_empty_file_made_by_hand_will_do(shared: Path) -> None:
    made(shared)
    (shared / "generation.0").unlink()
    (shared / "generation.7").touch()
    arbiter = FileArbiter(shared)
    assert arbiter.holder().unknown
    assert arbiter.current() == 7
    assert arbiter.claim(7).generation == 8


# Directories that decide nothing.


def test_an_empty_directory_is_an_error_that_says_what_to_do(shared: Path) -> None:
    for name in ("lost+found", "README"):
        with pytest.raises(ArbitrationError, match=rf"is what both sides share mounted.*colo arbiter init file:{shared} --vm NAME"):
            arbiter_from_uri(f"file:{shared}")
        assert state_of(shared) == []
        (shared / name).touch()


def test_a_generation_that_was_removed_is_an_error_that_says_what_to_do(shared: Path) -> None:
    made(shared)
    (shared / "generation.0").unlink()
    with pytest.raises(ArbitrationError, match=r"no generation in it: its making was not finished .* or the file was removed"):
        FileArbiter(shared)
    with pytest.raises(ArbitrationError, match=r"no generation in it"):
        make_file_arbiter(shared, vm="test")
    assert state_of(shared) == []


def test_several_generations_are_an_error_that_names_them(shared: Path) -> None:
    made(shared)
    for name in ("generation.3", "generation.4"):
        (shared / name).touch()
    with pytest.raises(ArbitrationError, match=r"several generations: generation.0, generation.3, generation.4; find out"):
        made(shared)
    assert state_of(shared) == ["generation.0", "generation.3", "generation.4"]


@pytest.mark.parametrize(
    "name",
    [
        "generation.01",
        "generation.-1",
        "generation.1.bak",
        "generation.",
        "generation.٣",
        "generation.1\n",
        "generation.1e3",
        "generation.9999999999999999",
        "claim.1.xyz",
        "claim.0.00000000000000000000000000000000",
        "generations",
    ],
)
def test_names_are_parsed_strictly(shared: Path, name: str) -> None:
    arbiter = made(shared)
    (shared / name).touch()
    with pytest.raises(ArbitrationError, match="looks like a generation and is none"):
        arbiter.claim(0)
    (shared / name).unlink()
    assert arbiter.claim(0).generation == 1


def test_what_has_another_name_does_not_matter(shared: Path) -> None:
    arbiter = made(shared)
    for name in (".nfs0001", "README", "lost+found"):
        (shared / name).touch()
    assert arbiter.claim(0).generation == 1


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo"])
def test_a_generation_is_a_regular_file(shared: Path, kind: str) -> None:
    made(shared)
    path = shared / "generation.0"
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("/etc/passwd")
    else:
        os.mkfifo(path)
    with pytest.raises(ArbitrationError, match="not a regular file"):
        FileArbiter(shared)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"generation": 1', b"{}" * 10_000, b"null"])
def test_what_is_in_the_file_decides_nothing(shared: Path, content: bytes) -> None:
    arbiter = made(shared)
    (shared / "generation.0").rename(shared / "generation.1")
    (shared / "generation.1").write_bytes(content)
    assert arbiter.holder().unknown
    with pytest.raises(ArbitrationLost, match="generation 0 is over, 1 holds"):
        arbiter.claim(0)
    assert arbiter.claim(1).generation == 2


def test_a_directory_that_everybody_may_write_to_is_refused(shared: Path) -> None:
    made(shared)
    for mode in (0o777, 0o1777):
        shared.chmod(mode)
        with pytest.raises(ArbitrationError, match=rf"mode {mode:04o}.*chmod go-w"):
            FileArbiter(shared)
    shared.chmod(0o700)
    shared.parent.chmod(0o777)
    with pytest.raises(ArbitrationError, match=rf"others may write to {shared.parent} "):
        FileArbiter(shared)


def test_no_directory_and_no_directory_but_a_file_are_refused(shared: Path) -> None:
    with pytest.raises(ArbitrationError, match="No such file or directory; make it"):
        made(shared / "none")
    (shared / "file").touch()
    with pytest.raises(ArbitrationError, match="is a file and no directory"):
        made(shared / "file")


def test_a_directory_that_vanishes_decides_nothing(shared: Path) -> None:
    arbiter = made(shared)
    shared.rename(shared.with_name("elsewhere"))
    for attempt in (lambda: arbiter.claim(0), arbiter.current, lambda: arbiter.still_holds(0)):
        with pytest.raises(ArbitrationError, match="No such file") as caught:
            attempt()
        assert not isinstance(caught.value, ArbitrationLost)
    shared.mkdir()  # as when the share is not mounted
    with pytest.raises(ArbitrationError, match="no arbiter in it"):
        arbiter.claim(0)
    shared.rmdir()
    shared.with_name("elsewhere").rename(shared)
    assert arbiter.claim(0).generation == 1


def as_nobody(directory: Path, code: str) -> str:
    """Run ``code`` with an arbiter ``a`` on ``directory``, as a user without privileges; returns what it
    prints."""
    script = f"""
        import os
        from colo.errors import *
        from colo.arbiter.file_arbiter import FileArbiter
        a = FileArbiter({str(directory)!r})
        os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        try:
            {code}
        except ArbitrationLost: print('lost')
        except ArbitrationError as error: print('undecided:', error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert not result.stderr
    return result.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_directory_that_cannot_be_written_decides_nothing(fast_shared: Path) -> None:
    arbiter = made(fast_shared)
    fast_shared.chmod(0o755)
    (fast_shared / "identity").chmod(0o644)
    said = as_nobody(fast_shared, "print(a.current()); a.claim(0)")
    assert said.startswith("0\nundecided:")
    assert "Permission denied" in said
    assert state_of(fast_shared) == ["generation.0"]
    assert arbiter.claim(0).generation == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "colo-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root, to mount a small tmpfs")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def fill(directory: Path) -> None:
    with open(directory / "filler", "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(OSError, match="No space"):
            file.write(bytes(4096))


def test_on_a_full_disk_a_claim_still_decides(small_disk: Path) -> None:
    arbiter = made(small_disk)
    fill(small_disk)
    assert arbiter.claim(0).generation == 1
    with pytest.raises(ArbitrationLost):
        FileArbiter(small_disk).claim(0)


def test_an_arbiter_is_not_made_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(ArbitrationError, match="No space left"):
        made(small_disk)
    assert os.listdir(small_disk) == ["filler"]
    (small_disk / "filler").unlink()
    assert made(small_disk).current() == 0


def test_a_disk_gone_read_only_decides_nothing(small_disk: Path) -> None:
    arbiter = made(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ArbitrationError, match="Read-only file system") as caught:
        arbiter.claim(0)
    assert not isinstance(caught.value, ArbitrationLost)
    assert arbiter.current() == 0


# Storage that does not answer, or answers too late, or loses the answer.


def test_storage_that_hangs_is_given_up_and_a_claim_that_came_late_is_found_again(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arbiter = made(shared, timeout_s=0.2)
    answers = threading.Event()
    fsync = os.fsync

    def hang(fd: int) -> None:
        answers.wait(30)
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(file_arbiter.os, "fsync", hang)
        with pytest.raises(ArbitrationError, match=r"no answer for 0.2 s"):
            arbiter.claim(0)
        answers.set()
        deadline = time.monotonic() + 10
        while state_of(shared) != ["generation.1"] and time.monotonic() < deadline:
            time.sleep(0.01)
    with pytest.raises(ArbitrationLost):
        FileArbiter(shared).claim(0)
    assert arbiter.claim(0).generation == 1
    with pytest.raises(ArbitrationLost):
        arbiter.claim(0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_rename_whose_answer_was_lost_is_recognised_as_won(
    shared: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """NFS: the server renames, its answer is lost, the client asks again and hears that there is no such
    file."""
    arbiter = made(shared)
    rename = os.rename
    calls = 0

    def lose_the_answer(*args: object, **kwargs: object) -> None:
        nonlocal calls
        rename(*args, **kwargs)  # type: ignore[arg-type]
        calls += 1
        if calls == which + 1:
            raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(file_arbiter.os, "rename", lose_the_answer)
    assert arbiter.claim(0).generation == 1
    assert state_of(shared) == ["generation.1"]
    with pytest.raises(ArbitrationLost):
        FileArbiter(shared).claim(0)


def test_an_error_after_the_rename_leaves_a_claim_that_can_be_made_again(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arbiter = made(shared)

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(file_arbiter.os, "fsync", fail)
        with pytest.raises(ArbitrationError, match="Input/output error"):
            arbiter.claim(0)
    with pytest.raises(ArbitrationLost):
        FileArbiter(shared).claim(0)
    assert arbiter.claim(0).generation == 1


def test_on_a_network_file_system_the_client_is_made_to_look_again(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arbiter = made(shared)
    before = shared.stat().st_mtime_ns
    assert arbiter.current() == 0
    assert shared.stat().st_mtime_ns == before
    monkeypatch.setattr(directory, "_on_network", lambda device: True)
    assert arbiter.current() == 0
    assert shared.stat().st_mtime_ns > before
    assert state_of(shared) == ["generation.0"]


# Killed in the middle.

KILLED = """
    import os, signal, sys
    from colo.arbiter.file_arbiter import FileArbiter
    from colo.arbiter.file_making import make_file_arbiter
    left = int(sys.argv[2])
    def dies(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            global left
            if not sys._getframe(1).f_globals["__name__"].startswith("colo.arbiter"):
                return real(*args, **kwargs)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*args, **kwargs)
        setattr(os, name, call)
    if sys.argv[3] == "claim":
        a = FileArbiter(sys.argv[1])
    for name in ("open", "rename", "fsync", "pwrite", "write", "link", "unlink", "listdir", "close", "stat"):
        dies(name)
    if sys.argv[3] == "claim":
        a.claim(0)
    else:
        make_file_arbiter(sys.argv[1], vm="test")
    print("done", left)
"""


def killed_after(path: Path, calls: int, what: str) -> bool:
    """Run a claim, or the making of an arbiter, and kill it before its system call number ``calls``."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(calls), what],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert result.returncode in {0, -signal.SIGKILL}, result.stderr
    return result.returncode != 0


def test_killed_anywhere_in_a_claim_the_state_stays_decidable(fast_shared: Path) -> None:
    outcomes = []
    generations = set()
    calls = 0
    while True:
        for path in fast_shared.iterdir():
            path.unlink()
        arbiter = made(fast_shared)
        killed = killed_after(fast_shared, calls, "claim")
        assert len(state_of(fast_shared)) == 1
        generation = arbiter.current()
        generations.add(generation)
        survivor = FileArbiter(fast_shared)
        if generation == 0:
            assert killed
            assert survivor.claim(0).generation == 1
        else:
            with pytest.raises(ArbitrationLost):
                survivor.claim(0)
        # Life goes on: the next generation can be claimed, also from a claim that nobody will finish.
        assert survivor.claim(1).generation == 2
        assert state_of(fast_shared) == ["generation.2"]
        outcomes.append(killed)
        if not killed:
            break
        calls += 1
    assert len(outcomes) > 10
    assert generations == {0, 1}


def test_killed_anywhere_in_its_making_an_arbiter_is_made_by_the_next(fast_shared: Path) -> None:
    calls = 0
    while True:
        for path in fast_shared.iterdir():
            path.unlink()
        killed = killed_after(fast_shared, calls, "create")
        arbiter = made(fast_shared)
        assert arbiter.current() == 0
        assert arbiter.claim(0).generation == 1
        # Whoever comes late never begins anew.
        assert made(fast_shared).current() == 1
        if not killed:
            break
        calls += 1
    assert calls > 5


# Both sides at once.


def side(directory: str, role: str, rounds: int, barrier: object, results: Connection) -> None:
    arbiter = FileArbiter(directory, role=role, timeout_s=60)
    won = []
    for generation in range(rounds):
        barrier.wait(60)  # type: ignore[attr-defined]
        try:
            assert arbiter.claim(generation).generation == generation + 1
            won.append(generation)
        except ArbitrationLost:
            pass
    results.send(won)
    results.close()


def test_1000_times_both_sides_at_once_and_exactly_one_wins_each(fast_shared: Path) -> None:
    rounds = 1000
    made(fast_shared)
    barrier = SPAWN.Barrier(2)
    children, ends = [], []
    for role in ("primary", "secondary"):
        here, there = SPAWN.Pipe(duplex=False)
        child = SPAWN.Process(target=side, args=(str(fast_shared), role, rounds, barrier, there))
        child.start()
        there.close()
        children.append(child)
        ends.append(here)
    won = [end.recv() for end in ends]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert sorted(won[0] + won[1]) == list(range(rounds))
    assert won[0]
    assert won[1]
    assert state_of(fast_shared) == [f"generation.{rounds}"]


def crowd(directory: str, role: str, attempts: int, barrier: object, results: Connection) -> None:
    arbiters = [FileArbiter(directory, role=role, timeout_s=100) for _ in range(attempts)]
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    start = threading.Event()

    def attempt(arbiter: FileArbiter) -> None:
        start.wait()
        try:
            arbiter.claim(0)
            outcome = "won"
        except ArbitrationLost:
            outcome = "lost"
        except BaseException as error:
            outcome = repr(error)
        with lock:
            outcomes[outcome] += 1

    threads = [threading.Thread(target=attempt, args=(arbiter,)) for arbiter in arbiters]
    for thread in threads:
        thread.start()
    barrier.wait(60)  # type: ignore[attr-defined]
    start.set()
    for thread in threads:
        thread.join()
    results.send(outcomes)
    results.close()


def test_1000_attempts_at_once_on_one_generation_and_exactly_one_wins(fast_shared: Path) -> None:
    made(fast_shared)
    barrier = SPAWN.Barrier(2)
    children, ends = [], []
    for role in ("primary", "secondary"):
        here, there = SPAWN.Pipe(duplex=False)
        child = SPAWN.Process(target=crowd, args=(str(fast_shared), role, 500, barrier, there))
        child.start()
        there.close()
        children.append(child)
        ends.append(here)
    outcomes = ends[0].recv() + ends[1].recv()
    for child in children:
        child.join(30)
    assert outcomes == {"won": 1, "lost": 999}
    assert state_of(fast_shared) == ["generation.1"]


def test_threads_of_one_side_do_not_take_over_twice(fast_shared: Path) -> None:
    arbiter = made(fast_shared)
    outcomes = []

    def attempt() -> None:
        try:
            outcomes.append(arbiter.claim(0).generation)
        except ArbitrationLost:
            outcomes.append(None)

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {1: 1, None: 15}


def test_many_make_the_arbiter_while_others_already_take_over(fast_shared: Path) -> None:
    for _ in range(20):
        for path in fast_shared.iterdir():
            path.unlink()
        claims: list[Claim] = []
        errors: list[BaseException] = []

        def make_and_claim(claims: list[Claim] = claims, errors: list[BaseException] = errors) -> None:
            try:
                claims.append(made(fast_shared).claim(0))
            except ArbitrationLost:
                pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=make_and_claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(claims) == 1
        assert state_of(fast_shared) == ["generation.1"]


def test_files_are_private(shared: Path) -> None:
    made(shared).claim(0)
    for path in shared.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
