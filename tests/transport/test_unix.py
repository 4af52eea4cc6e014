"""Unix sockets: private, never stolen, never left behind."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from colo.errors import AddressError, ChannelError, DeadlineExceeded
from colo.transport import connect, listen
from colo.transport import unix as unix_module

ROOT = Path(__file__).parents[2]


def test_bytes_go_both_ways_and_nothing_is_left_behind(short_path: Path) -> None:
    with listen(f"unix:{short_path}/s") as listener:
        assert listener.address == f"unix:{short_path}/s"
        with connect(listener.address, 5) as ours, listener.accept(5) as theirs:
            ours.send(b"question", timeout_s=5)
            assert theirs.receive(100, timeout_s=5) == b"question"
            theirs.send(b"answer", timeout_s=5)
            assert ours.receive(100, timeout_s=5) == b"answer"
        assert os.listdir(short_path) == ["s"]
    assert os.listdir(short_path) == []


def test_the_socket_is_private_from_the_first_instant(short_path: Path) -> None:
    """Watched from the side while it is made again and again, under a umask that forbids nothing."""
    path = short_path / "s"
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name in os.listdir(short_path):
                try:
                    info = os.lstat(short_path / name)
                except OSError:
                    continue
                if stat.S_ISSOCK(info.st_mode):
                    seen.add(stat.S_IMODE(info.st_mode))
                else:
                    assert stat.S_IMODE(info.st_mode) == 0o700

    umask = os.umask(0)
    try:
        thread = threading.Thread(target=watch)
        thread.start()
        for _ in range(200):
            listen(f"unix:{path}").close()
        with listen(f"unix:{path}"):
            time.sleep(0.05)
        done.set()
        thread.join()
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
    assert seen == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_others_cannot_connect(short_path: Path) -> None:
    short_path.chmod(0o755)
    script = f"""
        import os
        from colo.transport import connect
        os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
        try:
            connect("unix:{short_path}/s", 5)
        except Exception as error:
            print(error)
    """
    with listen(f"unix:{short_path}/s"):
        command = [sys.executable, "-c", textwrap.dedent(script)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Permission denied" in result.stdout


def test_a_live_socket_is_never_taken_away(short_path: Path) -> None:
    with listen(f"unix:{short_path}/s", backlog=1) as listener:
        for _ in range(5):
            with pytest.raises(ChannelError, match="it is in use"):
                listen(listener.address)
        # It was not even bothered: nothing waits to be accepted.
        with pytest.raises(DeadlineExceeded):
            listener.accept(0)
        with connect(listener.address, 5), listener.accept(5):
            pass
        assert os.listdir(short_path) == ["s"]


def test_a_live_socket_whose_queue_is_full_is_in_use_too(short_path: Path) -> None:
    with listen(f"unix:{short_path}/s", backlog=0) as listener:
        waiting = connect(listener.address, 5)
        with pytest.raises(ChannelError, match="it is in use"):
            listen(listener.address)
        with pytest.raises(DeadlineExceeded, match="does not accept in time") as caught:
            connect(listener.address, 0.1)
        assert caught.value.phase == "connect"
        with listener.accept(5), connect(listener.address, 5):
            waiting.close()


def test_a_stale_socket_of_a_killed_process_is_replaced(short_path: Path) -> None:
    script = f"""
        import time
        from colo.transport import listen
        listener = listen("unix:{short_path}/s")
        print("up", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with pytest.raises(ChannelError, match="it is in use"):
            listen(f"unix:{short_path}/s")
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert os.listdir(short_path) == ["s"]
    with pytest.raises(ChannelError, match="nobody listens there any more"):
        connect(f"unix:{short_path}/s", 5)
    with listen(f"unix:{short_path}/s") as listener, connect(listener.address, 5), listener.accept(5):
        pass
    assert os.listdir(short_path) == []


def test_a_lock_that_is_never_given_back_does_not_keep_us_from_listening(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_module, "LOCK_S", 0.05)
    directory = os.open(short_path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with listen(f"unix:{short_path}/s") as listener, connect(listener.address, 5), listener.accept(5):
            pass
    finally:
        os.close(directory)


def test_of_many_that_find_a_stale_socket_exactly_one_gets_it(short_path: Path) -> None:
    path = short_path / "s"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        won, refused = [], []
        start = threading.Barrier(6)

        def attempt(
            start: threading.Barrier = start, won: list[object] = won, refused: list[object] = refused
        ) -> None:
            start.wait()
            try:
                won.append(listen(f"unix:{path}"))
            except ChannelError as error:
                refused.append(error)

        threads = [threading.Thread(target=attempt) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(refused)) == (1, 5)
        with connect(f"unix:{path}", 5), won[0].accept(5):
            pass
        won[0].close()
        assert os.listdir(short_path) == []


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_never_removed(short_path: Path, kind: str) -> None:
    path = short_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(short_path / "elsewhere")
    with pytest.raises(AddressError, match="is no socket; use another path"):
        listen(f"unix:{path}")
    assert os.listdir(short_path) == ["s"]


def test_closing_leaves_a_socket_alone_that_is_not_ours(short_path: Path) -> None:
    path = short_path / "s"
    listener = listen(f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert path.exists()


def test_a_forked_childs_exit_does_not_take_the_name_away(short_path: Path) -> None:
    with listen(f"unix:{short_path}/s") as listener:
        child = os.fork()
        if child == 0:
            listener.close()
            os._exit(0)
        os.waitpid(child, 0)
        with connect(listener.address, 5), listener.accept(5):
            pass


def test_a_relative_path_is_removed_after_a_change_of_directory(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_path)
    listener = listen("unix:s")
    monkeypatch.chdir("/")
    assert (short_path / "s").exists()
    listener.close()
    assert os.listdir(short_path) == []


def test_the_longest_path_works_and_a_longer_one_is_refused(short_path: Path) -> None:
    name = "s" * (107 - len(str(short_path)) - 1)
    with listen(f"unix:{short_path}/{name}") as listener, connect(listener.address, 5), listener.accept(5):
        pass
    with pytest.raises(AddressError, match="may have 107"):
        listen(f"unix:{short_path}/{name}s")


def test_no_directory_and_no_socket_are_said(short_path: Path) -> None:
    with pytest.raises(ChannelError, match="No such file or directory"):
        listen(f"unix:{short_path}/none/s")
    with pytest.raises(ChannelError, match="is the other side listening"):
        connect(f"unix:{short_path}/s", 5)
    assert os.listdir(short_path) == []
