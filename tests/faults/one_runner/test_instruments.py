"""The hosts and the clock do what the verdicts rest on."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.faults.one_runner.hosts import Hosts
from tests.faults.one_runner.output import BEAT_PORT, Output, Run, overlaps, runs_of
from tests.faults.one_runner.run import Place

pytestmark = pytest.mark.usefixtures("hosts_can_be_made")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Place() as made:
        yield made


def reaches(hosts: Hosts, origin: str, target: str) -> bool:
    """Whether what ``origin`` sends arrives at ``target``: that way only."""
    with hosts[target].socket(socket.SOCK_DGRAM) as inbox, hosts[origin].socket(socket.SOCK_DGRAM) as outbox:
        inbox.bind((hosts[target].address, 0))
        inbox.settimeout(0.2)
        outbox.sendto(b"x", inbox.getsockname())
        with contextlib.suppress(TimeoutError):
            return inbox.recv(1) == b"x"
        return False


def test_a_link_is_cut_one_way(place: Place) -> None:
    hosts = place.hosts
    assert reaches(hosts, "primary", "secondary")
    hosts.cut("primary", "secondary")
    assert not reaches(hosts, "primary", "secondary")
    assert reaches(hosts, "secondary", "primary")
    assert reaches(hosts, "primary", "arbiter")
    hosts.mend("primary", "secondary")
    assert reaches(hosts, "primary", "secondary")


def test_a_share_is_taken_from_one_host(place: Place) -> None:
    hosts = place.hosts
    (hosts.share / "seen").write_text("by both")
    for name in ("primary", "secondary"):
        assert hosts[name].run("cat", str(hosts.mounted / "seen")) == "by both"
    hosts["primary"].run("mv", str(hosts.mounted / "seen"), str(hosts.mounted / "moved"))
    assert "moved" in hosts["secondary"].run("ls", str(hosts.mounted))
    hosts.unmount("primary")
    assert "moved" not in hosts["primary"].run("ls", str(hosts.mounted))
    assert "moved" in hosts["secondary"].run("ls", str(hosts.mounted))
    hosts.mount("primary")
    assert "moved" in hosts["primary"].run("ls", str(hosts.mounted))


@pytest.mark.soak
def test_a_share_hangs_for_one_host_and_goes_on(place: Place) -> None:
    hosts = place.hosts
    (hosts.share / "here").touch()
    hosts.hang("primary")
    dies = hosts["primary"].start(["cat", str(hosts.mounted / "here")])
    waits = hosts["primary"].start(["touch", str(hosts.mounted / "made")])
    time.sleep(0.5)
    assert waits.poll() is None and dies.poll() is None
    hosts["secondary"].run("ls", str(hosts.mounted))
    dies.kill()
    assert dies.wait(5) == -9
    hosts.unhang("primary")
    assert waits.wait(10) == 0
    assert {path.name for path in hosts.share.iterdir()} >= {"made"}


def beating(place: Place) -> str:
    return (f"import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n"
            f"while 1: s.sendto(b'x',('127.0.0.1',{BEAT_PORT})); time.sleep(.001)")


def test_a_host_freezes_at_once_and_dies_at_once(place: Place) -> None:
    host, output = place.hosts["primary"], place.outputs["primary"]
    output.clear()
    process = host.start(["python3", "-c", beating(place)])
    deadline = time.monotonic() + 20
    while not output.runs_now():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host.freeze()
    time.sleep(0.3)
    last = output.last()
    time.sleep(0.3)
    assert output.last() == last
    host.thaw()
    while output.last() == last:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host.kill()
    last = output.last()
    assert process.wait(5) == -9
    time.sleep(0.1)
    assert output.last() == last
    output.clear()


def test_a_stamp_is_the_time_of_the_output_not_of_its_reading(place: Place) -> None:
    output = Output(place.hosts["arbiter"])
    try:
        with place.hosts["arbiter"].socket(socket.SOCK_DGRAM) as sender:
            bounds = []
            for _ in range(50):
                before = time.time()
                sender.sendto(b"x", ("127.0.0.1", BEAT_PORT))
                bounds.append((before, time.time()))
                time.sleep(0.002)
        time.sleep(0.5)
        times = output.read()
        assert len(times) == len(bounds)
        assert all(before - 1e-4 <= stamp <= after + 1e-4 for stamp, (before, after) in zip(times, bounds, strict=True))
    finally:
        output.close()


def test_a_power_switch_works_one_way_only(place: Place) -> None:
    uri = place.arbiters.make("exec")
    command = ["sh", "-c", uri.removeprefix("exec:")]
    hosts = place.hosts
    victim = hosts["secondary"].start(["sleep", "100"])
    place.arbiters.take_away("exec", "primary")
    unreachable = hosts["primary"].start(["env", "COLO_ROLE=primary", *command])
    assert unreachable.wait(10) == 2
    assert victim.poll() is None
    place.arbiters.give_back("exec", "primary")
    assert hosts["primary"].start(["env", "COLO_ROLE=primary", *command]).wait(10) == 0
    assert victim.wait(5) == -9
    assert hosts["secondary"].start(["env", "COLO_ROLE=secondary", *command]).wait(10) == 1
    assert hosts["primary"].start(["env", "COLO_ROLE=primary", *command]).wait(10) == 0


def test_beats_become_runs_and_runs_overlap() -> None:
    one = runs_of([0.0, 0.001, 0.002, 0.1, 0.101])
    assert one == [Run(0.0, 0.002), Run(0.1, 0.101)]
    assert overlaps(one, [Run(0.002, 0.1)]) == []
    assert overlaps(one, [Run(0.001, 0.1005)]) == [Run(0.001, 0.002), Run(0.1, 0.1005)]
    assert runs_of([]) == []
