"""Whose an arbiter's directory is, who holds it, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from colo.arbiter import Runner, arbiter_from_uri, init_arbiter
from colo.arbiter.file_arbiter import FileArbiter
from colo.arbiter.record import RECORD_BYTES, holder_text, new_holder, new_identity, parse_holder, parse_identity
from colo.errors import ArbitrationError, ArbitrationLost

UUID = "0b1e5f8e-6d2a-4b57-9d0c-4ad3d1e3a111"
HERE = Runner.of()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "arbiter"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def uri(shared: Path) -> str:
    init_arbiter(f"file:{shared}", vm="vm1", uuid=UUID)
    return f"file:{shared}"


# Whose it is.


def test_it_is_made_once_and_then_known(shared: Path) -> None:
    identity = init_arbiter(f"file:{shared}", vm="vm1", uuid=UUID.upper())
    assert (identity.vm, identity.uuid) == ("vm1", UUID)
    for uuid in (UUID, ""):
        assert init_arbiter(f"file:{shared}", vm="vm1", uuid=uuid) == identity
    sides = [arbiter_from_uri(f"file:{shared}", role=role, vm="vm1", uuid=UUID) for role in ("primary", "secondary")]
    assert [side.identity for side in sides] == [identity, identity]
    assert sides[0].excludes and not sides[0].fences
    assert sorted(os.listdir(shared)) == ["generation.0", "identity"]


def test_two_directories_of_one_vm_are_two_arbiters(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir(mode=0o700)
    assert len({init_arbiter(f"file:{tmp_path / name}", vm="vm1").id for name in ("a", "b")}) == 2


def test_another_vms_is_refused(uri: str) -> None:
    with pytest.raises(ArbitrationError, match=rf"belongs to VM 'vm1' \({UUID}\), not to 'vm2'.*colo arbiter init"):
        arbiter_from_uri(uri, vm="vm2")
    with pytest.raises(ArbitrationError, match=r"belongs to VM 'vm1'.*with UUID 11111111"):
        arbiter_from_uri(uri, vm="vm1", uuid="11111111-1111-1111-1111-111111111111")
    with pytest.raises(ArbitrationError, match=r"belongs to VM 'vm1' .* already: give VM 'vm2' a directory of its own"):
        init_arbiter(uri, vm="vm2")
    with pytest.raises(ArbitrationError, match="already"):
        init_arbiter(uri, vm="vm1", uuid="11111111-1111-1111-1111-111111111111")
    assert arbiter_from_uri(uri, vm="vm1").current() == 0


@pytest.mark.parametrize("vm", ["", " vm", "a\nb", "\x1b[31m", "n" * 65, "ü" * 33, "\udc80"])
def test_what_is_no_name_is_refused(shared: Path, vm: str) -> None:
    with pytest.raises(ArbitrationError, match="cannot be a VM's name"):
        init_arbiter(f"file:{shared}", vm=vm)
    assert os.listdir(shared) == []


def test_what_is_no_uuid_is_refused(shared: Path) -> None:
    with pytest.raises(ArbitrationError, match="is no UUID"):
        init_arbiter(f"file:{shared}", vm="vm1", uuid="vm1")


def test_a_directory_of_an_earlier_format_is_refused(shared: Path) -> None:
    (shared / "created").touch()
    (shared / "generation.3").touch()
    for attempt in (lambda: arbiter_from_uri(f"file:{shared}"), lambda: init_arbiter(f"file:{shared}", vm="vm1")):
        with pytest.raises(ArbitrationError, match=r"no identity in it, only created, generation.3: it was made by an earlier"):
            attempt()
    assert sorted(os.listdir(shared)) == ["created", "generation.3"]


def test_a_copy_is_refused(uri: str, shared: Path) -> None:
    """As when a backup is put back: who holds what it says may have lost the VM since."""
    arbiter = arbiter_from_uri(uri)
    shared.rename(shared.with_name("lost"))
    shutil.copytree(shared.with_name("lost"), shared)
    shared.chmod(0o700)
    for attempt in (arbiter.current, lambda: arbiter.claim(0), lambda: arbiter_from_uri(uri), lambda: init_arbiter(uri, vm="vm1")):
        with pytest.raises(ArbitrationError, match=r"is a copy of an arbiter.*colo arbiter init file:") as caught:
            attempt()
        assert not isinstance(caught.value, ArbitrationLost)
    shutil.rmtree(shared)
    shared.with_name("lost").rename(shared)  # moved, it is the same
    assert arbiter.current() == 0


def test_a_generation_that_went_backwards_is_noticed(uri: str, shared: Path) -> None:
    arbiter = arbiter_from_uri(uri)
    arbiter.claim(0)
    (shared / "generation.1").rename(shared / "generation.0")
    for attempt in (arbiter.current, arbiter.holder, lambda: arbiter.still_holds(1), lambda: arbiter.claim(1)):
        with pytest.raises(ArbitrationError, match="older than generation 1") as caught:
            attempt()
        assert not isinstance(caught.value, ArbitrationLost)


def test_another_arbiter_in_its_place_decides_nothing(uri: str, shared: Path) -> None:
    arbiter = arbiter_from_uri(uri)
    shutil.rmtree(shared)
    shared.mkdir(mode=0o700)
    init_arbiter(uri, vm="vm1")
    with pytest.raises(ArbitrationError, match="another arbiter is there now"):
        arbiter.claim(0)
    assert arbiter_from_uri(uri).current() == 0


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"id": "x"}', b"[" * 900, b'{"id": 1e999}', b"{" * 5000])
def test_an_identity_that_says_nothing_usable_is_refused(uri: str, shared: Path, content: bytes) -> None:
    (shared / "identity").write_bytes(content)
    with pytest.raises(ArbitrationError, match="says nothing usable"):
        arbiter_from_uri(uri)
    with pytest.raises(ArbitrationError, match="says nothing usable"):
        init_arbiter(uri, vm="vm1")


@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory"])
def test_an_identity_is_a_regular_file(uri: str, shared: Path, kind: str) -> None:
    path = shared / "identity"
    content = path.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.with_name("elsewhere").write_bytes(content)
        path.symlink_to("elsewhere")
    with pytest.raises(ArbitrationError):
        arbiter_from_uri(uri)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a link as somebody else")
def test_a_strangers_link_to_the_directory_is_refused(uri: str, shared: Path) -> None:
    link = shared.with_name("link")
    link.symlink_to(shared)
    assert arbiter_from_uri(f"file:{link}").current() == 0  # our own
    os.chown(link, 65534, -1, follow_symlinks=False)
    with pytest.raises(ArbitrationError, match="a link that another user may have put there"):
        arbiter_from_uri(f"file:{link}")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a directory to somebody else")
def test_a_strangers_directory_is_refused(uri: str, shared: Path) -> None:
    os.chown(shared, 65534, -1)
    with pytest.raises(ArbitrationError, match=r"belongs to .*65534\), who could put anything"):
        arbiter_from_uri(uri)


def test_many_make_it_for_two_vms_and_one_gets_it(shared: Path) -> None:
    for _ in range(10):
        for path in shared.iterdir():
            path.unlink()
        got: list[str] = []

        def make(vm: str, got: list[str] = got) -> None:
            try:
                got.append(f"{vm} {init_arbiter(f'file:{shared}', vm=vm).id}")
            except ArbitrationError as error:
                got.append("refused" if "already" in str(error) else repr(error))

        threads = [threading.Thread(target=make, args=(f"vm{number % 2}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got)[:4] == ["refused"] * 4
        assert len(set(got)) == 2
        assert sorted(os.listdir(shared)) == ["generation.0", "identity"]


# Who holds it.


def test_nobody_holds_it_then_somebody_does(uri: str) -> None:
    first = arbiter_from_uri(uri, role="primary")
    holder = first.holder()
    assert holder.free and not holder.unknown and holder.generation == 0 and holder.describe().startswith("nobody since 20")
    far = replace(HERE, host="far")
    claim = first.claim(0, reason="silence", runner=far)
    assert claim.runner == far
    seen = arbiter_from_uri(uri, role="secondary").holder()
    assert (seen.generation, seen.role, seen.runner, seen.reason, seen.token) == (1, "primary", far, "silence", claim.token)
    assert seen.since_s == claim.time_s and not seen.free and not seen.unknown and not seen.closed
    assert seen.describe().startswith(f"far (pid {os.getpid()}, primary) since 20")


def test_a_claim_under_way_is_waited_for_and_then_unknown(uri: str, shared: Path) -> None:
    arbiter = arbiter_from_uri(uri)
    token = "5" * 32
    (shared / "generation.0").rename(shared / f"claim.1.{token}")
    assert arbiter.holder().unknown
    identity = arbiter.identity
    assert identity is not None
    record = holder_text(new_holder(1, token, role="secondary", runner=HERE, since_s=5.0, reason="r"), identity)
    late = threading.Timer(0.05, lambda: (shared / f"claim.1.{token}").write_bytes(record))
    late.start()
    while arbiter.holder().unknown:
        pass
    assert arbiter.holder().runner == HERE
    late.join()


def test_what_a_file_says_is_made_printable(uri: str, shared: Path) -> None:
    arbiter = arbiter_from_uri(uri)
    arbiter.claim(0, reason="\x1b[2J\u202e and\nmore " + "x" * 500)
    reason = arbiter.holder().reason
    assert reason.isprintable() and reason.startswith("?[2J? and?more xxx") and len(reason) == 64
    record = json.loads((shared / "generation.1").read_text())
    record["host"] = "\x1b[2J"
    (shared / "generation.1").write_text(json.dumps(record))
    assert arbiter.holder().unknown
    record |= {"host": "h", "reason": "\x1b[2J"}
    (shared / "generation.1").write_text(json.dumps(record))
    assert arbiter.holder().reason == "?[2J"


def test_the_longest_record_fits() -> None:
    identity = new_identity("a" * 32, '"' * 64, UUID)
    runner = Runner('"' * 64, "b" * 36, 2**31 - 1, 2**63 - 1, "c" * 32, 2**63 - 1)
    holder = new_holder(10**15, "d" * 32, role="secondary", runner=runner, since_s=1e10 + 0.1234567, reason='"' * 100, closed=True)
    text = holder_text(holder, identity)
    assert len(text) < RECORD_BYTES
    assert parse_holder(text, 10**15) == holder


@pytest.mark.parametrize(("key", "value"), [
    ("generation", 2), ("generation", True), ("generation", "1"), ("token", "x"), ("token", None), ("role", "king"), ("role", []),
    ("since", "now"), ("since", float("nan")), ("since", -1), ("since", 1e300), ("since", True), ("reason", 1), ("closed", 0),
    ("pid", 0), ("pid", -1), ("pid", 2**40), ("pid", True), ("start_ticks", 1.5), ("host", ""), ("host", 5), ("boot_id", None),
    ("host", "x" * 65), ("machine", "\n"), ("pid_namespace", -1),
])
def test_a_record_of_other_types_says_nothing(key: str, value: object) -> None:
    identity = new_identity("a" * 32, "vm1", "")
    good = holder_text(new_holder(1, "d" * 32, role="primary", runner=HERE, since_s=1.0, reason=""), identity)
    assert parse_holder(good, 1) is not None
    assert parse_holder(json.dumps(json.loads(good) | {key: value}).encode(), 1) is None


def test_an_identity_of_other_types_says_nothing() -> None:
    good = {"id": "a" * 32, "vm": "vm1", "uuid": UUID}
    assert parse_identity(json.dumps(good).encode()) is not None
    for key, value in (("id", "A" * 32), ("id", 5), ("vm", ""), ("vm", "\x1b"), ("vm", None), ("uuid", "x"), ("uuid", UUID.upper())):
        assert parse_identity(json.dumps(good | {key: value}).encode()) is None


# How it ends.


def test_a_closed_generation_is_won_by_nobody(uri: str) -> None:
    primary, secondary = arbiter_from_uri(uri, role="primary"), arbiter_from_uri(uri, role="secondary")
    claim = primary.claim(0, runner=HERE)
    primary.close_generation(claim.generation, "shut down")
    primary.close_generation(claim.generation, "shut down")
    holder = secondary.holder()
    assert holder.closed and holder.runner == HERE and holder.reason == "shut down" and not holder.free
    assert not primary.still_holds(claim.generation)
    for generation in (claim.generation, secondary.current()):
        for side in (secondary, primary, arbiter_from_uri(uri)):
            with pytest.raises(ArbitrationLost, match=r"colo arbiter reopen file:.* --vm vm1|already taken over"):
                side.claim(generation)
    free = secondary.release(secondary.current(), reason="reopened")
    assert free.free and secondary.holder().free
    assert primary.claim(free.generation).generation == free.generation + 1


def test_only_the_holder_closes(uri: str) -> None:
    primary, other = arbiter_from_uri(uri, role="primary"), arbiter_from_uri(uri, role="secondary")
    far = replace(HERE, host="far")
    with pytest.raises(ArbitrationLost, match="held by nobody"):
        other.close_generation(0, "I say so")
    claim = primary.claim(0, runner=far)
    with pytest.raises(ArbitrationLost, match=r"held by far .*, who alone can close it"):
        other.close_generation(claim.generation, "I say so")
    assert other.current() == claim.generation
    with pytest.raises(ArbitrationLost, match="generation 0 is over"):
        primary.close_generation(0, "late")
    # Another session with the same VM's process: one that was started again beside it.
    arbiter_from_uri(uri, role="primary").close_generation(claim.generation, "shut down", runner=far)
    assert other.holder().closed


def test_close_and_claim_at_once_and_one_wins(uri: str, shared: Path) -> None:
    for _ in range(20):
        primary, secondary = arbiter_from_uri(uri, role="primary"), arbiter_from_uri(uri, role="secondary")
        generation = primary.claim(primary.current()).generation
        outcomes: list[str] = []

        def attempt(what: str, generation: int = generation, primary=primary, secondary=secondary, outcomes=outcomes) -> None:  # type: ignore[no-untyped-def]
            try:
                if what == "closed":
                    primary.close_generation(generation, "shut down")
                else:
                    secondary.claim(generation)
                outcomes.append(what)
            except ArbitrationLost:
                pass

        threads = [threading.Thread(target=attempt, args=(what,)) for what in ("closed", "claimed")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 1
        assert secondary.holder().closed == (outcomes == ["closed"])
        secondary.release(secondary.current(), reason="next round")


def test_a_release_is_of_one_holder(uri: str) -> None:
    arbiter = arbiter_from_uri(uri)
    arbiter.claim(0)
    with pytest.raises(ArbitrationLost, match="generation 0 is over, 1 holds"):
        arbiter.release(0, reason="too late")
    assert arbiter.release(1, reason="it burned").free
    holder = FileArbiter(uri.removeprefix("file:")).holder()
    assert (holder.free, holder.reason, holder.generation) == (True, "it burned", 2)


def test_nothing_is_made_where_nothing_is_kept() -> None:
    for uri in ("exec:true", "none"):
        with pytest.raises(ArbitrationError, match="keeps nothing"):
            init_arbiter(uri, vm="vm1")
    with pytest.raises(ArbitrationError, match="names no arbiter"):
        init_arbiter("/shared/vm1", vm="vm1")
