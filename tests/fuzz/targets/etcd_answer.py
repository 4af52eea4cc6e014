"""What an etcd answers, from HTTP's status line to the records of who holds a VM: the input is all bytes of the answer. Only
errors of ours come of it, and whatever is believed is of the right type, bounded and printable."""

from __future__ import annotations

import base64
import http.client
import io
import json
from collections.abc import Iterator

from colo.arbiter.etcd.address import EtcdAddress
from colo.arbiter.etcd.arbiter import GENERATION, IDENTITY, _identity
from colo.arbiter.etcd.client import INT64_MAX, EtcdClient, MemberError, Refusal
from colo.arbiter.record import parse_holder, stated_generation
from colo.errors import ArbitrationError

ADDRESS = EtcdAddress.parse("etcd:http://127.0.0.1:1/vm1")


class Canned(EtcdClient):
    """A client whose member has answered already."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(ADDRESS)
        self.answer = answer

    def _connected(self, member: int, deadline: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", 1)
        connection.auto_open = 0
        connection.sock = self  # type: ignore[assignment]
        return connection

    def sendall(self, data: bytes) -> None:
        pass

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.answer)


def whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def seeds() -> Iterator[bytes]:
    token = "0123456789abcdef" * 2
    values = {
        "identity": {"id": token, "vm": "vm1", "uuid": "", "cluster": "7"},
        "generation": {
            "generation": 7, "token": token, "role": "primary", "since": 1.5, "reason": "r", "closed": False, "host": "a",
            "boot_id": "b", "machine": "", "pid": 12, "start_ticks": 3, "pid_namespace": 0},
    }
    responses = [
        {"response_range": {"kvs": [{
            "key": base64.b64encode(f"/vm1/{key}".encode()).decode(), "mod_revision": "5",
            "value": base64.b64encode(json.dumps(value).encode()).decode()}]}}
        for key, value in values.items()
    ]
    answer = json.dumps({"header": {"cluster_id": "7", "revision": "9"}, "succeeded": True, "responses": responses}).encode()
    yield whole(answer)
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(answer), answer)
    yield whole(b'{"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14}', b"503 Service Unavailable")
    yield whole(b'{"message":"etcdserver: invalid auth token","code":16}', b"401 Unauthorized")


def fuzz_one(data: bytes) -> None:
    client = Canned(data)
    try:
        answer = client._answer(client._exchange(0, "/v3/kv/txn", {}, 0.0, ""), (IDENTITY, GENERATION))
    except (MemberError, Refusal) as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return
    except (OSError, http.client.HTTPException):
        return  # these the client passes over, too
    assert 0 <= answer.revision <= INT64_MAX and set(answer.found) <= {IDENTITY, GENERATION}
    try:
        identity, _ = _identity(client, answer)
    except ArbitrationError as error:
        assert str(error).isprintable()
        return
    assert identity.describe().isprintable()
    record = answer.found.get(GENERATION)
    generation = stated_generation(record.value) if record else None
    if record is not None and generation is not None and (holder := parse_holder(record.value, generation)):
        assert holder.generation == generation and holder.describe().isprintable() and holder.reason.isprintable()
