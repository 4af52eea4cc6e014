"""An etcd's JSON gateway, spoken to with the standard library: a deadline for each call, the members tried in turn.

A call may be sent more than once, and what was sent may take effect after it was given up. So whatever is written through
here must be written only once however often it arrives: compared with what it replaces, and marked by a token.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from colo.arbiter.etcd.address import EtcdAddress
from colo.arbiter.record import printable
from colo.errors import ArbitrationError

_T = TypeVar("_T")

ANSWER_BYTES_MAX = 64 << 10
MEMBER_S = 1.25
"""So long one member is waited for, before the next one is asked: a little longer than an election."""
ROUND_S = 0.05
"""Pause after all members refused."""
INT64_MAX = 2**63 - 1
UINT64_MAX = 2**64 - 1
_DIGITS = frozenset("0123456789")

# Codes of gRPC.
_CANCELED, _UNKNOWN, _DEADLINE, _EXHAUSTED, _PRECONDITION, _ABORTED, _INTERNAL, _UNAVAILABLE, _UNAUTHENTICATED = (
    1, 2, 4, 8, 9, 10, 13, 14, 16)
_NEXT = frozenset({_CANCELED, _UNKNOWN, _DEADLINE, _EXHAUSTED, _ABORTED, _INTERNAL, _UNAVAILABLE})
"""With these another member, or the same one a little later, may do better."""
_NEW_TOKEN = ("invalid auth token", "revision of auth store is old")


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key's value and when it was written."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a transaction says: of which cluster, at which revision, and the keys that it read."""

    cluster: str
    revision: int
    succeeded: bool
    found: Mapping[str, KeyValue]


class MemberError(Exception):
    """This member cannot answer now; another one may."""


class Refusal(Exception):
    """etcd says no, and would say it again."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class EtcdClient:
    """Connections to the members at ``address``, for one thread at a time. Raises ArbitrationError throughout."""

    def __init__(self, address: EtcdAddress) -> None:
        self.address = address
        self._tls = address.tls_context()
        self._connections: dict[int, tuple[http.client.HTTPConnection, _DeadlineSocket]] = {}
        self._first = 0
        """The member that answered last."""
        self._token = ""

    def close(self) -> None:
        """Close the connections; another call opens them again."""
        for member in list(self._connections):
            self._drop(member)

    # Calls.

    def transaction(
        self, compare: Mapping[str, int], put: Mapping[str, bytes], read: tuple[str, ...], deadline: float, *, lease: str = ""
    ) -> Answer:
        """One transaction: if each key of ``compare`` was last written at that revision (0: does not exist), ``put``;
        otherwise, and without ``put``, ``read``. Reads are linearizable.

        ``deadline`` is by time.monotonic(). Keys are told without the prefix.
        """
        key = self._key
        puts = [
            {"request_put": {"key": key(name), "value": _base64(value), **({"lease": lease} if lease else {})}}
            for name, value in put.items()
        ]
        reads = [{"request_range": {"key": key(name)}} for name in read]
        body = {
            "compare": [
                {"key": key(name), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
                for name, revision in compare.items()
            ],
            "success": puts or reads,
            "failure": reads,
        }
        return self.call("/v3/kv/txn", body, deadline, lambda fields: self._answer(fields, read))

    def call(self, path: str, body: Mapping[str, Any], deadline: float, parse: Callable[[dict[str, Any]], _T]) -> _T:
        """What ``parse`` makes of the JSON object that a member answers; it raises MemberError to ask the next one."""
        said: dict[int, str] = {}
        renewed = 0
        while True:
            for turn in range(len(self.address.members)):
                member = (self._first + turn) % len(self.address.members)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    self._give_up(said)
                try:
                    token = self._token or self._authenticate(member, deadline)
                    answer = parse(self._ask(member, path, body, min(deadline, time.monotonic() + MEMBER_S), token))
                except MemberError as error:
                    said[member] = str(error)
                    continue
                except Refusal as refusal:
                    self._token = ""
                    if self.address.user and renewed < 3 and self._token_is_old(refusal):
                        renewed += 1
                        said[member] = str(refusal)
                        continue
                    raise self._refused(refusal) from None
                self._first = member
                return answer
            time.sleep(max(0.0, min(ROUND_S, deadline - time.monotonic())))

    def _authenticate(self, member: int, deadline: float) -> str:
        """A token for our user; "" without one, or where etcd wants none."""
        if not self.address.user:
            return ""
        body = {"name": self.address.user, "password": self.address.password()}
        try:
            answer = self._ask(member, "/v3/auth/authenticate", body, min(deadline, time.monotonic() + MEMBER_S), "")
        except Refusal as refusal:
            if refusal.code == _PRECONDITION and "not enabled" in str(refusal):
                return ""
            raise
        token = answer.get("token")
        if not isinstance(token, str) or not 0 < len(token) <= 4096 or not token.isascii() or not token.isprintable():
            raise MemberError("gives no token")
        self._token = token
        return token

    @staticmethod
    def _token_is_old(refusal: Refusal) -> bool:
        return refusal.code == _UNAUTHENTICATED or any(text in str(refusal) for text in _NEW_TOKEN)

    # One member.

    def _ask(self, member: int, path: str, body: Mapping[str, Any], deadline: float, token: str) -> dict[str, Any]:
        kept = member in self._connections
        try:
            return self._exchange(member, path, body, deadline, token)
        except (OSError, http.client.HTTPException) as error:
            self._drop(member)
            if not kept or time.monotonic() >= deadline:
                raise MemberError(_reason(error)) from error
        # The connection was from before: the member may have been started anew since.
        try:
            return self._exchange(member, path, body, deadline, token)
        except (OSError, http.client.HTTPException) as error:
            self._drop(member)
            raise MemberError(_reason(error)) from error

    def _exchange(self, member: int, path: str, body: Mapping[str, Any], deadline: float, token: str) -> dict[str, Any]:
        connection = self._connected(member, deadline)
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = token
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        content = response.read(ANSWER_BYTES_MAX + 1)
        if len(content) > ANSWER_BYTES_MAX or response.will_close:
            self._drop(member)
        if len(content) > ANSWER_BYTES_MAX:
            raise MemberError(f"answers with more than {ANSWER_BYTES_MAX} bytes")
        answer = _object(content)
        if response.status != 200:
            self._failed(response.status, answer)
        if answer is None:
            self._drop(member)
            raise MemberError("answers what is no etcd's")
        return answer

    @staticmethod
    def _failed(status: int, answer: dict[str, Any] | None) -> NoReturn:
        fields = answer or {}
        code, message = fields.get("code"), fields.get("message", fields.get("error"))
        if isinstance(code, bool) or not isinstance(code, int) or not isinstance(message, str):
            raise MemberError(f"answers with HTTP status {status}: is it an etcd of 3.4 or later?")
        text = printable(message, 200)
        if code in _NEXT and "database space exceeded" not in text:
            raise MemberError(text)
        raise Refusal(text, code)

    def _connected(self, member: int, deadline: float) -> http.client.HTTPConnection:
        host, port = self.address.members[member]
        if kept := self._connections.get(member):
            kept[1].deadline = deadline
            return kept[0]
        sock: socket.socket = socket.create_connection((host, port), max(0.001, deadline - time.monotonic()))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                sock = self._tls.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(host, port)
        connection.auto_open = 0
        wrapped = _DeadlineSocket(sock, deadline)
        connection.sock = wrapped
        self._connections[member] = connection, wrapped
        return connection

    def _drop(self, member: int) -> None:
        if connection := self._connections.pop(member, None):
            connection[0].close()

    # What is said.

    def error(self, text: str) -> ArbitrationError:
        """The error of that text, with the arbiter named."""
        return ArbitrationError(f"arbiter {self.address.uri}: {text}")

    def _give_up(self, said: Mapping[int, str]) -> NoReturn:
        each = (f"{host}:{port}: {said.get(at, 'not asked')}" for at, (host, port) in enumerate(self.address.members))
        raise self.error(f"no member answered in time ({'; '.join(each)})")

    def _refused(self, refusal: Refusal) -> ArbitrationError:
        text = str(refusal)
        advice = ""
        if "user name is empty" in text or "authentication failed" in text:
            advice = "; give it user=NAME and password-file=FILE in the URI, or COLO_ETCD_USER and COLO_ETCD_PASSWORD"
        elif "permission denied" in text:
            advice = f"; user {self.address.user!r} needs a role that may read and write {self.address.prefix}/*"
        elif "database space exceeded" in text:
            advice = "; compact and defragment it, then disarm its alarm (etcdctl alarm disarm)"
        return self.error(f"{text}{advice}")

    # Keys and values.

    def _key(self, name: str) -> str:
        return _base64(f"{self.address.prefix}/{name}".encode())

    def _answer(self, fields: dict[str, Any], read: tuple[str, ...]) -> Answer:
        header = fields.get("header")
        succeeded = fields.get("succeeded", False)
        responses = fields.get("responses", [])
        if not isinstance(header, dict) or not isinstance(succeeded, bool) or not isinstance(responses, list):
            raise MemberError("answers what is no transaction's")
        found: dict[str, KeyValue] = {}
        for response in responses[: len(read)]:
            for pair in self._pairs(response):
                name, value = self._pair(pair)
                if name in read:
                    found[name] = value
        return Answer(
            str(number(header.get("cluster_id"), UINT64_MAX)), number(header.get("revision"), INT64_MAX), succeeded, found)

    def _pairs(self, response: object) -> list[object]:
        if not isinstance(response, dict):
            raise MemberError("answers what is no transaction's")
        fields = response.get("response_range", {})
        pairs = fields.get("kvs", []) if isinstance(fields, dict) else None
        if not isinstance(pairs, list) or len(pairs) > 1:
            raise MemberError("answers with what was not asked for")
        return pairs

    def _pair(self, pair: object) -> tuple[str, KeyValue]:
        if not isinstance(pair, dict):
            raise MemberError("answers with a key that is none")
        try:
            key, value = (base64.b64decode(pair.get(name, ""), validate=True) for name in ("key", "value"))
            name = key.decode()
        except (binascii.Error, ValueError, TypeError):
            raise MemberError("answers with a key that is none") from None
        if not name.startswith(f"{self.address.prefix}/"):
            raise MemberError("answers with a key that was not asked for")
        return name.removeprefix(f"{self.address.prefix}/"), KeyValue(value, number(pair.get("mod_revision"), INT64_MAX))


class _DeadlineSocket:
    """A socket for http.client that keeps to one deadline, however slowly bytes come."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self.deadline = deadline

    def _arm(self) -> None:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)

    def sendall(self, data: bytes) -> None:
        self._arm()
        self._sock.sendall(data)

    def recv_into(self, buffer: memoryview) -> int:
        self._arm()
        return self._sock.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        self._sock.close()


class _Reader(io.RawIOBase):
    def __init__(self, sock: _DeadlineSocket) -> None:
        self._of = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._of.recv_into(buffer)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return printable(f"its certificate is not accepted: {error.verify_message}", 200)
    if isinstance(error, OSError):
        return printable(error.strerror or str(error) or type(error).__name__, 200)
    return printable(f"answers what is no HTTP ({type(error).__name__})", 200)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def number(value: object, most: int) -> int:
    """A 64-bit number, which JSON has as a string of digits. Raises MemberError."""
    if isinstance(value, str) and 0 < len(value) <= 20 and set(value) <= _DIGITS and int(value) <= most:
        return int(value)
    raise MemberError("answers with a number that is none")


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
