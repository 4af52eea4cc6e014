"""Where a guard is found: by whoever looks, from whatever environment, and nothing else that lies there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.errors import ColoError
from colo.fence.fence import runtime_directories
from colo.fence.left_fenced import answering_guard
from colo.fence.place import CONTROL_NAME, GuardCard, GuardPlace, find_guard, guarded
from tests.strangers import STRANGER, as_user, needs_root

pytestmark = needs_root


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A runtime directory of the stranger's, as a login gives one; what is left in /tmp is removed too."""
    directory = Path(tempfile.mkdtemp(prefix="colo-", dir="/dev/shm"))
    os.chown(directory, STRANGER, STRANGER)
    shutil.rmtree(f"/tmp/colo-{STRANGER}", ignore_errors=True)
    yield directory
    for each in (str(directory), f"/tmp/colo-{STRANGER}"):
        shutil.rmtree(each, ignore_errors=True)


def as_stranger(do: Callable[[int], None]) -> None:
    """``do(pid of a process of the stranger's)``, as the stranger, without XDG_RUNTIME_DIR."""
    def inside() -> None:
        os.environ.pop("XDG_RUNTIME_DIR", None)
        with subprocess.Popen(["sleep", "60"]) as sleeper:
            try:
                do(sleeper.pid)
            finally:
                sleeper.kill()

    assert as_user(STRANGER, inside) == 0


def card(pid: int, vm: str = "vm1") -> GuardCard:
    return GuardCard(vm, pid, "/run/q", "unix:/s", os.getpid())


def test_a_guard_started_by_a_service_is_found_from_a_login_and_the_other_way_round(elsewhere: Path) -> None:
    def look(pid: int) -> None:
        place = GuardPlace(pid)
        assert place.path.parent == Path(f"/tmp/colo-{STRANGER}/colo")
        place.say(card(pid))
        place.close(fence_stays=True)
        os.environ["XDG_RUNTIME_DIR"] = str(elsewhere)
        assert runtime_directories()[0] == elsewhere / "colo"
        assert find_guard("vm1") == (card(pid), place.path)
        again = GuardPlace(pid)
        assert again.path == place.path, "a second guard of one process would not find the fence of the first"
        again.close(fence_stays=False)
        assert not place.path.exists()
        other = GuardPlace(pid)
        assert other.path.parent == elsewhere / "colo"
        other.close(fence_stays=False)

    as_stranger(look)


def test_what_another_user_has_planted_is_passed_over(elsewhere: Path) -> None:
    planted = Path(f"/tmp/colo-{STRANGER}/colo/vm-1-1")
    assert as_user(STRANGER + 1, lambda: planted.mkdir(parents=True, mode=0o777)) == 0

    def look(pid: int) -> None:
        os.environ["XDG_RUNTIME_DIR"] = str(elsewhere)
        assert list(guarded()) == []
        place = GuardPlace(pid)
        assert place.path.parent == elsewhere / "colo"
        place.close(fence_stays=False)

    as_stranger(look)
    assert planted.exists()


def test_who_is_not_there_is_said_with_what_to_do(elsewhere: Path) -> None:
    def look(pid: int) -> None:
        with pytest.raises(ColoError, match=rf"no guard of VM vm1 runs here for this user \(uid {STRANGER}\).*colo protect"):
            find_guard("vm1")
        place = GuardPlace(pid)
        place.say(card(pid))
        with pytest.raises(ColoError, match=r"has no guard any more .* no fence is beside it either.*colo protect --qmp /run/q"):
            answering_guard("vm1")
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(str(place.path / CONTROL_NAME))
            control.listen(1)
            assert answering_guard() == place.path

    as_stranger(look)


def test_a_guard_that_ends_with_its_vm_is_not_cleared_away_by_who_looks(elsewhere: Path) -> None:
    def look(pid: int) -> None:
        with subprocess.Popen(["sleep", "60"]) as vm:
            place = GuardPlace(vm.pid)
            place.say(card(vm.pid))
            control = socket.socket(socket.AF_UNIX)
            control.bind(str(place.path / CONTROL_NAME))
            control.listen(1)
            vm.kill()
        assert [found for found, _ in guarded()] == [card(vm.pid)], "it has yet to say how the VM ended"
        control.close()
        assert list(guarded()) == [] and not place.path.exists()

    as_stranger(look)
