"""The arbiter in a real etcd of one member."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colo.arbiter import Arbiter, Runner, arbiter_from_uri, init_arbiter, take_first
from colo.arbiter.etcd.address import EtcdAddress
from colo.arbiter.etcd.arbiter import EtcdArbiter
from colo.arbiter.etcd.client import ANSWER_BYTES_MAX
from colo.errors import ArbitrationError, ArbitrationLost
from tests.arbiter.etcd_cluster import Between, Cluster, Fake, Tls, wait_until

HERE = Runner.of()
FAR = replace(HERE, host="far")


def both(uri: str) -> tuple[Arbiter, Arbiter]:
    return arbiter_from_uri(uri, role="primary"), arbiter_from_uri(uri, role="secondary")


def prefix_of(uri: str) -> str:
    return EtcdAddress.parse(uri).prefix


def put(cluster: Cluster, key: str, value: bytes) -> None:
    body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
    assert "header" in cluster.ask(cluster.members[0], "/v3/kv/put", body)


def delete(cluster: Cluster, key: str) -> None:
    assert "header" in cluster.ask(
        cluster.members[0], "/v3/kv/deleterange", {"key": base64.b64encode(key.encode()).decode()})


# What every arbiter promises.


def test_it_is_made_once_and_then_known(one: Cluster) -> None:
    uri = one.uri("tests/made")
    with pytest.raises(ArbitrationError, match=rf"no arbiter under /tests/made; .* colo arbiter init {uri} --vm NAME"):
        arbiter_from_uri(uri)
    identity = init_arbiter(uri, vm="vm1", uuid="0B1E5F8E-6d2a-4b57-9d0c-4ad3d1e3a111")
    assert init_arbiter(uri, vm="vm1") == identity
    with arbiter_from_uri(uri, vm="vm1") as arbiter:
        assert arbiter.identity == identity and arbiter.excludes and not arbiter.fences
        assert arbiter.holder().free and arbiter.current() == 0
        assert arbiter.claim(0).generation == 1
    assert init_arbiter(uri, vm="vm1") == identity
    assert arbiter_from_uri(uri).current() == 1
    with pytest.raises(ArbitrationError, match="belongs to VM 'vm1'"):
        init_arbiter(uri, vm="vm2")
    with pytest.raises(ArbitrationError, match="not to 'vm2'"):
        arbiter_from_uri(uri, vm="vm2")
    with pytest.raises(ArbitrationError, match="with UUID"):
        arbiter_from_uri(uri, uuid="11111111-1111-1111-1111-111111111111")


def test_each_claim_takes_the_next_generation_at_a_later_revision(uri: str, one: Cluster) -> None:
    first, second = both(uri)
    revisions = []
    for generation in range(6):
        winner, loser = (first, second) if generation % 2 else (second, first)
        claim = winner.claim(generation, reason="silence", runner=FAR)
        assert (claim.generation, claim.runner, claim.role) == (generation + 1, FAR, "primary" if generation % 2 else "secondary")
        revisions.append(claim.revision)
        for side in (winner, loser):
            with pytest.raises(ArbitrationLost):
                side.claim(generation)
            assert side.still_holds(generation + 1) and not side.still_holds(generation)
        holder = loser.holder()
        assert (holder.runner, holder.token, holder.reason, holder.since_s) == (FAR, claim.token, "silence", claim.time_s)
    assert revisions == sorted(set(revisions)) and revisions[0] > 1
    assert one.value(f"{prefix_of(uri)}/generation")["host"] == "far"


def test_who_loses_hears_who_won(uri: str) -> None:
    first, second = both(uri)
    first.claim(0, runner=FAR)
    with pytest.raises(ArbitrationLost, match=r"generation 0 is over, 1 holds: far \(pid \d+, primary\) since 20"):
        second.claim(0)
    with pytest.raises(ArbitrationError, match="older than 5") as caught:
        second.claim(5)
    assert not isinstance(caught.value, ArbitrationLost)
    with pytest.raises(ValueError, match="a generation is an integer"):
        second.claim(-1)


def test_closed_released_and_begun_again(uri: str) -> None:
    first, second = both(uri)
    claim = take_first(first, HERE, reason="protect")
    with pytest.raises(ArbitrationLost, match="who alone can close it"):
        second.close_generation(claim.generation, "I say so", runner=FAR)
    for _ in range(2):
        first.close_generation(claim.generation, "shut down", runner=HERE)
    for generation in (claim.generation, second.current()):
        with pytest.raises(ArbitrationLost, match=r"ended on purpose \(shut down; .*colo arbiter reopen etcd:"):
            second.claim(generation)
    assert second.holder().closed
    with pytest.raises(ArbitrationLost, match="ended on purpose"):
        second.release(1, reason="too late")
    assert second.release(second.current(), reason="reopened").free
    assert take_first(first, HERE, reason="protect").generation == 4


def test_of_many_claims_at_once_one_wins(uri: str) -> None:
    for generation in range(5):
        arbiters = [arbiter_from_uri(uri) for _ in range(12)]
        outcomes: Counter[str] = Counter()
        start = threading.Barrier(len(arbiters))

        def attempt(arbiter: Arbiter, generation: int = generation, outcomes: Any = outcomes, start: Any = start) -> None:
            start.wait()
            try:
                arbiter.claim(generation)
                outcomes["won"] += 1
            except ArbitrationLost:
                outcomes["lost"] += 1
            arbiter.close()

        threads = [threading.Thread(target=attempt, args=(arbiter,)) for arbiter in arbiters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == {"won": 1, "lost": 11}


def test_many_make_it_for_two_vms_and_one_gets_it(one: Cluster) -> None:
    uri = one.uri("tests/race")
    got: list[str] = []

    def make(vm: str) -> None:
        try:
            got.append(f"{vm} {init_arbiter(uri, vm=vm).id}")
        except ArbitrationError as error:
            got.append("refused" if "already" in str(error) else repr(error))

    threads = [threading.Thread(target=make, args=(f"vm{number % 2}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got)[:4] == ["refused"] * 4 and len(set(got)) == 2


def test_the_session_that_won_is_seen_while_it_lives(uri: str) -> None:
    first, second = both(uri)
    assert first.seen(second.holder()) is False
    first.claim(0)
    holder = second.holder()
    wait_until(lambda: second.seen(holder) is True, "the session is seen")
    first.close()
    wait_until(lambda: second.seen(holder) is False, "the session is seen no more")
    assert second.current() == 1  # that decides nothing
    with pytest.raises(ArbitrationLost):
        second.claim(0)


# What was lost, removed or put there.


@pytest.fixture
def between(one: Cluster) -> Iterator[Between]:
    between = Between(one.members[0])
    yield between
    between.close()


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_claim_whose_answer_was_lost_is_known_as_ones_own(uri: str, between: Between, lost: int) -> None:
    here = f"etcd:http://{between.host}:{between.port}{prefix_of(uri)}"
    arbiter = arbiter_from_uri(here)
    between.lose = lost
    claim = arbiter.claim(0)
    assert between.lose == 0
    assert (claim.generation, arbiter.holder().token) == (1, claim.token)
    for side in (arbiter, arbiter_from_uri(uri)):
        with pytest.raises(ArbitrationLost):
            side.claim(0)


def test_a_claim_that_was_given_up_is_found_again(uri: str, between: Between) -> None:
    arbiter = EtcdArbiter(f"etcd:http://{between.host}:{between.port}{prefix_of(uri)}", timeout_s=0.5)
    between.lose = 1_000_000
    with pytest.raises(ArbitrationError, match="no member answered in time") as caught:
        arbiter.claim(0)
    assert not isinstance(caught.value, ArbitrationLost)
    with pytest.raises(ArbitrationLost):
        arbiter_from_uri(uri).claim(0)
    between.lose = 0
    assert arbiter.claim(0).generation == 1
    with pytest.raises(ArbitrationLost):
        arbiter.claim(0)


def test_its_making_survives_a_lost_answer(one: Cluster, between: Between) -> None:
    between.lose = 1
    uri = f"etcd:http://{between.host}:{between.port}/tests/lost-making"
    assert init_arbiter(uri, vm="vm1").vm == "vm1"
    assert arbiter_from_uri(uri, vm="vm1").current() == 0


def test_compaction_takes_nothing_away(uri: str, one: Cluster) -> None:
    first, second = both(uri)
    claim = first.claim(0)
    for _ in range(3):
        put(one, "elsewhere", b"x")
    revision = one.ask(one.members[0], "/v3/kv/range", {"key": "AA=="})["header"]["revision"]
    one.ask(one.members[0], "/v3/kv/compaction", {"revision": revision, "physical": True})
    one.ask(one.members[0], "/v3/maintenance/defragment", {})
    assert int(revision) > claim.revision
    with pytest.raises(ArbitrationLost):
        second.claim(0)
    assert second.claim(1).revision > int(revision)


def test_keys_that_were_removed_or_written_by_others_are_told(uri: str, one: Cluster) -> None:
    prefix = prefix_of(uri)
    arbiter = arbiter_from_uri(uri)
    arbiter.claim(0)
    good = json.dumps(one.value(f"{prefix}/generation")).encode()
    for value in (b"", b"[]", b'{"generation": -1}', b'{"generation": 1e9}', b"x" * 5000):
        put(one, f"{prefix}/generation", value)
        with pytest.raises(ArbitrationError, match="says nothing usable"):
            arbiter.current()
    put(one, f"{prefix}/generation", b'{"generation": 1}')
    assert arbiter.holder().unknown
    put(one, f"{prefix}/generation", b'{"generation": 0}')
    with pytest.raises(ArbitrationError, match=r"generation 0 at revision \d+ is older than generation 1"):
        arbiter.current()
    delete(one, f"{prefix}/generation")
    for attempt in (arbiter.current, lambda: arbiter.claim(1), lambda: init_arbiter(uri, vm="vm1") and arbiter.current()):
        with pytest.raises(ArbitrationError, match="generation was removed") as caught:
            attempt()
        assert not isinstance(caught.value, ArbitrationLost)
    put(one, f"{prefix}/generation", good)
    identity = json.dumps(one.value(f"{prefix}/identity")).encode()
    delete(one, f"{prefix}/identity")
    with pytest.raises(ArbitrationError, match="identity was removed"):
        arbiter.current()
    with pytest.raises(ArbitrationError, match="identity was removed"):
        init_arbiter(uri, vm="vm1")
    put(one, f"{prefix}/identity", b"{}")
    with pytest.raises(ArbitrationError, match="says nothing usable"):
        arbiter.current()
    put(one, f"{prefix}/identity", json.dumps(json.loads(identity) | {"id": "0" * 32}).encode())
    with pytest.raises(ArbitrationError, match="another arbiter is there now, of VM 'vm1'"):
        arbiter.current()
    put(one, f"{prefix}/identity", identity)
    assert arbiter.claim(1).generation == 2


def test_another_cluster_is_not_the_arbiter(uri: str, one: Cluster) -> None:
    """Its keys put back elsewhere from a snapshot, or members of two clusters in one URI."""
    with Cluster(1) as other:
        prefix = prefix_of(uri)
        for key in ("identity", "generation"):
            put(other, f"{prefix}/{key}", json.dumps(one.value(f"{prefix}/{key}")).encode())
        elsewhere = other.uri(prefix[1:])
        with pytest.raises(ArbitrationError, match="made in another etcd cluster"):
            arbiter_from_uri(elsewhere)
        with pytest.raises(ArbitrationError, match="made in another etcd cluster"):
            init_arbiter(elsewhere, vm="vm1")
        arbiter = arbiter_from_uri(one.uri(prefix[1:], one.members[0], other.members[0]))
        arbiter._client._first = 1  # as when the first member does not answer
        with pytest.raises(ArbitrationError, match="not all of one cluster"):
            arbiter.claim(0)


# Members that answer badly, or too slowly.


def http_answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


HEADER = '"header": {"cluster_id": "7", "revision": "7"}'
BAD = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "no JSON": http_answer(b"hello"),
    "no object": http_answer(b"[]"),
    "no header": http_answer(b"{}"),
    "deep": http_answer(b"[" * 60_000),
    "long": http_answer(b" " * (ANSWER_BYTES_MAX + 1)),
    "endless header": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "endless line": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000,
    "no length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "not found": http_answer(b"Not Found", "404 Not Found"),
    "an error of other types": http_answer(b'{"code": "3", "message": 5}', "400 Bad Request"),
    "no leader": http_answer(b'{"code": 14, "message": "etcdserver: no leader\\u001b[2J"}', "503 Service Unavailable"),
    "revision of another type": http_answer(b'{"header": {"cluster_id": "7", "revision": 7}}'),
    "revision too large": http_answer(b'{"header": {"cluster_id": "7", "revision": "9223372036854775808"}}'),
    "revision with a sign": http_answer(b'{"header": {"cluster_id": "7", "revision": "-1"}}'),
    "succeeded of another type": http_answer(f'{{{HEADER}, "succeeded": 1}}'.encode()),
    "responses of another type": http_answer(f'{{{HEADER}, "responses": {{}}}}'.encode()),
    "a response of another type": http_answer(f'{{{HEADER}, "responses": [1]}}'.encode()),
    "a range of another type": http_answer(f'{{{HEADER}, "responses": [{{"response_range": []}}]}}'.encode()),
    "two keys": http_answer(f'{{{HEADER}, "responses": [{{"response_range": {{"kvs": [{{}}, {{}}]}}}}]}}'.encode()),
    "a key of another type": http_answer(f'{{{HEADER}, "responses": [{{"response_range": {{"kvs": [5]}}}}]}}'.encode()),
    "a key not in base64": http_answer(
        f'{{{HEADER}, "responses": [{{"response_range": {{"kvs": [{{"key": "!", "value": ""}}]}}}}]}}'.encode()),
    "another key": http_answer(
        f'{{{HEADER}, "responses": [{{"response_range": {{"kvs": [{{"key": "YQ==", "value": ""}}]}}}}]}}'.encode()),
}


@pytest.mark.parametrize("what", BAD)
def test_a_member_that_answers_badly_is_passed_over(uri: str, one: Cluster, what: str) -> None:
    fake = Fake(lambda request: iter([BAD[what]]))
    member = one.members[0]
    arbiter = EtcdArbiter(f"etcd:http://{fake.host}:{fake.port},{member.host}:{member.port}{prefix_of(uri)}")
    assert arbiter.claim(0).generation == 1
    with pytest.raises(ArbitrationError, match="no member answered in time") as caught:
        EtcdArbiter(f"etcd:http://{fake.host}:{fake.port}/vm1", timeout_s=0.3)
    assert not isinstance(caught.value, ArbitrationLost) and str(caught.value).isprintable()
    fake.close()


def trickle(request: bytes) -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 200 OK\r\n"[:1]
        time.sleep(0.05)


def trickled_body(request: bytes) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"
    while True:
        yield b" "
        time.sleep(0.05)


def silence(request: bytes) -> Iterator[bytes]:
    time.sleep(600)
    yield b""


@pytest.mark.parametrize("how", [trickle, trickled_body, silence])
def test_a_member_that_takes_too_long_is_given_up(uri: str, one: Cluster, how: Any) -> None:
    fake = Fake(how)
    with pytest.raises(ArbitrationError, match=r"no member answered in time \(127.0.0.1:\d+: no answer"):
        EtcdArbiter(f"etcd:http://{fake.host}:{fake.port}/vm1", timeout_s=0.3)
    member = one.members[0]
    arbiter = EtcdArbiter(f"etcd:http://{fake.host}:{fake.port},{member.host}:{member.port}{prefix_of(uri)}")
    assert arbiter.claim(0).generation == 1
    fake.close()


def test_a_revision_that_goes_backwards_within_a_transaction_is_refused() -> None:
    def answers(request: bytes) -> Iterator[bytes]:
        identity = json.dumps({"id": "a" * 32, "vm": "vm1", "uuid": "", "cluster": "7"})
        pairs = [
            {"response_range": {"kvs": [{
                "key": base64.b64encode(f"/vm1/{key}".encode()).decode(), "value": base64.b64encode(value.encode()).decode(),
                "mod_revision": "5"}]}}
            for key, value in (("identity", identity), ("generation", '{"generation": 0}'))
        ]
        wrote = b"request_put" in request
        yield http_answer(json.dumps({
            "header": {"cluster_id": "7", "revision": "7"}, "succeeded": True, "responses": [] if wrote else pairs}).encode())

    fake = Fake(answers)
    arbiter = EtcdArbiter(f"etcd:http://{fake.host}:{fake.port}/vm1", timeout_s=2)
    assert arbiter.holder().unknown
    with pytest.raises(ArbitrationError, match="this is no etcd"):
        arbiter.claim(0)
    fake.close()


def test_a_port_where_nobody_listens_is_told(one: Cluster) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(ArbitrationError, match=rf"127.0.0.1:{port}: Connection refused"):
            EtcdArbiter(f"etcd:http://127.0.0.1:{port}/vm1", timeout_s=0.3)


# Users.


USERS = (("root", "the root's", "root"), ("colo", "it's a word", "colo"), ("guest", "guest", "guest"))


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    """With users, and tokens that last for a second."""
    with Cluster(1, "--auth-token-ttl", "1") as cluster:
        ask = cluster.ask
        member = cluster.members[0]
        for name, password, role in USERS:
            ask(member, "/v3/auth/user/add", {"name": name, "password": password})
            ask(member, "/v3/auth/role/add", {"name": role})
            ask(member, "/v3/auth/user/grant", {"user": name, "role": role})
        begin, end = (base64.b64encode(text).decode() for text in (b"/guarded/", b"/guarded0"))
        ask(member, "/v3/auth/role/grant", {"name": "colo", "perm": {"permType": "READWRITE", "key": begin, "range_end": end}})
        assert "error" not in ask(member, "/v3/auth/enable", {})
        yield cluster


def word(directory: Path, text: str) -> Path:
    path = directory / "password"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_user_by_file_and_by_environment(guarded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = word(tmp_path, "it's a word\n")
    uri = guarded.uri("guarded/vm1", query=f"user=colo&password-file={path}")
    init_arbiter(uri, vm="vm1")
    with arbiter_from_uri(uri, vm="vm1") as arbiter:
        assert arbiter.claim(0).generation == 1
    bare = guarded.uri("guarded/vm1")
    with pytest.raises(ArbitrationError, match="user name is empty; give it user=NAME and password-file=FILE"):
        arbiter_from_uri(bare)
    monkeypatch.setenv("COLO_ETCD_USER", "colo")
    with pytest.raises(ArbitrationError, match="has no password: give password-file"):
        arbiter_from_uri(bare)
    monkeypatch.setenv("COLO_ETCD_PASSWORD", "it's a word")
    assert arbiter_from_uri(bare).current() == 1
    assert "word" not in arbiter_from_uri(bare).uri


def test_a_wrong_password_and_another_user_are_told(guarded: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ArbitrationError, match="authentication failed, invalid user ID or password; give it user="):
        arbiter_from_uri(guarded.uri("guarded/vm1", query=f"user=colo&password-file={word(tmp_path, 'wrong')}"))
    with pytest.raises(ArbitrationError, match=r"permission denied; user 'guest' needs a role that may read and write /guarded/vm1/"):
        arbiter_from_uri(guarded.uri("guarded/vm1", query=f"user=guest&password-file={word(tmp_path, 'guest')}"))


def test_a_token_that_ran_out_or_was_forgotten_is_renewed(guarded: Cluster, tmp_path: Path) -> None:
    path = word(tmp_path, "it's a word")
    uri = guarded.uri("guarded/expiry", query=f"user=colo&password-file={path}")
    init_arbiter(uri, vm="vm1")
    arbiter = EtcdArbiter(uri)
    before = arbiter._client._token
    assert before
    root = guarded.ask(guarded.members[0], "/v3/auth/authenticate", {"name": "root", "password": "the root's"})["token"]
    # Unused for its time, a token is over: etcd itself says when.
    wait_until(
        lambda: "invalid auth token" in str(_quiet(guarded, before)), "the token has run out")
    assert arbiter.claim(0).generation == 1
    assert arbiter._client._token not in {"", before}
    # Any change of users makes older tokens worthless.
    root = guarded.ask(guarded.members[0], "/v3/auth/authenticate", {"name": "root", "password": "the root's"})["token"]
    assert "error" not in guarded.ask(guarded.members[0], "/v3/auth/role/add", {"name": "another"}, token=root)
    assert arbiter.claim(1).generation == 2
    guarded.members[0].kill()
    guarded.members[0].start()
    assert arbiter.claim(2).generation == 3


def _quiet(cluster: Cluster, token: str) -> dict[str, Any]:
    time.sleep(2.5)
    return cluster.ask(cluster.members[0], "/v3/kv/range", {"key": base64.b64encode(b"/guarded/x").decode()}, token=token)


def test_a_password_file_that_others_can_read_is_refused(guarded: Cluster, tmp_path: Path) -> None:
    path = word(tmp_path, "it's a word")
    uri = guarded.uri("guarded/vm1", query=f"user=colo&password-file={path}")
    path.chmod(0o640)
    with pytest.raises(ArbitrationError, match="is open to others: chmod 600"):
        arbiter_from_uri(uri)
    path.chmod(0o600)
    for content in (b"", b"x" * 2000, b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ArbitrationError, match=r"holds no password|is not UTF-8"):
            arbiter_from_uri(uri)
    path.unlink()
    with pytest.raises(ArbitrationError, match="No such file"):
        arbiter_from_uri(uri)


def test_a_user_where_etcd_wants_none_is_let_in(uri: str, tmp_path: Path) -> None:
    assert arbiter_from_uri(f"{uri}?user=colo&password-file={word(tmp_path, 'x')}").current() == 0


# TLS.


def test_by_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    tls = Tls.make(tmp_path)
    other = Tls.make(tmp_path, "other")
    with Cluster(1, tls=tls) as cluster:
        uri = cluster.uri()
        init_arbiter(uri, vm="vm1")
        with arbiter_from_uri(uri, vm="vm1") as arbiter:
            assert arbiter.claim(0).generation == 1
            holder = arbiter.holder()
            wait_until(lambda: arbiter.seen(holder) is True, "the session is seen")
        host = f"etcd:https://127.0.0.1:{cluster.members[0].port}/vm1"
        with pytest.raises(ArbitrationError, match="its certificate is not accepted"):
            EtcdArbiter(f"{host}?ca={other.ca}", timeout_s=0.5)
        with pytest.raises(ArbitrationError, match="its certificate is not accepted"):
            EtcdArbiter(host, timeout_s=0.5)
        with pytest.raises(ArbitrationError, match="no member answered in time"):
            EtcdArbiter(f"{host}?ca={tls.ca}", timeout_s=0.5)  # etcd wants ours, too
        with pytest.raises(ArbitrationError, match="no member answered in time"):
            EtcdArbiter(f"{host}?ca={tls.ca}&cert={other.cert}&key={other.key}", timeout_s=0.5)
        with pytest.raises(ArbitrationError, match="no member answered in time"):
            EtcdArbiter(f"etcd:http://127.0.0.1:{cluster.members[0].port}/vm1", timeout_s=0.5)
        for query in (f"ca={tmp_path}/none.pem", f"ca={tls.key}", f"ca={tls.ca}&cert={tls.cert}&key={other.key}"):
            with pytest.raises(ArbitrationError, match="etcd certificates"):
                EtcdArbiter(f"{host}?{query}", timeout_s=0.5)


# A full one.


def test_an_etcd_that_is_full_says_what_to_do_and_still_tells_who_holds_it(tmp_path: Path) -> None:
    with Cluster(1, "--quota-backend-bytes", str(1 << 20)) as cluster:
        uri = cluster.uri()
        init_arbiter(uri, vm="vm1")
        arbiter = arbiter_from_uri(uri)
        assert arbiter.claim(0).generation == 1
        filler = {"key": base64.b64encode(b"filler").decode(), "value": base64.b64encode(bytes(200_000)).decode()}
        wait_until(
            lambda: "space exceeded" in str(cluster.ask(cluster.members[0], "/v3/kv/put", filler)), "it is full")
        with pytest.raises(ArbitrationError, match=r"database space exceeded; compact and defragment it.*alarm disarm") as caught:
            arbiter.claim(1)
        assert not isinstance(caught.value, ArbitrationLost)
        assert arbiter.still_holds(1)
