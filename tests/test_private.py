"""Directories and files that strangers have planted are not used, and nothing is deleted through them."""

from __future__ import annotations

import ctypes
import grp
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.errors import StorageError
from colo.private import PrivateDirectory
from tests.strangers import STRANGER, as_user, needs_root


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter (and a stranger find), on a path that is root's or ours."""
    with tempfile.TemporaryDirectory(prefix="colo-private-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_missing_directory_is_made_for_this_user_alone(place: Path) -> None:
    old = os.umask(0)
    try:
        with PrivateDirectory.open(place / "a" / "b") as made:
            assert made.made and made.path == place / "a" / "b"
            made.write("file", b"data")
            assert made.read("file", 10) == b"data"
    finally:
        os.umask(old)
    assert [(place / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/file")] == [0o700, 0o700, 0o600]
    with PrivateDirectory.open(place / "a" / "b") as again:
        assert not again.made


def test_it_is_not_made_when_that_was_not_asked_for(place: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        PrivateDirectory.open(place / "a", make=False)
    assert not (place / "a").exists()


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777])
def test_a_secret_directory_that_others_may_enter_is_refused(place: Path, mode: int) -> None:
    (place / "open").mkdir()
    (place / "open").chmod(mode)
    with pytest.raises(StorageError, match="chmod 700"):
        PrivateDirectory.open(place / "open")


def test_what_is_not_secret_may_be_looked_at_and_not_changed(place: Path) -> None:
    (place / "open").mkdir(mode=0o755)
    PrivateDirectory.open(place / "open", secret=False).close()
    (place / "open").chmod(0o777)
    with pytest.raises(StorageError, match="chmod go-w"):
        PrivateDirectory.open(place / "open", secret=False)
    (place / "open").chmod(0o1777)
    PrivateDirectory.open(place / "open", secret=False).close()


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_component_that_others_may_write_to_is_refused_at_every_depth(place: Path, depth: int) -> None:
    parts = [place / "a", place / "a/b", place / "a/b/c", place / "a/b/c/d"]
    for part in parts:
        part.mkdir(mode=0o700)
    parts[depth].chmod(0o707)
    with pytest.raises(StorageError, match=f"{parts[depth]}.*chmod"):
        PrivateDirectory.open(parts[-1])
    parts[depth].chmod(0o1777 if depth < 3 else 0o700)
    PrivateDirectory.open(parts[-1]).close()


def test_a_group_may_write_where_it_is_the_owners_own_and_nobody_else_has_it(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True, mode=0o700)
    (place / "a").chmod(0o770)
    if os.geteuid() == 0:
        os.chown(place / "a", 0, STRANGER)  # a group without a name: nobody knows who is in it
        with pytest.raises(StorageError, match="chmod go-w"):
            PrivateDirectory.open(place / "a" / "b")
        for empty in (each.gr_gid for each in grp.getgrall() if each.gr_gid and not each.gr_mem):
            os.chown(place / "a", 0, empty)  # nobody is in it, and programs may be set to run as it
            with pytest.raises(StorageError, match="chmod go-w"):
                PrivateDirectory.open(place / "a" / "b")
        os.chown(place / "a", 0, 0)
        PrivateDirectory.open(place / "a" / "b").close()


def test_an_access_control_list_that_lets_another_write_is_seen() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        inner = Path(name) / "a" / "b"
        inner.mkdir(parents=True, mode=0o700)
        entries = ((1, 7, -1), (2, 7, STRANGER), (4, 0, -1), (16, 7, -1), (32, 0, -1))
        packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        try:
            os.setxattr(inner.parent, "system.posix_acl_access", packed)
        except OSError as error:
            pytest.skip(f"/dev/shm has no access control lists: {error}")
        assert inner.parent.stat().st_mode & 0o777 == 0o770
        with pytest.raises(StorageError, match="chmod go-w"):
            PrivateDirectory.open(inner)


@needs_root
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_directory_of_another_user_is_refused_at_every_depth(place: Path, depth: int) -> None:
    parts = [place / "a", place / "a/b", place / "a/b/c"]
    for part in parts:
        part.mkdir(mode=0o700)
    os.chown(parts[depth], STRANGER, STRANGER)
    with pytest.raises(StorageError, match=f"{parts[depth]} belongs to uid {STRANGER}"):
        PrivateDirectory.open(parts[-1])


@needs_root
def test_what_a_stranger_planted_in_a_sticky_directory_is_refused(place: Path) -> None:
    shared = place / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (place / "victim" / "blocks").mkdir(parents=True, mode=0o700)
    (place / "victim" / "blocks" / "precious").write_text("kept")

    def plant() -> None:
        os.mkdir(shared / "directory", 0o700)
        os.symlink(place / "victim", shared / "link")
        os.mkfifo(shared / "fifo")

    assert as_user(STRANGER, plant) == 0
    for name, why in (("directory", "belongs to"), ("link", "link"), ("fifo", "fifo"), ("link/blocks", "link")):
        with pytest.raises(StorageError, match=why):
            PrivateDirectory.open(shared / name)
    assert (place / "victim" / "blocks" / "precious").read_text() == "kept"


@needs_root
def test_an_ordinary_user_is_as_safe_from_others(place: Path) -> None:
    shared = place / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    assert as_user(STRANGER + 1, lambda: (shared / "planted").mkdir(mode=0o777)) == 0

    def use() -> None:
        with PrivateDirectory.open(shared / "mine" / "deep") as mine:
            mine.write("file", b"data")
        for name in ("planted", "planted/deep"):
            with pytest.raises(StorageError, match="belongs to uid"):
                PrivateDirectory.open(shared / name)

    assert as_user(STRANGER, use) == 0
    assert (shared / "mine" / "deep" / "file").stat().st_uid == STRANGER
    with pytest.raises(StorageError, match=f"mine belongs to uid {STRANGER}"):
        PrivateDirectory.open(shared / "mine" / "deep")  # root does not walk into a user's directories either


def test_a_link_of_our_own_is_followed_where_nobody_else_can_put_one(place: Path) -> None:
    (place / "real").mkdir(mode=0o700)
    (place / "absolute").symlink_to(place / "real")
    (place / "relative").symlink_to("./real/../real")
    for name in ("absolute", "relative"):
        with PrivateDirectory.open(place / name / "inner") as found:
            assert os.fstat(found.fd).st_ino == (place / "real" / "inner").stat().st_ino


def test_no_link_is_followed_in_a_directory_where_others_may_put_them(place: Path) -> None:
    (place / "real").mkdir(mode=0o700)
    shared = place / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(place / "real")
    with pytest.raises(StorageError, match="link that another user may have put there"):
        PrivateDirectory.open(shared / "link")


def test_links_in_a_ring_end(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises(StorageError, match="more than 40 links"):
        PrivateDirectory.open(place / "a")


def test_a_relative_path_is_seen_from_the_working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with PrivateDirectory.open("x/../y/z") as found:
        assert (place / "y" / "z").stat().st_ino == os.fstat(found.fd).st_ino
        monkeypatch.chdir("/")
        found.write("here", b"")
    assert (place / "y" / "z" / "here").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0b"])
def test_names_are_plain(place: Path, name: str) -> None:
    with PrivateDirectory.open(place / "d") as directory:
        for use in (directory.unlink, directory.rmdir, directory.stat, directory.directory, directory.address,
                    lambda n: directory.open_file(n, os.O_RDONLY), lambda n: directory.write(n, b"")):
            with pytest.raises(StorageError, match="no name"):
                use(name)


def test_a_path_with_a_nul_is_refused(place: Path) -> None:
    with pytest.raises(StorageError, match="NUL"):
        PrivateDirectory.open(f"{place}/a\0b")


def test_files_are_never_opened_through_links(place: Path) -> None:
    victim = place / "victim"
    victim.write_text("precious")
    with PrivateDirectory.open(place / "d") as directory:
        (place / "d" / "soft").symlink_to(victim)
        os.link(victim, place / "d" / "hard")
        for name, why in (("soft", "link"), ("hard", "2 names")):
            for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC):
                with pytest.raises(StorageError, match=why):
                    directory.open_file(name, flags)
        assert victim.read_text() == "precious"
        directory.write("soft", b"ours")
        directory.write("hard", b"ours")
        assert victim.read_text() == "precious" and directory.read("soft", 99) == directory.read("hard", 99) == b"ours"


def test_a_fifo_a_socket_or_a_device_in_place_of_a_file_is_refused_without_waiting(place: Path) -> None:
    with PrivateDirectory.open(place / "d") as directory, socket.socket(socket.AF_UNIX) as sock:
        os.mkfifo(place / "d" / "fifo")
        sock.bind(directory.address("socket"))
        (place / "d" / "sub").mkdir()
        for name in ("fifo", "socket", "sub"):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                with pytest.raises(StorageError, match=r"fifo|cannot be opened|directory"):
                    directory.open_file(name, flags)


@needs_root
def test_a_file_that_a_stranger_left_is_refused(place: Path) -> None:
    with PrivateDirectory.open(place / "d") as directory:
        (place / "d" / "file").write_text("planted")
        os.chown(place / "d" / "file", STRANGER, STRANGER)
        with pytest.raises(StorageError, match=f"belongs to uid {STRANGER}"):
            directory.read("file", 99)


def test_an_opened_file_is_an_ordinary_one(place: Path) -> None:
    with PrivateDirectory.open(place / "d") as directory:
        directory.write("file", b"old")
        with os.fdopen(directory.open_file("file", os.O_RDWR | os.O_TRUNC), "r+b") as file:
            assert os.get_blocking(file.fileno()) and not os.get_inheritable(file.fileno())
            assert file.read() == b""
        with pytest.raises(StorageError, match="more than 2 bytes"):
            directory.write("file", b"long")
            directory.read("file", 2)


def test_what_was_written_is_whole_or_the_old(place: Path) -> None:
    with PrivateDirectory.open(place / "d") as directory:
        directory.write("file", b"old", durable=True)
        (place / "d" / "dir").mkdir()
        with pytest.raises(StorageError, match="directory"):
            directory.write("dir", b"x")
        assert directory.names() == ["dir", "file"]


def test_nothing_is_deleted_through_a_link(place: Path) -> None:
    (place / "victim").mkdir()
    (place / "victim" / "file").write_text("kept")
    with PrivateDirectory.open(place / "d") as directory:
        (place / "d" / "link").symlink_to(place / "victim")
        with pytest.raises(StorageError, match="link"):
            directory.directory("link")
        with pytest.raises(StorageError, match="cannot be removed"):
            directory.rmdir("link")
        directory.unlink("link")
        directory.unlink("link")
        with pytest.raises(StorageError, match="No such file"):
            directory.unlink("link", missing_ok=False)
    assert (place / "victim" / "file").read_text() == "kept"


def test_it_stays_the_directory_that_was_opened_whatever_its_name_becomes(place: Path) -> None:
    (place / "victim").mkdir()
    (place / "victim" / "file").write_text("kept")
    directory = PrivateDirectory.open(place / "d")
    directory.write("file", b"ours")
    (place / "d").rename(place / "moved")
    (place / "d").symlink_to(place / "victim")
    directory.write("other", b"ours")
    directory.unlink("file")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(directory.address("socket"))
    assert (place / "victim" / "file").read_text() == "kept"
    assert sorted(path.name for path in (place / "moved").iterdir()) == ["other", "socket"]
    for name in directory.names():
        directory.unlink(name)
    directory.remove()
    assert (place / "moved").is_dir() and (place / "d").is_symlink()  # the name was another's by then


def test_only_what_was_made_is_removed_and_only_when_empty(place: Path) -> None:
    (place / "there").mkdir(mode=0o700)
    PrivateDirectory.open(place / "there").remove()
    assert (place / "there").is_dir()
    PrivateDirectory.open(place / "new").remove()
    assert not (place / "new").exists()
    kept = PrivateDirectory.open(place / "new")
    kept.directory("inner").remove()
    kept.write("users", b"")
    kept.remove()
    assert [path.name for path in (place / "new").iterdir()] == ["users"]


def test_a_directory_that_is_swapped_for_a_link_all_the_time_never_leads_elsewhere(place: Path) -> None:
    """By somebody with the right to do so, so that only what is done by descriptor helps."""
    (place / "victim" / "inner").mkdir(parents=True, mode=0o700)
    (place / "real").mkdir(mode=0o700)
    (place / "bait").symlink_to(place / "victim")
    shared = place / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    (place / "real").rename(shared / "x")
    (place / "bait").rename(shared / "y")
    exchange = ctypes.CDLL(None, use_errno=True).renameat2
    x, y = os.fsencode(shared / "x"), os.fsencode(shared / "y")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            assert exchange(-100, x, -100, y, 2) == 0  # AT_FDCWD, RENAME_EXCHANGE: there is no instant without either

    thread = threading.Thread(target=swap)
    thread.start()
    opened = refused = 0
    until = time.monotonic() + 60
    try:
        while (opened < 50 or refused < 50) and time.monotonic() < until:
            try:
                with PrivateDirectory.open(shared / "x" / "inner") as found:
                    found.write("file", b"secret")
                opened += 1
            except StorageError as error:
                assert "link" in str(error)
                refused += 1
            assert not (place / "victim" / "inner" / "file").exists()
    finally:
        ended.set()
        thread.join()
    assert opened >= 50 and refused >= 50


def test_no_descriptor_is_left_open(place: Path) -> None:
    (place / "loop").symlink_to("loop")
    (place / "link").symlink_to(place / "d")
    (place / "file").touch()
    (place / "open").mkdir(mode=0o777)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for name in ("d/e", "link/e", "loop", "file/x", "file", "open"):
            try:
                with PrivateDirectory.open(place / name) as found:
                    found.directory("sub").close()
                    found.write("a", b"")
                    for bad in ("sub", "gone"):
                        with pytest.raises(StorageError):
                            found.open_file(bad, os.O_RDWR)
            except StorageError:
                pass
    assert len(os.listdir("/proc/self/fd")) == before
