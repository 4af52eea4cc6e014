"""The arbiters that the hosts ask: a mounted share, an etcd on a host of its own, and a power switch."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time

from tests.faults.one_runner import product
from tests.faults.one_runner.hosts import Hosts

ETCD_PORT = 2379
ANSWER_S = 20.0
"""An arbiter that came back may take so long to answer."""
SWITCH = """\
#!/bin/sh
# The power switch of the other host, reached over a network of its own. One side at a time; who was switched off stays so.
here=%(folder)s
exec 9>"$here/lock"
flock 9
[ -e "$here/out-of-reach.$COLO_ROLE" ] && { echo "no answer from the other host's controller"; exit 2; }
case $COLO_ROLE in
primary) other=%(secondary)s ;;
secondary) other=%(primary)s ;;
*) exit 3 ;;
esac
read -r winner 2>/dev/null <"$here/winner"
[ -n "$winner" ] && [ "$winner" != "$COLO_ROLE" ] && { echo "switched off by the $winner's side"; exit 1; }
echo 1 >"$other/cgroup.kill" || exit 4
while grep -q "populated 1" "$other/cgroup.events"; do sleep 0.01; done
echo "$COLO_ROLE" >"$here/winner"
"""
"""Killed between the kill and its last line, it can be asked again: whoever could contradict is dead."""


class Arbiters:
    """All three kinds, for one set of hosts; :meth:`make` begins a VM."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self._etcd: subprocess.Popen[str] | None = None
        self._count = 0
        self.switch = hosts.run_dir / "switch"
        self.switch.mkdir(mode=0o700)
        script = self.switch / "off"
        script.write_text(SWITCH % {
            "folder": self.switch, "primary": hosts["primary"].cgroup, "secondary": hosts["secondary"].cgroup})
        script.chmod(0o700)

    def make(self, kind: str) -> str:
        """A new one; returns its URI."""
        self._count += 1
        if kind == "file":
            (self.hosts.share / f"vm{self._count}").mkdir(mode=0o700)
            uri = f"file:{self.hosts.mounted / f'vm{self._count}'}"
        elif kind == "etcd":
            self.start_etcd()
            uri = f"etcd:http://{self.hosts['arbiter'].address}:{ETCD_PORT}/vm{self._count}"
        elif kind == "exec":
            for path in self.switch.iterdir():
                if path.name != "off":
                    path.unlink()
            return f"exec:{self.switch / 'off'}"
        else:
            return kind
        self.hosts["primary"].run(*product.init_arbiter(uri))
        return uri

    def winner(self, kind: str, uri: str) -> str:
        """Which side took the VM over last, or freed itself; "" where the first holder still has it, or nobody can tell."""
        if kind == "exec":
            return self.switched_off()
        if kind not in ("file", "etcd"):
            return ""
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                shown = json.loads(self.hosts["secondary"].run(*product.show_arbiter(uri)))
                break
            except subprocess.CalledProcessError:  # it has only just come back
                if time.monotonic() >= deadline:
                    raise
        return str(shown["role"]) if shown["generation"] > 1 else ""

    def start_etcd(self) -> None:
        """One member, on the arbiter's host."""
        if self._etcd is not None and self._etcd.poll() is None:
            return
        program = shutil.which("etcd")
        assert program is not None, "no etcd here: apt-get install etcd-server"
        host = self.hosts["arbiter"]
        url = f"http://{host.address}:{ETCD_PORT}"
        log = host.folder / "etcd.log"
        with open(log, "ab") as output:
            self._etcd = host.start(
                [program, "--name", "m", "--data-dir", str(host.folder / "etcd"), "--listen-client-urls", url,
                 "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380", "--initial-cluster",
                 "m=http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--log-level", "error"],
                stdout=output, stderr=output)
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._etcd.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        host = self.hosts["arbiter"]
        with host.socket(socket.SOCK_STREAM) as connection, contextlib.suppress(OSError):
            connection.settimeout(2)
            connection.connect((host.address, ETCD_PORT))
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
            return b'"true"' in answer
        return False

    def switched_off(self) -> str:
        """The side that switched the other one off, "" if none did."""
        winner = self.switch / "winner"
        return winner.read_text().strip() if winner.exists() else ""

    def take_away(self, kind: str, name: str) -> None:
        """The host of that name cannot reach its arbiter any more."""
        if kind == "file":
            self.hosts.hang(name)
        elif kind == "etcd":
            self.hosts.cut(name, "arbiter")
            self.hosts.cut("arbiter", name)
        else:
            (self.switch / f"out-of-reach.{name}").touch()

    def give_back(self, kind: str, name: str) -> None:
        """It can again."""
        if kind == "file":
            self.hosts.unhang(name)
        elif kind == "etcd":
            self.hosts.mend(name, "arbiter")
            self.hosts.mend("arbiter", name)
        else:
            (self.switch / f"out-of-reach.{name}").unlink(missing_ok=True)

