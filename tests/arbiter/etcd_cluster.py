"""Real etcds: one member or three, killed, stopped, started again and cut off from each other."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
CLONE_NEWNET = 0x40000000
BINARIES = (os.environ.get("COLO_ETCD", "etcd"), str(ROOT / ".etcd" / "usr" / "bin" / "etcd"))


def etcd_binary() -> str:
    """The etcd of PATH, or the one that tools/setup fetched; skips without one."""
    for name in BINARIES:
        if found := shutil.which(name):
            return found
    if os.environ.get("COLO_REQUIRE_ETCD"):
        pytest.fail("no etcd")
    pytest.skip("no etcd: tools/setup test qemu fetches it, or apt-get install etcd-server")


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


@dataclass
class Tls:
    """A CA, and a certificate of 127.0.0.1 for servers and clients, made by openssl."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, name: str = "etcd") -> Tls:
        made = cls(*(directory / f"{name}-{each}.pem" for each in ("ca", "cert", "key")))
        ca_key, request, extensions = (directory / f"{name}-{each}" for each in ("ca-key.pem", "request.pem", "extensions"))
        extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        for command in (
            ("req", "-x509", *curve, "-keyout", ca_key, "-out", made.ca, "-days", "2", "-subj", "/CN=test ca"),
            ("req", *curve, "-keyout", made.key, "-out", request, "-subj", "/CN=test"),
            ("x509", "-req", "-in", request, "-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial", "-out", made.cert, "-days", "2",
             "-extfile", extensions),
        ):
            subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
        return made


@dataclass
class Member:
    """One etcd process, and how it is started again."""

    host: str
    port: int
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)


class Cluster:
    """``count`` members on loopback. ``options`` go to each of them."""

    scheme = "http"

    def __init__(
        self, count: int, *options: str, tls: Tls | None = None, directory: Path | None = None
    ) -> None:
        self.binary = etcd_binary()
        self.tls = tls
        # On tmpfs where there is one: what is tested is who wins, not the disk.
        self.directory = directory or Path(tempfile.mkdtemp(
            prefix="colo-etcd-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        if tls is not None:
            self.scheme = "https"
            options = (
                *options, "--cert-file", str(tls.cert), "--key-file", str(tls.key), "--trusted-ca-file", str(tls.ca),
                "--client-cert-auth")
        places = self.places(count)
        initial = ",".join(f"m{number}=http://{host}:{peer}" for number, (host, _, peer) in enumerate(places))
        self.members = [
            Member(host, port, [
                *self.prefix(number), self.binary, "--name", f"m{number}", "--data-dir", str(self.directory / f"m{number}"),
                "--listen-client-urls", f"{self.scheme}://{self.client_host(number, host)}:{port}",
                "--advertise-client-urls", f"{self.scheme}://{self.client_host(number, host)}:{port}",
                "--listen-peer-urls", f"http://{host}:{peer}", "--initial-advertise-peer-urls", f"http://{host}:{peer}",
                "--initial-cluster", initial, "--initial-cluster-token", f"colo-{places[0][1]}-{os.getpid()}",
                "--log-level", "warn", *options,
            ], self.directory / f"m{number}.log")
            for number, (host, port, peer) in enumerate(places)
        ]
        for number, member in enumerate(self.members):
            member.host = self.client_host(number, member.host)
            member.start()
        try:
            wait_until(lambda: all(map(self.healthy, self.members)), "all members are healthy")
        except BaseException:
            self.close()
            raise

    def places(self, count: int) -> list[tuple[str, int, int]]:
        """Address, client port and peer port of each."""
        ports = free_ports(2 * count)
        return [("127.0.0.1", *ports[2 * number : 2 * number + 2]) for number in range(count)]  # type: ignore[misc]

    def prefix(self, number: int) -> list[str]:
        return []

    def client_host(self, number: int, host: str) -> str:
        return host

    def close(self) -> None:
        for member in self.members:
            member.kill()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def uri(self, prefix: str = "vm1", *members: Member, query: str = "") -> str:
        hosts = ",".join(f"{member.host}:{member.port}" for member in members or self.members)
        if self.tls is not None:
            query = "&".join(
                filter(None, (f"ca={self.tls.ca}", f"cert={self.tls.cert}", f"key={self.tls.key}", query)))
        return f"etcd:{self.scheme}://{hosts}/{prefix}" + (f"?{query}" if query else "")

    def ask(self, member: Member, path: str, body: dict[str, Any] | None = None, token: str = "") -> dict[str, Any]:
        """A call of the gateway, as anybody may make it. Raises OSError."""
        connection: http.client.HTTPConnection
        if self.tls is not None:
            context = ssl.create_default_context(cafile=str(self.tls.ca))
            context.load_cert_chain(str(self.tls.cert), str(self.tls.key))
            connection = http.client.HTTPSConnection(member.host, member.port, timeout=5, context=context)
        else:
            connection = http.client.HTTPConnection(member.host, member.port, timeout=5)
        with contextlib.closing(connection):
            headers = {"Authorization": token} if token else {}
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
        assert isinstance(answer, dict)
        return answer

    def healthy(self, member: Member) -> bool:
        assert member.process is not None
        assert member.process.poll() is None, member.log.read_text()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            return self.ask(member, "/health").get("health") == "true"
        return False

    def leader(self) -> Member:
        """Whoever its own members say leads."""
        found: list[Member] = []

        def look() -> bool:
            for member in self.members:
                with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                    answer = self.ask(member, "/v3/maintenance/status", {})
                    if answer["leader"] == answer["header"]["member_id"]:
                        found.append(member)
                        return True
            return False

        wait_until(look, "a member leads")
        return found[0]

    def value(self, key: str, token: str = "") -> dict[str, Any]:
        answer = self.ask(self.members[0], "/v3/kv/range", {"key": base64.b64encode(key.encode()).decode()}, token)
        return json.loads(base64.b64decode(answer["kvs"][0]["value"])) if "kvs" in answer else {}  # type: ignore[no-any-return]


class SplitCluster(Cluster):
    """Three members, each in a network namespace of its own with two links: one to the other members, one to their clients.
    Call :func:`in_namespace` to be such a client. Needs root.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("needs root and ip(8), to make network namespaces")
        self.name = f"colo{os.getpid()}"
        self._made: list[str] = []
        try:
            self._space(self.name)
            for bridge, address in (("peers", "10.77.1.254/24"), ("clients", "10.77.2.254/24")):
                self._ip("-n", self.name, "link", "add", bridge, "type", "bridge")
                self._ip("-n", self.name, "addr", "add", address, "dev", bridge)
                self._ip("-n", self.name, "link", "set", bridge, "up")
            for number in range(3):
                space = f"{self.name}m{number}"
                self._space(space)
                for bridge, net in (("peers", 1), ("clients", 2)):
                    there = f"{bridge[0]}{number}"
                    self._ip("-n", self.name, "link", "add", there, "type", "veth", "peer", "name", bridge, "netns", space)
                    self._ip("-n", self.name, "link", "set", there, "master", bridge, "up")
                    self._ip("-n", space, "addr", "add", f"10.77.{net}.{number + 1}/24", "dev", bridge)
                    self._ip("-n", space, "link", "set", bridge, "up")
            in_namespace(self.name, lambda: super(SplitCluster, self).__init__(3))
        except BaseException:
            self._unmake()
            raise

    def places(self, count: int) -> list[tuple[str, int, int]]:
        return [(f"10.77.1.{number + 1}", 2379, 2380) for number in range(count)]

    def prefix(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self.name}m{number}"]

    def client_host(self, number: int, host: str) -> str:
        return f"10.77.2.{number + 1}"

    def cut(self, member: Member, *, whole: bool = False) -> None:
        """Between this member and the others; ``whole``: also its clients."""
        self._link(member, "down", whole)

    def mend(self, member: Member, *, whole: bool = False) -> None:
        self._link(member, "up", whole)

    def _link(self, member: Member, state: str, whole: bool) -> None:
        number = self.members.index(member)
        for link in (f"p{number}", f"c{number}")[: 1 + whole]:
            self._ip("-n", self.name, "link", "set", link, state)

    def close(self) -> None:
        super().close()
        self._unmake()

    def _space(self, name: str) -> None:
        self._ip("netns", "add", name)
        self._made.append(name)
        self._ip("-n", name, "link", "set", "lo", "up")

    def _unmake(self) -> None:
        for name in reversed(self._made):
            self._ip("netns", "del", name)
        self._made.clear()

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def in_namespace(name: str, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, done by a thread in that network namespace; threads that it starts are there, too."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Between:
    """A proxy before a member that passes requests on, and loses the answer to the next transaction that writes.

    ``lose``: how many of them are still to be lost.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.lose = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock, socket.create_connection((self.member.host, self.member.port)) as there:
            while request := _message(sock):
                there.sendall(request)
                answer = _message(there)
                if self.lose and b"request_put" in request:
                    self.lose -= 1
                    return
                sock.sendall(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not end an accept()
        self._listener.close()


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(4096)
    if not data:
        raise ConnectionResetError("it ended in a message")
    return data


def _message(sock: socket.socket) -> bytes:
    """A message of HTTP, whole; nothing at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = {line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in head.split(b"\r\n")[1:]}
    if b"content-length" in fields:
        while len(body) < int(fields[b"content-length"]):
            body += _more(sock)
    else:
        while not (b"\r\n0\r\n" in body and body.endswith(b"\r\n\r\n")):
            body += _more(sock)
    return head + b"\r\n\r\n" + body


class Fake:
    """Answers each request with the bytes that ``say`` makes of it, and hangs up."""

    def __init__(self, say: Callable[[bytes], Iterator[bytes]]) -> None:
        self._say = say
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, StopIteration), sock:
            request = _message(sock)
            for part in self._say(request):
                sock.sendall(part)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not end an accept()
        self._listener.close()
